"""Reads COCO instance annotations: polygons, compressed and uncompressed run lengths.

One sample per picture and category: the union of its instances, crowds included, since an
instruction names a kind of thing. Left out: keypoints, captions, panoptic PNGs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibisagent.datasets.cases import (
    Case,
    DataSet,
    Fault,
    PictureFile,
    ReadOptions,
    Target,
    case_key,
    hashed,
    led_out,
    place_below,
)
from ibisagent.datasets.folders import PICTURE_FOLDERS, SPLITS
from ibisagent.datasets.mask_sources import MaskSource, PolygonMask, RleMask, UnionMask
from ibisagent.errors import InputError


def is_coco(data: object) -> bool:
    """Whether JSON looks like COCO instances."""
    return isinstance(data, dict) and all(
        isinstance(data.get(key), list) for key in ("images", "annotations")
    )


def read_coco(index: Path, options: ReadOptions) -> DataSet:
    """The pictures of one index. Raises InputError where it is not COCO or no picture is found."""
    data = read_json(index)
    if not is_coco(data) or not isinstance(data.get("categories"), list):
        raise InputError("COCO has images, annotations and categories", "none of that kind", "check the file")
    dataset, split = index.resolve().parent.name, split_of_name(index.stem)
    if options.split not in (None, split):
        return DataSet("coco", (), options)
    names = {entry["id"]: str(entry["name"]).replace("_", " ") for entry in data["categories"]}
    faults: list[Fault] = []
    folder = picture_folder(index, [str(entry["file_name"]) for entry in data["images"]], options)
    by_image: dict[Any, dict[str, list[MaskSource]]] = {}
    known = {entry["id"] for entry in data["images"]}
    for annotation in data["annotations"]:
        where = f"annotation {annotation.get('id')}"
        name = names.get(annotation.get("category_id"))
        if annotation.get("image_id") not in known or name is None:
            faults.append(Fault("index", where, "names no listed image or category", "left out"))
            continue
        mask = segmentation_mask(annotation.get("segmentation"))
        if mask is None:
            faults.append(Fault("missing mask", where, "no segmentation", "left out"))
            continue
        by_image.setdefault(annotation["image_id"], {}).setdefault(name, []).append(mask)
    cases = []
    for entry in data["images"]:
        file_name = str(entry["file_name"])
        path = place_below(folder, file_name)
        if path is None:
            faults.append(led_out(f"image {entry['id']}", file_name))
            continue
        if not path.is_file():
            faults.append(Fault("missing picture", file_name, "no such file", "left out"))
            continue
        found = by_image.get(entry["id"], {})
        absent = tuple(names[number] for number in entry.get("neg_category_ids", ()) if number in names)
        patient = entry.get("patient_id")
        cases.append(
            Case(
                key=case_key(dataset, split, file_name),
                where=file_name,
                picture=PictureFile(path),
                targets=tuple(Target(name, UnionMask(tuple(masks))) for name, masks in found.items()),
                dataset=dataset,
                split=split,
                patient=hashed(dataset, patient) if patient is not None else None,
                absent=tuple(name for name in absent if name not in found),
            )
        )
    return DataSet("coco", tuple(cases), options, tuple(faults))


def segmentation_mask(segmentation: object) -> MaskSource | None:
    """The mask of a COCO `segmentation`; None where it has none."""
    if isinstance(segmentation, Mapping) and "counts" in segmentation:
        return RleMask((segmentation,))
    if isinstance(segmentation, list):
        polygons = tuple(
            tuple(float(value) for value in part)
            for part in segmentation
            if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0
        )
        if polygons:
            return PolygonMask(polygons)
    return None


# --- what JSON indexes share ------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """A JSON file in UTF-8 or, as some published ones are, Windows-1252. Raises InputError."""
    try:
        raw = path.read_bytes()
        try:
            return json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return json.loads(raw.decode("cp1252"))
    except (OSError, ValueError) as error:
        raise InputError("an index is readable JSON", type(error).__name__, "check the file") from None


def split_of_name(stem: str) -> str:
    """The split that a file name speaks of, such as "val" for instances_val2017; else train."""
    words = "".join(letter if letter.isalpha() else " " for letter in stem.lower()).split()
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def picture_folder(index: Path, names: list[str], options: ReadOptions) -> Path:
    """The folder that the file names of an index are relative to, by looking for the first ones.

    Names that lead out of a folder (`place_below`) are not looked for.

    Raises InputError where none of them is found anywhere near.
    """
    if options.pictures is not None:
        return options.pictures
    near = [index.parent, index.parent.parent]
    children = [
        folder / name for folder in near for name in (*PICTURE_FOLDERS, *SPLITS, "train2017", "val2017")
    ]
    for folder in [*near, *children]:
        places = (place_below(folder, name) for name in names[:20])
        if any(place is not None and place.is_file() for place in places):
            return folder
    raise InputError(
        "the pictures of an index must be found by relative names",
        "none near it",
        "name their folder with --pictures",
    )
