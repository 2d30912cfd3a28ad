"""Reads SAM-Med2D's folders: image2label_{split}.json (picture -> masks) and label2image_{split}.json
(mask -> picture) beside images/ and masks/.

A mask's name is that of its picture, the target and a number: amos_0004_75_liver_000.png beside
amos_0004_75.png, or in SA-Med2D-20M's way PICTURE--0003_000.png, where a number stands for the
target and `labels` can name it. Masks of one target (instances) are united, since words cannot tell
them apart. Paths within the index are seen from the folder, from its parent or from `pictures`.
"""

from __future__ import annotations

import re
from pathlib import Path

from ibisagent.datasets.cases import (
    Case,
    DataSet,
    Fault,
    PictureFile,
    ReadOptions,
    Target,
    case_key,
    hashed,
    is_target,
    led_out,
    place_below,
)
from ibisagent.datasets.coco import read_json
from ibisagent.datasets.folders import SPLITS
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.errors import InputError

_INDEX = re.compile(r"(image2label|label2image)_(\w+)\.json")
_REST = re.compile(r"(?:--|_)(.+?)_\d+")  # what a mask's name adds to its picture's
_CASE = re.compile(r"(.+)_\d+")  # a picture's name without the number of its slice


def is_sammed2d(root: Path) -> bool:
    """Whether a folder has an index of this kind."""
    return bool(_indexes(root))


def read_sammed2d(root: Path, options: ReadOptions) -> DataSet:
    """The pictures of all indexes with their targets. Raises InputError for an index of another kind."""
    cases: list[Case] = []
    faults: list[Fault] = []
    for split, files in _indexes(root).items():
        if options.split not in (None, split):
            continue
        for name, masks in sorted(_masks(files).items()):
            if place_below(root, name) is None:
                faults.append(led_out(f"picture of {split}", name))
                continue
            picture = _place(name, root, options)
            if picture is None:
                faults.append(Fault("missing picture", name, "no such file", "left out"))
                continue
            targets = _targets(picture, name, masks, root, options, faults)
            if targets:
                cases.append(_case(root, split, name, picture, targets))
    return DataSet("sam-med2d", tuple(cases), options, tuple(faults))


def _indexes(root: Path) -> dict[str, list[Path]]:
    """Split -> its index files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*2*_*.json")):
        match = _INDEX.fullmatch(path.name)
        if match is not None:
            found.setdefault(SPLITS.get(match[2].lower(), match[2].lower()), []).append(path)
    return found


def _masks(files: list[Path]) -> dict[str, set[str]]:
    """Picture -> masks, as the indexes write their paths."""
    found: dict[str, set[str]] = {}
    for file in files:
        index = read_json(file)
        if not isinstance(index, dict):
            raise InputError("an index of SAM-Med2D is a JSON object", type(index).__name__)
        for key, value in index.items():
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(one, str) for one in values):
                raise InputError("an index of SAM-Med2D holds paths", file.name)
            for one in values:
                picture, mask = (one, key) if file.name.startswith("label2image") else (key, one)
                found.setdefault(picture, set()).add(mask)
    return found


def _place(name: str, root: Path, options: ReadOptions) -> Path | None:
    """A path of the index on this machine; what leads out of the places to look in is not followed."""
    roots = [root.resolve().parent, root, *([options.pictures] if options.pictures else [])]
    places = (place_below(place, name) for place in roots)
    return next((place for place in places if place is not None and place.is_file()), None)


def _targets(
    picture: Path, name: str, masks: set[str], root: Path, options: ReadOptions, faults: list[Fault]
) -> list[Target]:
    parts: dict[str, list[Path]] = {}
    for mask in sorted(masks):
        file = _place(mask, root, options)
        stem = Path(mask).stem
        rest = _REST.fullmatch(stem[len(picture.stem) :]) if stem.startswith(picture.stem) else None
        if place_below(root, mask) is None:
            faults.append(led_out(name, mask))
        elif file is None:
            faults.append(Fault("missing mask", name, mask, "left out"))
        elif rest is None and options.target is None:
            faults.append(Fault("index", name, f"{mask}: no target in its name", "left out"))
        else:
            target = _target_name(rest[1], options) if rest is not None else str(options.target)
            parts.setdefault(target, []).append(file)
    return [Target(target, MaskFiles(tuple(files))) for target, files in parts.items() if is_target(target)]


def _target_name(words: str, options: ReadOptions) -> str:
    if words.isdigit():
        named = options.labels.get(words) or options.labels.get(str(int(words)))
        return named or options.target or f"class {int(words)}"
    return options.labels.get(words, words.replace("_", " "))


def _case(root: Path, split: str, name: str, picture: Path, targets: list[Target]) -> Case:
    parts = picture.stem.split("--")
    match = _CASE.fullmatch(picture.stem)
    scan = "--".join(parts[:3]) if len(parts) >= 3 else match[1] if match else None
    return Case(
        key=case_key(root.name, split, name),
        where=name,
        picture=PictureFile(picture),
        targets=tuple(targets),
        dataset=parts[1] if len(parts) >= 3 else root.name,
        split=split,
        patient=hashed("sam-med2d", scan) if scan else None,
        patient_known=len(parts) >= 3,
        modality=parts[0].partition("_")[0].upper() if len(parts) >= 3 else None,
    )
