"""Volumes as cases: every slice of a NIfTI pair, in the frame that `load_picture` gives it.

A label volume must have the size, orientation and spacing of its picture (`mask_layout`). A volume
is decoded once and kept while its slices pass (`load_picture` streams it for each). Left out: DICOM
series, which a converter turns into NIfTI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ibisagent.datasets.cases import Case, Fault, ReadOptions, Target, case_key, hashed
from ibisagent.errors import InputError
from ibisagent.images.intensity import Window, to_picture
from ibisagent.images.nifti import AXES, Axis, Volume, layout_of, read_volume
from ibisagent.images.nifti_header import Layout, mask_layout
from ibisagent.images.picture_files import open_picture
from ibisagent.types import Mask, Picture

LabelFile = tuple[Path, tuple[int, ...] | None]  # a label volume and the values that count; None: all but 0


@dataclass(frozen=True)
class VolumePicture:
    """One slice of a volume."""

    path: Path
    axis: Axis
    index: int
    window: Window | None = None
    channel: int = 0
    modality: str | None = None

    def read(self) -> Picture:
        decoded = _picture_volume(self.path, self.channel).slice(self.axis, self.index)
        return to_picture(replace(decoded, modality=self.modality), self.window)


@dataclass(frozen=True)
class VolumeMask:
    """The pixels of one slice of a label volume that have one of `values`; None: any but 0."""

    path: Path
    picture: Path  # the volume whose grid it must have
    axis: Axis
    index: int
    values: tuple[int, ...] | None

    def read(self, shape: tuple[int, int]) -> Mask:
        found = np.rint(_label_volume(self.path, self.picture).slice(self.axis, self.index).values)
        if self.values is None:
            return np.asarray(found != 0 if found.ndim == 2 else (found != 0).any(axis=2))
        return np.isin(found, self.values)


@lru_cache(maxsize=2)
def _picture_volume(path: Path, channel: int) -> Volume:
    return read_volume(open_picture(path, "volume"), channel)


@lru_cache(maxsize=16)  # more mask files of one volume than that are decoded again for each slice
def _label_volume(path: Path, picture: Path) -> Volume:
    volume = read_volume(open_picture(path, "label volume"))
    return replace(volume, layout=mask_layout(volume.layout, layout_of(open_picture(picture, "volume"))))


def volume_cases(
    picture: Path,
    targets: Sequence[tuple[str, LabelFile]],
    options: ReadOptions,
    *,
    dataset: str,
    split: str,
    where: str,
    modality: str | None = None,
    patient: str | None = None,
) -> Iterator[Case | Fault]:
    """A case per slice; `targets` says where each one is marked. Only headers are read.

    Without a patient the volume is one. A target with a label volume that does not fit the picture is
    left out, with a fault.
    """
    axis = options.axis
    try:
        layout = layout_of(open_picture(picture, "volume"))
    except InputError as error:
        yield Fault("unreadable", where, str(error), "left out")
        return
    faults = {path: _label_fault(path, layout, where) for path in dict.fromkeys(p for _, (p, _) in targets)}
    yield from (fault for fault in faults.values() if fault is not None)
    refused = {path for path, fault in faults.items() if fault is not None and fault.done == "left out"}
    lost = {name for name, (path, _) in targets if path in refused}
    for index in range(0, layout.canonical_shape[AXES.index(axis)], options.every):
        yield Case(
            key=f"{case_key(dataset, split, where)}-{axis}-{index:04d}",
            where=f"{where}, {axis} slice {index}",
            picture=VolumePicture(picture, axis, index, options.window, options.channel, modality),
            targets=tuple(
                Target(name, VolumeMask(path, picture, axis, index, values))
                for name, (path, values) in targets
                if name not in lost
            ),
            dataset=dataset,
            split=split,
            patient=patient or hashed(dataset, where),
            modality=modality,
        )


def _label_fault(path: Path, picture: Layout, where: str) -> Fault | None:
    """What is wrong with a label volume of a picture, as its header says."""
    where = f"{where}, {path.parent.name}/{path.name}"
    try:
        label = layout_of(open_picture(path, "label volume"))
    except InputError as error:
        return Fault("unreadable", where, str(error), "left out")
    try:
        read = mask_layout(label, picture)
    except InputError as error:
        return Fault("size mismatch", where, str(error), "left out")
    if read is label or not picture.known:
        return None
    return Fault("assumed orientation", where, read.notes[0], "read as lying like its picture")
