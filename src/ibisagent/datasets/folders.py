"""Reads folders of pictures and masks, and of NIfTI pairs.

Understood, alone or below folders named train, val, test:
- two parallel folders (images/ and masks/, see `PICTURE_FOLDERS` and `MASK_FOLDERS`), the mask with
  the picture's stem or with one of `MASK_ENDINGS` added; several numbered masks are united;
- the same with sub-folders of one name in both: of splits (images/train, masks/train), else of
  patients (images/P001/x.png, masks/P001/x.png);
- the same with one folder per target: masks/liver/x.png;
- where nothing else says it, with the target in the mask's name: masks/x_liver.png;
- one folder with x.png beside x_mask.png.
What masks show is said by `target`, by `labels` (value or colour -> target), by a file labels.json
with the same mapping, by the folders of masks, or by their names. Names are compared, nothing is
opened but the headers of volumes. Left out: names that begin with a dot, folders deeper than `DEPTH`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ibisagent.datasets.cases import (
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    Case,
    DataSet,
    Fault,
    PictureFile,
    ReadOptions,
    Target,
    case_key,
    hashed,
    is_target,
)
from ibisagent.datasets.mask_sources import MaskFiles
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
DEPTH = 4  # folders below images/ and masks/ that are looked into
_SUFFIXES = PICTURE_SUFFIXES + VOLUME_SUFFIXES
_NUMBER = r"(?:[_-]?\d+)?"
_ENDING = re.compile(rf"(?:{'|'.join(MASK_ENDINGS)}){_NUMBER}$", re.IGNORECASE)
_COUNT = re.compile(r"[_-]\d+$")


@dataclass(frozen=True)
class _Part:
    """A place with pictures and masks; a split folder or the data set itself."""

    split: str
    pictures: Path
    masks: Path  # the same folder where masks lie beside the pictures


@dataclass(frozen=True)
class _File:
    """A picture or mask file of a part."""

    path: Path
    split: str
    folders: tuple[str, ...]  # below the part's folder, without that of the split
    stem: str


def read_folders(root: Path, options: ReadOptions) -> DataSet:
    """The pictures of a folder with their masks; no pixel is read.

    Raises InputError where no pair is found, readable or not, and where nothing says what the masks
    show.
    """
    labels = _labels(root, options)
    cases: list[Case] = []
    faults: list[Fault] = []
    seen: list[str] = []
    for part in _parts(root):
        pictures, masks = _files_of(part)
        seen += _seen(root, part, pictures, masks)
        for item in _paired(root, pictures, masks, labels, options):
            if isinstance(item, Case):
                cases.append(item)
            else:
                faults.append(item)
    unpaired = all(fault.kind in ("missing mask", "mask without picture") for fault in faults)
    if options.split is None and unpaired and not any(case.targets for case in cases):
        raise InputError(
            "a folder data set has pictures and masks of one name, in parallel folders or side by side",
            "; ".join(seen) or "no pictures",
            f"put them into {PICTURE_FOLDERS[0]}/ and {MASK_FOLDERS[0]}/ with one name, "
            f"or end masks in {MASK_ENDINGS[0]}",
        )
    options = replace(options, labels=labels)  # those of labels.json too: they are part of what is read
    return DataSet("folders", tuple(cases), options, tuple(faults))


def looks_like_folders(root: Path) -> bool:
    """Whether some folder below has the layout; file names are looked at, nothing is opened."""
    return any(part.pictures != part.masks or _side_by_side(part.pictures) for part in _parts(root))


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


def taught_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Checked labels without the value 0 and without what is called background or ignore."""
    checked = checked_labels(labels)
    return {key: name for key, name in checked.items() if is_target(name) and key.strip("0")}


# --- finding files ----------------------------------------------------------------------------


def _labels(root: Path, options: ReadOptions) -> dict[str, str]:
    if options.labels:
        return taught_labels(options.labels)
    return taught_labels(read_labels(root / "labels.json")) if (root / "labels.json").is_file() else {}


def _parts(root: Path) -> list[_Part]:
    """The folders of splits that hold something, and the root where it has the layout itself."""
    named = [child for child in _children(root) if child.name.lower() in SPLITS]
    parts = [part for child in named if (part := _part(child, SPLITS[child.name.lower()])) is not None]
    own = _part(root, "train")
    if own is not None and (not parts or own.pictures != own.masks):
        parts.append(own)
    return parts


def _part(folder: Path, split: str) -> _Part | None:
    """A folder with pictures and masks in parallel folders, or with files; None for any other."""
    children = {child.name.lower(): child for child in _children(folder)}
    pictures = next((children[name] for name in PICTURE_FOLDERS if name in children), None)
    masks = next((children[name] for name in MASK_FOLDERS if name in children), None)
    if pictures is not None and masks is not None:
        return _Part(split, pictures, masks)
    return _Part(split, folder, folder) if _files(folder) else None


def _side_by_side(folder: Path) -> bool:
    return any(_ENDING.search(_stem(path)) for path in _files(folder))


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(_SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )


def _below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    yield from _files(folder)
    for child in _children(folder) if depth else ():
        yield from _below(child, depth - 1)


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in sorted(_SUFFIXES, key=len)[::-1] if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def _files_of(part: _Part) -> tuple[list[_File], list[_File]]:
    """The pictures and the masks of a part."""
    if part.pictures == part.masks:
        files = [_File(path, part.split, (), _stem(path)) for path in _files(part.pictures)]
        masked = [bool(_ENDING.search(file.stem)) for file in files]
        return (
            [file for file, mask in zip(files, masked, strict=True) if not mask],
            [file for file, mask in zip(files, masked, strict=True) if mask],
        )
    return _nested(part.pictures, part.split), _nested(part.masks, part.split)


def _nested(folder: Path, split: str) -> list[_File]:
    found = []
    for path in _below(folder):
        folders = path.relative_to(folder).parts[:-1]
        named = SPLITS.get(folders[0].lower()) if folders else None
        found.append(_File(path, named or split, folders[1:] if named else folders, _stem(path)))
    return found


def _seen(root: Path, part: _Part, pictures: list[_File], masks: list[_File]) -> list[str]:
    """What a part holds, for the error that nothing in it fits."""
    places = [str(folder.relative_to(root)) for folder in (part.pictures, part.masks)]
    where = [f" in {place}" if place != "." else "" for place in places]
    return [f"{len(pictures)} pictures{where[0]} and {len(masks)} masks{where[1]}, none of one name"]


# --- pairing them -----------------------------------------------------------------------------

_Shown = dict[str | None, tuple[Path, ...]]  # target -> mask files; None: something else names it


def _paired(
    root: Path, pictures: list[_File], masks: list[_File], labels: dict[str, str], options: ReadOptions
) -> Iterator[Case | Fault]:
    places = {(file.split, file.folders, file.stem): file for file in pictures}
    by_name = not labels and options.target is None  # whether masks may name their target
    found: dict[Path, _Shown] = {file.path: {} for file in pictures}
    for mask in masks:
        if options.split not in (None, mask.split):
            continue
        match = _match(mask, places, by_name)
        if match is None:
            yield Fault("mask without picture", str(mask.path.relative_to(root)), "no such stem", "left out")
            continue
        picture, target = match
        shown = found[picture.path]
        key = target if not labels or _said(target) in labels.values() else None
        shown[key] = (*shown.get(key, ()), mask.path)
    for file in pictures:
        if options.split not in (None, file.split):
            continue
        shown = found[file.path]
        where = str(file.path.relative_to(root))
        if not shown:
            yield Fault("missing mask", where, "no mask file", "no sample is made of it")
        if None in shown and len(shown) > 1 and options.target is None:
            value = "masks that nothing names beside those of targets"
            yield Fault("index", where, value, "left out: name them with their folder")
            del shown[None]
        patient = hashed(root.name, file.folders[0]) if file.folders else None
        yield from _cases(root, file, shown, where, patient, labels, options)


def _match(
    mask: _File, places: Mapping[tuple[str, tuple[str, ...], str], _File], by_name: bool
) -> tuple[_File, str | None] | None:
    """The picture of a mask and the target that its folder or name says; None where there is none.

    Its stem is the picture's, or that with an ending and a number; its folders are the picture's,
    or these and one of a target at either end.
    """
    stems = (mask.stem, _ENDING.sub("", mask.stem), _COUNT.sub("", mask.stem))
    folders: list[tuple[tuple[str, ...], str | None]] = [(mask.folders, None)]
    if mask.folders:
        folders += [(mask.folders[1:], mask.folders[0]), (mask.folders[:-1], mask.folders[-1])]
    for place, target in folders:
        for stem in stems:
            if (picture := places.get((mask.split, place, stem))) is not None:
                return picture, target
    if by_name:
        rest = _COUNT.sub("", _ENDING.sub("", mask.stem))
        for end in sorted((one.start() for one in re.finditer(r"[_-]", rest)), reverse=True):
            picture = places.get((mask.split, mask.folders, rest[:end]))
            if picture is not None and rest[end + 1 :]:
                return picture, rest[end + 1 :]
    return None


def _cases(
    root: Path,
    file: _File,
    shown: _Shown,
    where: str,
    patient: str | None,
    labels: dict[str, str],
    options: ReadOptions,
) -> Iterator[Case | Fault]:
    dataset = root.name
    named = [
        (name, value, files)
        for words, files in shown.items()
        for name, value in _names(words, labels, options)
        if is_target(name)
    ]
    if file.path.name.lower().endswith(VOLUME_SUFFIXES):
        marked: list[tuple[str, LabelFile]] = [
            (name, (path, None if value is None else (_number(value),)))
            for name, value, files in named
            for path in files
        ]
        yield from volume_cases(
            file.path, marked, options, dataset=dataset, split=file.split, where=where, patient=patient
        )
        return
    targets = tuple(Target(name, MaskFiles(files, value)) for name, value, files in named)
    key = case_key(dataset, file.split, where)
    yield Case(key, where, PictureFile(file.path), targets, dataset, file.split, patient)


def _said(words: str | None) -> str | None:
    """What the name of a folder or mask file says."""
    return words and words.replace("+", " ").replace("_", " ")


def _names(
    words: str | None, labels: dict[str, str], options: ReadOptions
) -> Iterable[tuple[str, str | None]]:
    """What masks show and by which value or colour, None for any; `words` are those of one target."""
    if labels and words is None:
        return [(name, value) for value, name in labels.items()]
    name = _said(words) or options.target
    if name is None:
        raise InputError(
            "something must say what the masks show",
            "masks without names",
            'give --target "skin lesion", or --labels 1=liver 2=spleen, or a labels.json',
        )
    return [(name, None)]


def _number(value: str) -> int:
    if value.startswith("#"):
        raise InputError("volumes have values, not colours", value, "write 1=liver")
    return int(value)
