"""What a picture cannot show: targets of other sets that its part of the body does not have."""

from ibisagent.targets import TARGETS

_TRUNK = frozenset({"BTCV", "MontgomeryCXR", "Sunnybrook"})
_EVERYWHERE = frozenset({"nerve", "blood vessel"})  # of any part of the body, drawn in one set alone
_HOMES = {
    "brain tumor": "BrainTumor", "nuclei": "DSB2018", "fetal head": "HC18", "polyp": "HyperKvasir",
    "skin lesion": "ISIC2017", "hippocampus": "MSDHippocampus", "anterior hippocampus": "MSDHippocampus",
    "posterior hippocampus": "MSDHippocampus", "lungs": "MontgomeryCXR", "left lung": "MontgomeryCXR",
    "right lung": "MontgomeryCXR", "left ventricle": "Sunnybrook", "nerve": "USGRA", "blood vessel": "USGRA",
}  # fmt: skip
_HOMES = {target: _HOMES.get(target, "BTCV") for target in TARGETS}


def elsewhere(dataset: str) -> set[str]:
    """Targets that pictures of this set cannot show, though nobody listed them as absent."""
    never = {target for target in TARGETS if _HOMES[target] != dataset} - _EVERYWHERE
    if dataset in _TRUNK:
        never -= {target for target in TARGETS if _HOMES[target] in _TRUNK}
    if dataset == "USGRA":
        never -= {"aorta", "inferior vena cava"}
    if dataset == "BrainTumor":
        never -= {target for target in TARGETS if "hippocampus" in target}
    return never
