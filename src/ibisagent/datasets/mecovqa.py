"""Reads MeCoVQA grounding lists (MedPLIB, Citrus-V): conversations that end in a mask of SA-Med2D-20M.

An entry names a picture, asks in words, and answers with `<mask>PATH</mask>`. The merged masks that
the lists name were never published with their script, so a missing one is the union of the
instance masks of the same picture and class. Entries without a mask (questions only) are left out.
"""

from __future__ import annotations

import re
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
from ibisagent.datasets.coco import picture_folder, read_json, split_of_name
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.errors import InputError

_MASK = re.compile(r"<mask>\s*(.*?)\s*</mask>", re.DOTALL)
_MARKERS = re.compile(r"<image>|<region>.*?</region>", re.DOTALL)


def is_mecovqa(data: object) -> bool:
    """Whether JSON looks like such a list."""
    first = data[0] if isinstance(data, list) and data else None
    return isinstance(first, dict) and {"image", "conversations"} <= set(first)


def read_mecovqa(index: Path, options: ReadOptions) -> DataSet:
    """The grounded questions of a list. Raises InputError where it is none, or no picture is found."""
    data = read_json(index)
    if not is_mecovqa(data):
        raise InputError("MeCoVQA is a list of conversations with pictures", type(data).__name__, "check it")
    split = split_of_name(index.stem)
    if options.split not in (None, split):
        return DataSet("mecovqa", (), options)
    root = picture_folder(index, [str(entry.get("image")) for entry in data], options)
    cases: list[Case] = []
    faults: list[Fault] = []
    for number, entry in enumerate(data):
        item = _case(entry, number, root, index.resolve().parent.name, split)
        if isinstance(item, Case):
            cases.append(item)
        elif item is not None:
            faults.append(item)
    return DataSet("mecovqa", tuple(cases), options, tuple(faults))


def sa_med2d_name(name: str) -> tuple[str, str, str]:
    """(modality, data set, case) of an SA-Med2D name such as ct_00--AMOS2022--amos_0001--x_0020.

    Missing parts are "".
    """
    parts = [*Path(name).name.split("--"), "", "", ""]
    return parts[0].split("_")[0].upper(), parts[1], parts[2]


def instance_masks(merged: Path, root: Path) -> tuple[Path, ...]:
    """The instance masks that a missing `masks_merged/STEM_merged.png` united: STEM_0000.png, ...

    They lie in the same folder or in `masks` beside it, below `root`. STEM ends in the class.
    """
    stem = re.sub(r"_merged$", "", merged.stem)
    pattern = re.compile(re.escape(stem) + r"_\d+$")
    for folder in (merged.parent, merged.parent.parent / "masks"):
        if folder.is_relative_to(root) and folder.is_dir():
            found = sorted(path for path in folder.glob("*.png") if pattern.match(path.stem))
            if found:
                return tuple(found)
    return ()


def _case(entry: Any, number: int, root: Path, dataset: str, split: str) -> Case | Fault | None:
    where = f"entry {number}"
    turns = entry.get("conversations") or []
    asked = next((str(turn.get("value")) for turn in turns if turn.get("from") == "human"), "")
    replies = " ".join(str(turn.get("value")) for turn in turns if turn.get("from") == "gpt")
    named = [str(path) for path in _MASK.findall(replies)] or [
        str(entry[key]) for key in ("mask", "mask_path") if isinstance(entry.get(key), str)
    ]
    if not named:
        return None
    image = str(entry["image"])
    picture = place_below(root, image)
    if picture is None:
        return led_out(where, image)
    if not picture.is_file():
        return Fault("missing picture", where, image, "left out")
    paths: list[Path] = []
    for name in named:
        path = place_below(root, name)
        if path is None:
            return led_out(where, name)
        found = (path,) if path.is_file() else instance_masks(path, root)
        if not found:
            return Fault("missing mask", where, f"{name}, nor its instances", "left out")
        paths += found
    instruction = " ".join(_MARKERS.sub(" ", asked).split())
    if not instruction:
        return Fault("index", where, "an empty question", "left out")
    modality, source, patient = sa_med2d_name(str(entry.get("id") or image))
    return Case(
        key=case_key(dataset, split, number, entry["image"], *named),
        where=f"{image}, {where}",
        picture=PictureFile(picture, modality or None),
        targets=(Target(None, MaskFiles(tuple(paths)), instruction),),
        dataset=dataset,
        split=split,
        patient=hashed(source, patient) if patient else None,
        modality=modality or None,
    )
