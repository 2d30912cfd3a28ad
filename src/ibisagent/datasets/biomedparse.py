"""Reads BiomedParseData folders: SET/{train,test}/, SET/{train,test}_mask/, SET/{train,test}.json.

Two kinds of index are understood: the plain one (`images[]` with `targets[]` and `absent[]`) and
the COCO-like one of microsoft/BiomedParseData (`images`, `annotations`, `categories`). Names are
parsed from the right, since picture names may hold underscores and dots:
PICTURE_MODALITY_SITE[_TARGET].png, where `+` stands for a space in SITE and TARGET.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibisagent.errors import InputError

DEFAULT_INSTRUCTION = "Find the {target} in this image."
_VALIDATION_TENTHS = 1


@dataclass(frozen=True)
class TargetMask:
    """One annotated target of a picture."""

    target: str  # such as "left kidney"
    path: Path  # of the mask file; foreground is every value but 0


@dataclass(frozen=True)
class PictureRecord:
    """One picture of a set with everything that its index says about it."""

    dataset: str
    split: str  # "train" or "test", as the folder says
    path: Path
    patient: str  # groups pictures of one patient or exam, see `patient_of`
    modality: str | None
    site: str | None
    targets: tuple[TargetMask, ...]
    absent: tuple[str, ...] = ()  # targets known not to be in the picture

    @property
    def stem(self) -> str:
        return self.path.name.rsplit(".", 1)[0]


def data_root(path: str | Path | None = None) -> Path:
    """The folder that holds the sets.

    In this order: `path`, the environment's IBISAGENT_DATA, `../shared/data` seen from the working
    folder or from the repository root. Raises InputError where none of them is a folder.
    """
    repository = Path(__file__).resolve().parents[3]
    named = path or os.environ.get("IBISAGENT_DATA")
    choices = [Path(named)] if named else [Path("../shared/data"), repository.parent / "shared" / "data"]
    for choice in choices:
        if choice.is_dir():
            return choice
    raise InputError(
        "the data folder must exist", ", ".join(map(str, choices)), "set IBISAGENT_DATA to the folder of sets"
    )


def list_datasets(root: Path) -> tuple[str, ...]:
    """Names of the sets under `root`, sorted: every folder with a train or test index."""
    return tuple(
        sorted(
            folder.name
            for folder in root.iterdir()
            if any((folder / f"{split}.json").is_file() for split in ("train", "test"))
        )
    )


def read_index(root: Path, dataset: str, split: str) -> list[PictureRecord]:
    """All pictures of one set and split, in the order of the index; no pixel is read.

    Raises InputError where the index is missing or not of either kind.
    """
    index = root / dataset / f"{split}.json"
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("a set needs a readable index", index, f"check the file ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise InputError("an index must be an object with a list `images`", index, "see docs/data.md")
    if "annotations" in data:
        return _coco_records(root, dataset, split, data)
    return [_plain_record(root, dataset, split, entry) for entry in data["images"]]


def patient_of(dataset: str, file_name: str) -> str:
    """The patient or exam that a picture belongs to, as far as its name tells: "SET/GROUP".

    Where numbers only tell that neighbours may be frames of one exam (BrainTumor, USGRA), ten
    neighbouring numbers make one group.
    """
    stem = parse_name(file_name)[0]
    group = stem
    if dataset in ("BTCV", "Sunnybrook"):
        group = stem.split("-IM-")[0] if dataset == "Sunnybrook" else stem.rsplit("-", 1)[0]
    elif dataset == "HC18":
        group = stem.split("-")[0].split("_")[0]
    elif dataset in ("BrainTumor", "USGRA") and (number := re.search(r"(\d+)$", stem)):
        group = f"{stem[: number.start()]}{int(number[1]) // 10}x"
    return f"{dataset}/{group}"


def split_of(patient: str) -> str:
    """ "val" for about a tenth of the training patients, else "train".

    A pure function of the patient, so that tool and policy are chosen on the same pictures. The
    number in the key is the first that gives every set of the training data a fair share.
    """
    digest = hashlib.sha256(f"ibisagent-124:{patient}".encode()).digest()
    return "val" if int.from_bytes(digest[:4]) % 10 < _VALIDATION_TENTHS else "train"


def parse_name(file_name: str) -> tuple[str, str | None, str | None]:
    """(picture, modality, site) of a file name PICTURE_MODALITY_SITE.png, read from the right."""
    stem = file_name.rsplit(".", 1)[0]
    parts = stem.rsplit("_", 2)
    if len(parts) < 3:
        return stem, None, None
    return parts[0], parts[1], parts[2].replace("+", " ")


def parse_mask_name(file_name: str) -> tuple[str, str]:
    """(picture stem, target) of a mask name PICTURE_MODALITY_SITE_TARGET.png."""
    stem, _, target = file_name.rsplit(".", 1)[0].rpartition("_")
    return stem, target.replace("+", " ")


def _plain_record(root: Path, dataset: str, split: str, entry: dict[str, Any]) -> PictureRecord:
    folder = root / dataset
    _, modality, site = parse_name(entry["file_name"])
    return PictureRecord(
        dataset=dataset,
        split=split,
        path=folder / split / entry["file_name"],
        patient=patient_of(dataset, entry["file_name"]),
        modality=entry.get("modality", modality),
        site=entry.get("site", site),
        targets=tuple(
            TargetMask(item["target"], folder / f"{split}_mask" / item["mask_file"])
            for item in entry.get("targets", [])
        ),
        absent=tuple(entry.get("absent", [])),
    )


def _coco_records(root: Path, dataset: str, split: str, data: dict[str, Any]) -> list[PictureRecord]:
    """The COCO-like index: an annotation names its mask file, and the mask's name its target.

    The same picture may be listed once per target; such entries are joined.
    """
    by_id = {entry["id"]: entry["file_name"] for entry in data["images"]}
    masks: dict[str, dict[str, str]] = {name: {} for name in by_id.values()}
    for annotation in data["annotations"]:
        picture = by_id.get(annotation["image_id"])
        mask_file = annotation.get("mask_file") or annotation.get("file_name")
        if picture is None or mask_file is None:
            raise InputError(
                "an annotation must name a listed picture and a mask file",
                f"annotation {annotation.get('id')} of {dataset}/{split}.json",
                "repair the index",
            )
        masks[picture][Path(mask_file).name] = parse_mask_name(Path(mask_file).name)[1]
    entries: Iterable[dict[str, Any]] = (
        {
            "file_name": picture,
            "targets": [{"target": target, "mask_file": name} for name, target in found.items()],
        }
        for picture, found in masks.items()
    )
    return [_plain_record(root, dataset, split, entry) for entry in entries]
