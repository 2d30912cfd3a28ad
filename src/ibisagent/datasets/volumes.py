"""Volumes as cases: every slice of a NIfTI pair, in the frame that `load_picture` gives it.

A volume is decoded once and kept while its slices pass (`load_picture` streams it for each). Left
out: DICOM series, which a converter turns into NIfTI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ibisagent.datasets.cases import Axis, Case, ReadOptions, Target, case_key, hashed
from ibisagent.errors import InputError
from ibisagent.images.intensity import SAMPLE, Decoded, Window, to_picture
from ibisagent.images.picture_files import quiet
from ibisagent.types import Mask, Picture

SLICE_AXES: tuple[Axis, ...] = ("sagittal", "coronal", "axial")  # perpendicular to canonical x, y, z
_IN_PLANE = {0: (2, 1), 1: (2, 0), 2: (1, 0)}  # canonical axes along rows and along columns


@dataclass(frozen=True)
class Volume:
    """One volume on canonical axes: to the right, to the front, to the head."""

    values: NDArray[Any]  # x, y, z
    spacing: tuple[float, float, float]  # mm
    known: bool  # whether the header states the orientation
    sample: NDArray[Any]  # even subsample of the stored values, for one window per volume

    def plane(self, axis: Axis, index: int) -> NDArray[Any]:
        """A slice HxW in the picture frame (radiological convention)."""
        number = SLICE_AXES.index(axis)
        taken = self.values.take(index, axis=number)  # the two other axes in order
        rows, columns = _IN_PLANE[number]
        return (taken.T if rows > columns else taken)[::-1, ::-1]


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
        volume = read_volume(self.path, self.channel)
        rows, columns = _IN_PLANE[SLICE_AXES.index(self.axis)]
        decoded = Decoded(
            volume.plane(self.axis, self.index),
            laterality="known" if volume.known else "assumed",
            spacing=(volume.spacing[rows], volume.spacing[columns]),
            modality=self.modality,
            sample=volume.sample,
            sample_name="volume",
        )
        return to_picture(decoded, self.window)


@dataclass(frozen=True)
class VolumeMask:
    """The pixels of one slice of a label volume that have one of `values`."""

    path: Path
    axis: Axis
    index: int
    values: tuple[int, ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        return np.isin(np.rint(read_volume(self.path).plane(self.axis, self.index)), self.values)


@lru_cache(maxsize=3)
def read_volume(path: Path, channel: int = 0) -> Volume:
    """A NIfTI volume; of several in one file, the one numbered `channel`. Raises InputError."""
    try:
        with quiet():
            image, orientation, known = open_volume(path)
            header = image.header
            data = np.asanyarray(image.dataobj)
            slope, intercept = header.get_slope_inter()
            if slope is not None and (slope, intercept) != (1.0, 0.0):
                data = data.astype(np.float32)
            while data.ndim > 3:
                data = data[..., min(channel, data.shape[-1] - 1)]
            data = data.reshape(data.shape + (1,) * (3 - data.ndim))
            zooms = [float(zoom) for zoom in header.get_zooms()[:3]] + [1.0] * 3
    except (OSError, ValueError, EOFError, TypeError, nib.filebasedimages.ImageFileError) as error:
        raise InputError("a volume is a whole NIfTI file", type(error).__name__, "export it again") from None
    step = max(1, -(-data.size // SAMPLE))
    stored = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    return Volume(
        values=nib.apply_orientation(data, orientation),
        spacing=(zooms[stored[0]], zooms[stored[1]], zooms[stored[2]]),
        known=known,
        sample=data.reshape(-1, order="F")[::step],
    )


def open_volume(path: Path) -> tuple[Any, NDArray[np.float64], bool]:
    """The image, how its axes lie in the patient, and whether its header states that."""
    image: Any = nib.load(path)
    known = bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0)
    return image, nib.io_orientation(image.affine if known else np.eye(4)), known


def slice_count(path: Path, axis: Axis) -> int:
    """How many slices a volume has along an anatomical axis; only its header is read."""
    try:
        with quiet():
            image, orientation, _ = open_volume(path)
            shape = (*image.shape, 1, 1, 1)
            return int(shape[int(np.flatnonzero(orientation[:, 0] == SLICE_AXES.index(axis))[0])])
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError("a volume is a whole NIfTI file", type(error).__name__, "export it again") from None


def volume_cases(
    picture: Path,
    labels: Path | None,
    names: Mapping[str, tuple[int, ...]],
    options: ReadOptions,
    *,
    dataset: str,
    split: str,
    where: str,
    modality: str | None = None,
) -> Iterator[Case]:
    """A case per slice; `names` gives the label values of each target. No voxel is read."""
    channel = options.channel
    for index in range(0, slice_count(picture, options.axis), options.every):
        targets: tuple[Target, ...] = ()
        if labels is not None:
            targets = tuple(
                Target(name, VolumeMask(labels, options.axis, index, values))
                for name, values in names.items()
            )
        yield Case(
            key=f"{case_key(dataset, split, where)}-{options.axis}-{index:04d}",
            where=f"{where}, {options.axis} slice {index}",
            picture=VolumePicture(picture, options.axis, index, options.window, channel, modality),
            targets=targets,
            dataset=dataset,
            split=split,
            patient=hashed(dataset, where),
            modality=modality,
        )
