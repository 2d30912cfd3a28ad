"""Reads the npz files of the CVPR-25 foundation-model challenge: imgs, gts, spacing, text_prompts.

`imgs` is DxHxW (a volume, slices along D) or HxWx3 or HxW; `gts` has its labels, `text_prompts` a
text or several for each label value. Slices are taken as they are stored: these files do not say
which side is which. Object arrays go through the restricted unpickler.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibisagent.datasets.cases import Case, DataSet, Fault, ReadOptions, Target, case_key, hashed, is_target
from ibisagent.errors import InputError
from ibisagent.images.intensity import Decoded, Window, to_picture
from ibisagent.safe_pickle import read_npz as read_arrays
from ibisagent.types import Mask, Picture


@dataclass(frozen=True)
class NpzPicture:
    """One slice of `imgs`."""

    path: Path
    index: int
    window: Window | None
    modality: str | None

    def read(self) -> Picture:
        arrays = _arrays(self.path)
        images, spacing = arrays["imgs"], arrays.get("spacing")
        values = images[self.index] if _is_volume(images) else images
        in_plane = None
        if spacing is not None and spacing.shape == (3,) and np.all(spacing > 0):
            # x, y, z: MedSAM's scripts write what SimpleITK's GetSpacing gives, and arrays as z, y, x
            in_plane = (float(spacing[1]), float(spacing[0]))
        decoded = Decoded(values, spacing=in_plane, modality=self.modality)
        return to_picture(decoded, self.window)


@dataclass(frozen=True)
class NpzMask:
    """The pixels of one label in a slice of `gts`."""

    path: Path
    index: int
    value: int

    def read(self, shape: tuple[int, int]) -> Mask:
        labels = _arrays(self.path)["gts"]
        return np.asarray((labels[self.index] if labels.ndim == 3 else labels) == self.value)


def read_npz(path: Path, options: ReadOptions) -> DataSet:
    """The slices of one npz file, or of all in a folder. Raises InputError where none is one."""
    if options.split not in (None, "train"):  # such files say nothing of splits
        return DataSet("npz", (), options)
    files = [path] if path.is_file() else sorted(path.rglob("*.npz"))
    root = path.parent if path.is_file() else path
    cases: list[Case] = []
    faults: list[Fault] = []
    for file in files:
        where = str(file.relative_to(root))
        try:
            cases += _cases(file, where, root.name, options)
        except InputError as error:
            if len(files) == 1:
                raise
            faults.append(Fault("unreadable", where, str(error), "left out"))
    if not cases and faults:
        raise InputError(
            "a folder of npz files has readable ones", f"{len(faults)} that are not", "see `check`"
        )
    return DataSet("npz", tuple(cases), options, tuple(faults))


def _cases(file: Path, where: str, dataset: str, options: ReadOptions) -> list[Case]:
    arrays = _arrays(file)
    images, labels = arrays["imgs"], arrays["gts"]
    sentences = _sentences(arrays.get("text_prompts"))
    modality = file.name.split("_")[0] if "_" in file.name else None
    values = [int(value) for value in np.unique(labels) if value != 0]
    names = {value: options.labels.get(str(value)) for value in values}
    count = len(images) if _is_volume(images) else 1
    cases = []
    for index in range(0, count, options.every):
        targets = []
        for value in values:
            sentence = sentences.get(value)
            name = names[value] or sentence or options.target
            if name is None:
                raise InputError(
                    "something must say what a label shows", f"label {value}", f"add --labels {value}=NAME"
                )
            if is_target(name):
                targets.append(Target(name, NpzMask(file, index, value)))
        cases.append(
            Case(
                key=f"{case_key(dataset, 'train', where)}-{index:04d}",
                where=f"{where}, slice {index}",
                picture=NpzPicture(file, index, options.window, modality),
                targets=tuple(targets),
                dataset=dataset,
                split="train",
                patient=hashed(dataset, where),
                modality=modality,
            )
        )
    return cases


def _sentences(prompts: NDArray[Any] | None) -> dict[int, str]:
    """The first text of each label value."""
    found = prompts.item() if prompts is not None and prompts.size == 1 else {}
    texts: dict[int, str] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        text = value[0] if isinstance(value, list | tuple) and value else value
        if str(key).isdigit() and isinstance(text, str):
            texts[int(key)] = text.strip()
    return texts


def _is_volume(images: NDArray[Any]) -> bool:
    return images.ndim == 3 and images.shape[2] != 3


@lru_cache(maxsize=2)
def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_arrays(path)
    if not {"imgs", "gts"} <= set(arrays):
        raise InputError("such an npz holds imgs and gts", ", ".join(sorted(arrays)) or "nothing", "check it")
    images, labels = arrays["imgs"], arrays["gts"]
    shape = images.shape if _is_volume(images) else images.shape[:2]
    if images.ndim not in (2, 3) or labels.shape != shape:
        raise InputError("gts has the shape of imgs", f"{labels.shape} for {images.shape}", "export it again")
    return arrays
