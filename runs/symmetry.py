"""Which sets training turns and mirrors, and which pictures say their sides."""

TURNED = frozenset({"BrainTumor", "DSB2018", "HyperKvasir", "ISIC2017"})  # pictures without an up and down
# Trunks have their sides; but many files are exported without regard to them, so these are mirrored too.
_SIDED_SETS = frozenset({"BTCV", "Sunnybrook"})


def mirror_share(dataset: str, trunks: float) -> float:
    """How much of a set is shown mirrored; `trunks`: of those that have sides."""
    return trunks if dataset in _SIDED_SETS else 0.5


def known_share(dataset: str, mirrored: bool) -> float:
    """How much of a set's pictures comes with known sides; abdomens and hearts in the mirror never do."""
    return 0.0 if mirrored and dataset in _SIDED_SETS else 0.25
