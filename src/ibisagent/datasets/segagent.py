"""Reads SegAgent's annotations: {"data": [{image_name, height, width, gt_ann: {caption, segmentation}}]}."""

from __future__ import annotations

from pathlib import Path

from ibisagent.datasets.cases import (
    Case,
    DataSet,
    Fault,
    PictureFile,
    ReadOptions,
    Target,
    case_key,
    led_out,
    place_below,
)
from ibisagent.datasets.coco import picture_folder, read_json, segmentation_mask, split_of_name
from ibisagent.errors import InputError


def is_segagent(data: object) -> bool:
    """Whether JSON looks like it."""
    entries = data.get("data") if isinstance(data, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and "gt_ann" in first


def read_segagent(index: Path, options: ReadOptions) -> DataSet:
    """One case per entry; its caption is the target. Raises InputError where it is none."""
    data = read_json(index)
    if not is_segagent(data):
        raise InputError("SegAgent's file has data with gt_ann", "none", "check the file")
    split = split_of_name(index.stem)
    if options.split not in (None, split):
        return DataSet("segagent", (), options)
    root = picture_folder(index, [str(entry["image_name"]) for entry in data["data"]], options)
    cases: list[Case] = []
    faults: list[Fault] = []
    dataset = index.resolve().parent.name
    for number, entry in enumerate(data["data"]):
        where, annotation = f"entry {number}", entry.get("gt_ann") or {}
        name = str(entry["image_name"])
        path = place_below(root, name)
        mask = segmentation_mask(annotation.get("segmentation"))
        if path is None:
            faults.append(led_out(where, name))
        elif not path.is_file():
            faults.append(Fault("missing picture", where, name, "left out"))
        elif mask is None:
            faults.append(Fault("missing mask", where, "no segmentation", "left out"))
        else:
            caption = str(annotation.get("caption") or options.target or "").strip()
            target = Target(caption or None, mask)
            key = case_key(dataset, split, number, entry["image_name"])
            cases.append(Case(key, f"{name}, {where}", PictureFile(path), (target,), dataset, split))
    return DataSet("segagent", tuple(cases), options, tuple(faults))
