"""Reads LISA's ReasonSeg folders: NAME.jpg beside NAME.json with `text` and `shapes`.

Shapes are drawn from the largest to the smallest, outline included; those labelled as ignored are
cut out, "flag" is no shape. Each text is an instruction of its own for the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ibisagent.datasets.cases import Case, DataSet, Fault, PictureFile, ReadOptions, Target, case_key
from ibisagent.datasets.coco import read_json
from ibisagent.datasets.folders import SPLITS
from ibisagent.datasets.mask_sources import fill_outline
from ibisagent.errors import InputError
from ibisagent.types import Mask

_PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ShapeMask:
    """Shapes in the order in which they are drawn; `drawn` False cuts out."""

    shapes: tuple[tuple[tuple[tuple[float, float], ...], bool], ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        canvas = np.zeros(shape, np.uint8)
        for points, drawn in self.shapes:
            fill_outline(points, canvas, int(drawn))
        return canvas.astype(bool)


def is_lisa(root: Path) -> bool:
    """Whether a folder (or its train, val, test) has annotated pictures of this kind."""
    for _, folder in _folders(root):
        for path in sorted(folder.glob("*.json"))[:3]:
            if _picture(path) is not None and "shapes" in _object(path):
                return True
    return False


def read_lisa(root: Path, options: ReadOptions) -> DataSet:
    """The pictures of a folder with one case per instruction. Raises InputError where there is none."""
    cases: list[Case] = []
    faults: list[Fault] = []
    for split, folder in _folders(root):
        if options.split not in (None, split):
            continue
        for path in sorted(folder.glob("*.json")):
            where = str(path.relative_to(root))
            picture = _picture(path)
            if picture is None:
                faults.append(Fault("missing picture", where, "no picture beside it", "left out"))
                continue
            try:
                data = _object(path)
            except InputError as error:
                faults.append(Fault("unreadable", where, str(error), "left out"))
                continue
            texts = data.get("text") or []
            texts = [texts] if isinstance(texts, str) else texts
            mask = ShapeMask(_shapes(data.get("shapes") or []))
            if not mask.shapes or not texts:
                faults.append(Fault("missing mask", where, "no shapes or no text", "left out"))
            for number, text in enumerate(texts if mask.shapes else ()):
                cases.append(
                    Case(
                        key=f"{case_key(root.name, split, where)}-{number}",
                        where=where,
                        picture=PictureFile(picture),
                        targets=(Target(None, mask, str(text).strip()),),
                        dataset=root.name,
                        split=split,
                    )
                )
    if not cases and options.split is None:
        raise InputError("ReasonSeg has pictures with JSON files beside them", "none", "name another format")
    return DataSet("lisa", tuple(cases), options, tuple(faults))


def _folders(root: Path) -> list[tuple[str, Path]]:
    below = [child for child in sorted(root.iterdir()) if child.is_dir() and child.name.lower() in SPLITS]
    return [(SPLITS[child.name.lower()], child) for child in below] or [("train", root)]


def _picture(index: Path) -> Path | None:
    return next((index.with_suffix(end) for end in _PICTURES if index.with_suffix(end).is_file()), None)


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    return data if isinstance(data, dict) else {}


def _shapes(shapes: Sequence[Any]) -> tuple[tuple[tuple[tuple[float, float], ...], bool], ...]:
    found = []
    for shape in shapes:
        label, points = str(shape.get("label", "")).lower(), shape.get("points") or []
        if label != "flag" and len(points) >= 3:
            outline = tuple((float(x), float(y)) for x, y in points)
            area = cv2.contourArea(np.array(points, np.float32))
            found.append((area, outline, "ignor" not in label))
    return tuple((outline, drawn) for _, outline, drawn in sorted(found, key=lambda one: -one[0]))
