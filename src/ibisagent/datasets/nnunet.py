"""Reads nnU-Net and Medical Segmentation Decathlon folders: dataset.json, imagesTr, labelsTr.

nnU-Net 1 and the Decathlon list values as {"1": "liver"}, nnU-Net 2 as {"liver": 1} or, for
regions, {"whole tumor": [1, 2, 3]}. Pictures are CASE_0000.SUFFIX (nnU-Net) or CASE.SUFFIX
(Decathlon), volumes or PNG. imagesTs is read only where labelsTs exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    is_target,
)
from ibisagent.datasets.coco import read_json
from ibisagent.datasets.mask_sources import MaskFiles, UnionMask
from ibisagent.datasets.volumes import volume_cases
from ibisagent.errors import InputError

_FOLDERS = (("train", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs"))


def is_nnunet(root: Path) -> bool:
    """Whether a folder has the layout."""
    return (root / "dataset.json").is_file() and (root / "imagesTr").is_dir()


def read_nnunet(root: Path, options: ReadOptions) -> DataSet:
    """The labelled pictures or slices of a folder; no voxel is read. Raises InputError."""
    data = read_json(root / "dataset.json")
    if not isinstance(data, dict):
        raise InputError("dataset.json is an object", type(data).__name__, "check the file")
    names = label_values_by_name(data.get("labels"))
    channels = data.get("channel_names") or data.get("modality") or {}
    modality = str(channels[str(options.channel)]) if str(options.channel) in channels else None
    cases: list[Case] = []
    faults: list[Fault] = []
    for split, images, labels in _FOLDERS:
        if options.split not in (None, split) or not (root / labels).is_dir():
            continue
        for item in _pairs(root, images, labels, split, names, modality, options):
            (cases if isinstance(item, Case) else faults).append(item)  # type: ignore[arg-type]
    return DataSet("nnunet", tuple(cases), options, tuple(faults))


def label_values_by_name(labels: Any) -> dict[str, tuple[int, ...]]:
    """Label values of each target, background left out. Raises InputError for neither kind."""
    names: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in labels.items():
            if str(key).isdigit():
                name = str(value)
                values: tuple[int, ...] = (int(key),)
            else:
                name = str(key)
                values = tuple(int(one) for one in value) if isinstance(value, list) else (int(value),)
            name = name.replace("_", " ")
            if is_target(name) and values != (0,):
                names[name] = (*names.get(name, ()), *values)
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            "labels map values to names or names to values", repr(labels)[:60], 'write {"liver": 1}'
        ) from None
    return names


def _pairs(
    root: Path,
    images: str,
    labels: str,
    split: str,
    names: dict[str, tuple[int, ...]],
    modality: str | None,
    options: ReadOptions,
) -> Iterator[Case | Fault]:
    suffixes = VOLUME_SUFFIXES[::-1] + PICTURE_SUFFIXES
    for label in sorted((root / labels).iterdir()):
        suffix = next((end for end in suffixes if label.name.lower().endswith(end)), "")
        if not suffix or label.name.startswith("."):
            continue
        stem = label.name[: -len(suffix)]
        choices = [root / images / f"{stem}_{options.channel:04d}{suffix}", root / images / label.name]
        picture = next((path for path in choices if path.is_file()), None)
        if picture is None:
            where = f"{labels}/{label.name}"
            yield Fault("mask without picture", where, f"no {choices[0].name}", "left out")
            continue
        where = f"{images}/{picture.name}"
        if suffix in VOLUME_SUFFIXES:
            yield from volume_cases(
                picture,
                [(name, (label, values)) for name, values in names.items()],
                options,
                dataset=root.name,
                split=split,
                where=where,
                modality=modality,
            )
        else:
            targets = tuple(
                Target(name, UnionMask(tuple(MaskFiles((label,), str(value)) for value in values)))
                for name, values in names.items()
            )
            key = case_key(root.name, split, where)
            file = PictureFile(picture, modality)
            yield Case(key, where, file, targets, root.name, split, modality=modality)
    if (root / images).is_dir():
        yield from _without_labels(root, images, labels, suffixes)


def _without_labels(root: Path, images: str, labels: str, suffixes: tuple[str, ...]) -> Iterator[Fault]:
    for path in sorted((root / images).iterdir()):
        suffix = next((end for end in suffixes if path.name.lower().endswith(end)), "")
        if not suffix or path.name.startswith("."):
            continue
        stem = path.name[: -len(suffix)]
        numbered = re.fullmatch(r"(.+)_\d{4}", stem)
        stems = (stem, numbered[1]) if numbered else (stem,)
        if not any((root / labels / f"{one}{suffix}").is_file() for one in stems):
            yield Fault("missing mask", f"{images}/{path.name}", "no label file", "left out")
