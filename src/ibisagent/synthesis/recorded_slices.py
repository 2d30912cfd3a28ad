"""The reference's trajectories on NIfTI slices, in our picture frame.

It draws a slice as the stored array's plane turned by a quarter against the clock, whatever the
header says of the patient. Masks and clicks are carried over to radiological convention with the
orientation of the volume itself; the label volume is taken voxel by voxel, as the reference does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibisagent.datasets.volumes import VolumePicture
from ibisagent.errors import InputError
from ibisagent.images.intensity import Window
from ibisagent.images.nifti import AXES, Axis, layout_of, radiological, read_slice
from ibisagent.images.picture_files import open_picture
from ibisagent.types import Mask, Picture

_DIRECTIONS = ("x", "y", "z")  # of the stored array


@dataclass(frozen=True)
class RecordedSlice:
    """Which slice an entry is about, as its `nii_data` says."""

    size: tuple[int, ...]  # of the stored volume
    direction: int  # stored axis that the slice is perpendicular to
    index: int  # along it
    label: int  # value of the target in the label volume
    window: Window | None  # None: the reference took percentiles of the slice; we take the volume's

    @staticmethod
    def of(record: Mapping[str, Any]) -> RecordedSlice:
        """Raises KeyError, TypeError or ValueError for a record that lacks something."""
        window = record["window"]
        return RecordedSlice(
            tuple(int(side) for side in record["size"]),
            _DIRECTIONS.index(str(record["slice_dir"]).lower()),
            int(record["slice_idx"]),
            int(record["mask_number"]),
            None if window is None else (float(window[0]), float(window[1])),
        )


class SliceFrame:
    """A slice of one volume: its picture, and the way from the reference's drawing to it."""

    def __init__(self, path: Path, which: RecordedSlice) -> None:
        """Raises InputError where the volume is not the one that was recorded."""
        self._path, self._which = path, which
        self._layout = layout_of(open_picture(path, "volume"))
        shape = self._layout.shape
        if shape != which.size or self._layout.volumes > 1 or not 0 <= which.index < shape[which.direction]:
            raise InputError(
                "a recorded slice lies in its volume",
                f"slice {which.index} of {_DIRECTIONS[which.direction]} and size {which.size} for {shape}",
                "name the folder of the right volumes",
            )
        self._plane = self._layout.stored_axis.index(which.direction)
        self._axis: Axis = AXES[self._plane]
        count = shape[which.direction]
        self._index = count - 1 - which.index if self._layout.flipped[self._plane] else which.index
        rest = [side for axis, side in enumerate(shape) if axis != which.direction]
        self.drawn_shape = (rest[1], rest[0])  # of the reference's masks

    def picture(self) -> Picture:
        return VolumePicture(self._path, self._axis, self._index, self._which.window).read()

    def truth(self, labels: Path) -> Mask:
        """The recorded value's pixels in the same stored slice of a label volume. Raises InputError."""
        file = open_picture(labels, "label volume")
        shape = layout_of(file).shape
        if shape != self._which.size:
            raise InputError("labels have the size of their volume", shape, "find the right file")
        stored = read_slice(file, self._which.direction, self._which.index)
        return self._turned(np.rint(stored) == self._which.label)

    def mask(self, drawn: Mask) -> Mask:
        """A mask in the reference's drawing, in ours."""
        return self._turned(np.rot90(drawn, -1))

    def pixel(self, x: int, y: int) -> tuple[int, int]:
        """A pixel (x, y) of the reference's drawing, in ours. Raises InputError outside of it."""
        if not (0 <= y < self.drawn_shape[0] and 0 <= x < self.drawn_shape[1]):
            raise InputError("clicks lie in the picture", f"({x}, {y})", "leave it out")
        marked = np.zeros(self.drawn_shape, bool)
        marked[y, x] = True
        [(row, column)] = np.argwhere(self.mask(marked))
        return int(column), int(row)

    def _turned(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A stored slice in the picture frame."""
        return np.ascontiguousarray(radiological(stored, self._layout, self._plane))
