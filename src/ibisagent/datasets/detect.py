"""One door to every format: `open_dataset(path)` finds out what a path holds and reads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ibisagent.datasets import biomedparse
from ibisagent.datasets.cases import (
    Case,
    DataSet,
    Fault,
    PictureFile,
    ReadOptions,
    Target,
    hashed,
    led_out,
    place_below,
)
from ibisagent.datasets.coco import is_coco, read_coco, read_json
from ibisagent.datasets.folders import looks_like_folders, read_folders
from ibisagent.datasets.huggingface import is_huggingface, read_huggingface
from ibisagent.datasets.lisa import is_lisa, read_lisa
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.datasets.mecovqa import is_mecovqa, read_mecovqa
from ibisagent.datasets.nnunet import is_nnunet, read_nnunet
from ibisagent.datasets.npz import read_npz
from ibisagent.datasets.sammed2d import is_sammed2d, read_sammed2d
from ibisagent.datasets.segagent import is_segagent, read_segagent
from ibisagent.errors import IbisError, InputError

FORMATS = (
    "biomedparse",
    "nnunet",
    "coco",
    "npz",
    "mecovqa",
    "lisa",
    "segagent",
    "sam-med2d",
    "huggingface",
    "folders",
)


def open_dataset(path: str | Path, format: str | None = None, options: ReadOptions | None = None) -> DataSet:
    """The data set at a path: iterate it for samples, or take its `cases` (no pixel is read yet).

    `format` is one of `FORMATS`; None finds out. Raises InputError where the path does not exist,
    where its format is not recognised, and where `options.split` names a split that is not there.
    Its name is that of its folder, however that is written.
    """
    path, options = Path(path), options or ReadOptions()
    if not path.exists():
        raise InputError("a data set must exist", "no such file or folder", "check the path")
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    kind = format or detect_format(path)
    if kind not in FORMATS:
        raise InputError(
            "a format is one that ibisagent reads", repr(kind), f"choose from: {', '.join(FORMATS)}"
        )
    found = _read(path, kind, options)
    if options.split is not None and not found.cases:
        there = sorted({case.split for case in _read(path, kind, replace(options, split=None)).cases})
        raise InputError(
            "the split must be in the data set",
            repr(options.split),
            f"there are: {', '.join(there)}"
            if there
            else "the data set is empty; see `ibisagent data check`",
        )
    return _with_patients(_once(found))


def open_part(
    path: str | Path, part: str, format: str | None = None, options: ReadOptions | None = None
) -> DataSet:
    """What is trained on ("train") or chosen on ("val"): never the same patients.

    The data set's own splits where it has a val; else its training split without a tenth of the
    patients (`split_of`; of the pictures where no patient is known), or that tenth. Raises
    InputError as `open_dataset` does, and where nothing is left.
    """
    options = options or ReadOptions()
    try:
        own = open_dataset(path, format, replace(options, split="val"))
    except InputError:
        own = None  # of what else may be wrong the next call speaks
    if own is not None:
        return own if part == "val" else open_dataset(path, format, replace(options, split="train"))
    found = open_dataset(path, format, replace(options, split="train"))
    cases = tuple(c for c in found.cases if biomedparse.split_of(c.patient or c.key) == part)
    if not cases:
        raise InputError(
            f"a tenth of the patients, by hash, is for validation, and the others for training: {part}",
            f"none of {len(found.cases)} pictures",
            "add pictures, give the data set a val split, or hold nobody out (synthesize --no-hold-out, "
            "train rl --validate-every 0)",
        )
    return replace(found, cases=cases)


def _once(found: DataSet) -> DataSet:
    """Every key once: what is listed again (also under another split) is left out and named."""
    kept: dict[str, Case] = {}
    faults = list(found.faults)
    for case in found.cases:
        if kept.setdefault(case.key, case) is not case:
            faults.append(Fault("duplicate", case.where, "listed again under one name", "left out"))
    if len(kept) == len(found.cases):
        return found
    return replace(found, cases=tuple(kept.values()), faults=tuple(faults))


def _with_patients(found: DataSet) -> DataSet:
    """The cases with the patients that `options.patient` finds in their files' paths."""
    pattern = found.options.patient
    if pattern is None:
        return found
    cases: list[Case] = []
    unknown: dict[str, Fault] = {}
    for case in found.cases:
        match = re.search(pattern, case.file)
        if match is None or match[1] is None:
            done = "a picture of its own" if case.patient is None else "grouped as the format says"
            unknown[case.file] = Fault("unknown patient", case.file, f"--patient {pattern} finds none", done)
            cases.append(case)
        else:
            cases.append(replace(case, patient=hashed(case.dataset, match[1]), patient_known=True))
    return replace(found, cases=tuple(cases), faults=(*found.faults, *unknown.values()))


def detect_format(path: Path) -> str:
    """Which of `FORMATS` a path holds, by its layout. Raises InputError where it is none."""
    if path.is_file():
        if path.suffix == ".npz":
            return "npz"
        if path.suffix == ".parquet":
            return "huggingface"
        if path.suffix == ".json" and (kind := _json_kind(path)) is not None:
            return kind
        raise _unknown("a file of another kind")
    if is_nnunet(path):
        return "nnunet"
    if _biomedparse_sets(path):
        return "biomedparse"
    if is_huggingface(path):
        return "huggingface"
    if any(path.glob("*.npz")):
        return "npz"
    if is_sammed2d(path):
        return "sam-med2d"
    if is_lisa(path):
        return "lisa"
    indexes = _indexes(path)
    if len(indexes) == 1 and (kind := _json_kind(indexes[0])) is not None:
        return kind
    if looks_like_folders(path):
        return "folders"
    raise _unknown("a folder of another layout")


def _unknown(value: str) -> InputError:
    return InputError(
        "the format of a data set must be recognised", value, f"name it with --format: {', '.join(FORMATS)}"
    )


def _json_kind(path: Path) -> str | None:
    data = read_json(path)
    kinds = (("coco", is_coco), ("segagent", is_segagent), ("mecovqa", is_mecovqa))
    return next((kind for kind, fits in kinds if fits(data)), None)


def _indexes(path: Path) -> list[Path]:
    return sorted([*path.glob("annotations/*.json"), *path.glob("*.json")])


def _read(path: Path, kind: str, options: ReadOptions) -> DataSet:
    """The data set as its reader gives it; an index with a missing or odd field is one InputError."""
    try:
        return _read_kind(path, kind, options)
    except IbisError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"an index of the format {kind} has the fields that docs/data.md names",
            what[:120],
            "complete the index, or name another --format",
        ) from error


def _read_kind(path: Path, kind: str, options: ReadOptions) -> DataSet:
    if kind == "biomedparse":
        return _read_biomedparse(path, options)
    if kind == "npz":
        return read_npz(path, options)
    if kind == "huggingface":
        return read_huggingface(path, options)
    if path.is_dir() and kind in ("coco", "segagent", "mecovqa"):
        found = _indexes(path)
        if len(found) != 1:
            raise InputError(
                "a folder with one index", f"{len(found)} JSON files", "name the JSON file itself"
            )
        path = found[0]
    if kind == "coco":
        return read_coco(path, options)
    if kind == "segagent":
        return read_segagent(path, options)
    if kind == "mecovqa":
        return read_mecovqa(path, options)
    if not path.is_dir():
        raise InputError(f"{kind} is a folder", "a file", "name the folder")
    if kind == "nnunet":
        return read_nnunet(path, options)
    if kind == "sam-med2d":
        return read_sammed2d(path, options)
    return read_lisa(path, options) if kind == "lisa" else read_folders(path, options)


# --- BiomedParseData --------------------------------------------------------------------------

_GUESSED_PATIENTS = ("BrainTumor", "USGRA")  # see `biomedparse.patient_of`


def _biomedparse_sets(path: Path) -> list[tuple[Path, str]]:
    """(root, set) of every BiomedParseData set at a path: the path itself, or the folders in it."""
    if _is_set(path):
        return [(path.resolve().parent, path.resolve().name)]
    return [(path, child.name) for child in sorted(path.iterdir()) if child.is_dir() and _is_set(child)]


def _is_set(folder: Path) -> bool:
    return any(
        (folder / f"{split}.json").is_file() and (folder / split).is_dir() for split in ("train", "test")
    )


def _read_biomedparse(path: Path, options: ReadOptions) -> DataSet:
    sets = _biomedparse_sets(path) if path.is_dir() else []
    if not sets:
        raise InputError("BiomedParseData has SET/train/ and SET/train.json", "neither", "name that folder")
    cases: list[Case] = []
    faults: list[Fault] = []
    for root, name in sets:
        for split in ("train", "test"):
            if options.split in (None, split) and (root / name / f"{split}.json").is_file():
                for record in biomedparse.read_index(root, name, split):
                    _add_record(record, root / name, cases, faults)
    return DataSet("biomedparse", tuple(cases), options, tuple(faults))


def _add_record(
    record: biomedparse.PictureRecord, folder: Path, cases: list[Case], faults: list[Fault]
) -> None:
    """The case of a record of the set in `folder`; files that are not there or lead out become faults."""
    where = f"{record.dataset}/{record.split}/{record.path.name}"
    if not _lies_below(folder / record.split, record.path):
        faults.append(led_out(where, str(record.path)))
        return
    if not record.path.is_file():
        faults.append(Fault("missing picture", where, "no such file", "left out"))
        return
    targets = []
    for target in record.targets:
        thing = f"{where}, {target.target}"
        if not _lies_below(folder / f"{record.split}_mask", target.path):
            faults.append(led_out(thing, str(target.path)))
        elif not target.path.is_file():
            faults.append(Fault("missing mask", thing, "no such file", "left out"))
        else:
            targets.append(Target(target.target, MaskFiles((target.path,))))
    cases.append(
        Case(
            key=f"{record.dataset}/{hashed(f'{record.dataset}/{record.stem}')}",
            where=where,
            picture=PictureFile(record.path, record.modality),
            targets=tuple(targets),
            dataset=record.dataset,
            split=record.split,
            patient=record.patient,
            patient_known=record.dataset not in _GUESSED_PATIENTS,
            modality=record.modality,
            site=record.site,
            absent=record.absent,
        )
    )


def _lies_below(folder: Path, path: Path) -> bool:
    return path.is_relative_to(folder) and place_below(folder, str(path.relative_to(folder))) is not None
