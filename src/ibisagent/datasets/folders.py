"""Reads folders of pictures and masks, and of NIfTI pairs.

Understood, alone or below folders named train, val, test:
- two parallel folders (images/ and masks/, see `PICTURE_FOLDERS` and `MASK_FOLDERS`), the mask with
  the picture's stem or with one of `MASK_ENDINGS` added; several numbered masks are united;
- the same with one folder per target: masks/liver/x.png;
- one folder with x.png beside x_mask.png.
What masks show is said by `target`, by `labels` (value or colour -> target), by a file labels.json
with the same mapping, or by the folders of masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ibisagent.datasets.cases import (
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    Case,
    DataSet,
    Fault,
    MaskFiles,
    PictureFile,
    ReadOptions,
    Target,
    case_key,
)
from ibisagent.datasets.volumes import LabelFile, volume_cases
from ibisagent.errors import InputError

PICTURE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "inputs", "original")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "gt", "ground_truth", "segmentations")
MASK_ENDINGS = ("_mask", "-mask", "_segmentation", "_seg", "_label", "_labels", "_gt", "_groundtruth")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SUFFIXES = PICTURE_SUFFIXES + VOLUME_SUFFIXES
_NUMBER = r"(?:[_-]?\d+)?"


def read_folders(root: Path, options: ReadOptions) -> DataSet:
    """The pictures of a folder with their masks; no pixel is read.

    Raises InputError where no pair is found, readable or not, and where nothing says what the masks show.
    """
    labels = _labels(root, options)
    cases: list[Case] = []
    faults: list[Fault] = []
    for split, folder in _split_folders(root):
        if options.split in (None, split):
            for item in _folder(root, folder, split, labels, options):
                if isinstance(item, Case):
                    cases.append(item)
                else:
                    faults.append(item)
    unpaired = all(fault.kind in ("missing mask", "mask without picture") for fault in faults)
    if options.split is None and unpaired and not any(case.targets for case in cases):
        raise InputError(
            "a folder data set has pictures and masks in parallel folders or side by side",
            "no pair",
            f"name the folders {PICTURE_FOLDERS[0]} and {MASK_FOLDERS[0]}, or end masks in {MASK_ENDINGS[0]}",
        )
    return DataSet("folders", tuple(cases), options, tuple(faults))


def looks_like_folders(root: Path) -> bool:
    """Whether some folder below has the layout; file names are looked at, nothing is opened."""
    return any(_parallel(folder) is not None or _side_by_side(folder) for _, folder in _split_folders(root))


def read_labels(path: Path) -> dict[str, str]:
    """A labels.json: {"1": "liver", "#ff0000": "left kidney"}. Raises InputError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("labels.json is readable JSON", type(error).__name__, "repair it") from None
    if not isinstance(found, dict):
        raise InputError("labels.json maps values to targets", type(found).__name__, 'write {"1": "liver"}')
    return checked_labels({str(key): str(value) for key, value in found.items()})


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels whose keys are whole numbers or #rrggbb. Raises InputError for any other key."""
    for key in labels:
        if not re.fullmatch(r"\d+|#[0-9a-fA-F]{6}", key):
            raise InputError("a label is a whole number or a colour #rrggbb", repr(key), "write 1=liver")
    return {key.lower(): name for key, name in labels.items()}


# --- finding files ----------------------------------------------------------------------------


def _labels(root: Path, options: ReadOptions) -> dict[str, str]:
    if options.labels:
        return checked_labels(options.labels)
    return read_labels(root / "labels.json") if (root / "labels.json").is_file() else {}


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    children = sorted(child for child in root.iterdir() if child.is_dir())
    named = [(SPLITS[child.name.lower()], child) for child in children if child.name.lower() in SPLITS]
    return named or [("train", root)]


def _parallel(folder: Path) -> tuple[Path, Path] | None:
    children = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
    pictures = next((children[name] for name in PICTURE_FOLDERS if name in children), None)
    masks = next((children[name] for name in MASK_FOLDERS if name in children), None)
    return (pictures, masks) if pictures is not None and masks is not None else None


def _side_by_side(folder: Path) -> bool:
    return any(_stem(path).lower().endswith(MASK_ENDINGS) for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(_SUFFIXES) and path.is_file()
    )


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in sorted(_SUFFIXES, key=len)[::-1] if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _folder(
    root: Path, folder: Path, split: str, labels: dict[str, str], options: ReadOptions
) -> Iterator[Case | Fault]:
    parallel = _parallel(folder)
    if parallel is None:
        masked = re.compile(rf"({'|'.join(MASK_ENDINGS)}){_NUMBER}$", re.IGNORECASE)
        everything = _files(folder)
        pictures = [path for path in everything if not masked.search(_stem(path))]
        groups: dict[str | None, list[Path]] = {
            None: [path for path in everything if masked.search(_stem(path))]
        }
    else:
        pictures = _files(parallel[0])
        below = {child.name: _files(child) for child in sorted(parallel[1].iterdir()) if child.is_dir()}
        groups = {name: files for name, files in below.items() if files}
        groups = groups or {None: _files(parallel[1])}
    if not pictures:
        return
    by_picture: dict[Path, list[tuple[str | None, tuple[Path, ...]]]] = {path: [] for path in pictures}
    for name, masks in groups.items():
        pairs, left = _pairs(pictures, masks)
        for picture, files in pairs.items():
            by_picture[picture].append((name, files))
        for path in left:
            yield Fault("mask without picture", str(path.relative_to(root)), "no such stem", "left out")
    for picture, found in by_picture.items():
        where = str(picture.relative_to(root))
        if not found:
            yield Fault("missing mask", where, "no mask file", "no sample is made of it")
        yield from _cases(root, picture, found, split, where, labels, options)


def _pairs(pictures: list[Path], masks: list[Path]) -> tuple[dict[Path, tuple[Path, ...]], list[Path]]:
    """Masks by picture: the same stem, else the stem with an ending, and a number."""
    by_stem = {_stem(picture): picture for picture in pictures}
    ending = re.compile(rf"(?:{'|'.join(MASK_ENDINGS)}){_NUMBER}$", re.IGNORECASE)
    found: dict[Path, tuple[Path, ...]] = {}
    left = []
    for path in masks:
        stem = _stem(path)
        candidates = (stem, ending.sub("", stem), re.sub(r"[_-]\d+$", "", stem))
        picture = next((by_stem[candidate] for candidate in candidates if candidate in by_stem), None)
        if picture is None:
            left.append(path)
        else:
            found[picture] = (*found.get(picture, ()), path)
    return found, left


def _cases(
    root: Path,
    picture: Path,
    found: list[tuple[str | None, tuple[Path, ...]]],
    split: str,
    where: str,
    labels: dict[str, str],
    options: ReadOptions,
) -> Iterator[Case | Fault]:
    dataset = root.name
    if picture.name.lower().endswith(VOLUME_SUFFIXES):
        marked: list[tuple[str, LabelFile]] = [
            (name, (path, None if value is None else (_number(value),)))
            for folder, files in found
            for name, value in _shown(folder, labels, options)
            for path in files
        ]
        yield from volume_cases(picture, marked, options, dataset=dataset, split=split, where=where)
        return
    targets = tuple(
        Target(name, MaskFiles(files, value))
        for folder, files in found
        for name, value in _shown(folder, labels, options)
    )
    yield Case(case_key(dataset, split, where), where, PictureFile(picture), targets, dataset, split)


def _shown(folder: str | None, labels: dict[str, str], options: ReadOptions) -> list[tuple[str, str | None]]:
    """What masks show and by which value or colour, None for any; `folder` is the one of one target."""
    if folder is None and labels:
        return [(name, value) for value, name in labels.items()]
    return [(_named(folder, options), None)]


def _named(folder: str | None, options: ReadOptions) -> str:
    name = folder.replace("+", " ").replace("_", " ") if folder else options.target
    if name is None:
        raise InputError(
            "something must say what the masks show",
            "masks without names",
            'give --target "skin lesion", or --labels 1=liver 2=spleen, or a labels.json',
        )
    return name


def _number(value: str) -> int:
    if value.startswith("#"):
        raise InputError("volumes have values, not colours", value, "write 1=liver")
    return int(value)
