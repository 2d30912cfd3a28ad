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

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ibisagent.datasets.cases import Axis
from ibisagent.datasets.volumes import SLICE_AXES, Volume, VolumePicture, open_volume
from ibisagent.errors import InputError
from ibisagent.images.intensity import Window
from ibisagent.images.picture_files import quiet
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
        image, self._orientation, _ = _opened(path)
        shape = tuple(image.shape)
        if shape != which.size or len(shape) != 3 or not 0 <= which.index < shape[which.direction]:
            raise InputError(
                "a recorded slice lies in its volume",
                f"slice {which.index} of {_DIRECTIONS[which.direction]} and size {which.size} for {shape}",
                "name the folder of the right volumes",
            )
        canonical, flip = self._orientation[which.direction]
        self._axis: Axis = SLICE_AXES[int(canonical)]
        count = shape[which.direction]
        self._index = count - 1 - which.index if flip < 0 else which.index
        rest = [side for axis, side in enumerate(shape) if axis != which.direction]
        self.drawn_shape = (rest[1], rest[0])  # of the reference's masks

    def picture(self) -> Picture:
        return VolumePicture(self._path, self._axis, self._index, self._which.window).read()

    def truth(self, labels: Path) -> Mask:
        """The recorded value's pixels in the same stored slice of a label volume. Raises InputError."""
        image = _opened(labels)[0]
        if tuple(image.shape) != self._which.size:
            raise InputError(
                "labels have the size of their volume", tuple(image.shape), "find the right file"
            )
        place: list[Any] = [slice(None)] * 3
        place[self._which.direction] = self._which.index
        try:
            stored = np.asanyarray(image.dataobj[tuple(place)])
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                "a volume is a whole NIfTI file", type(error).__name__, "export it again"
            ) from None
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
        flat = np.expand_dims(stored, self._which.direction)
        canonical = nib.apply_orientation(flat, self._orientation)
        return np.ascontiguousarray(Volume(canonical, (1.0, 1.0, 1.0), True, canonical).plane(self._axis, 0))


def _opened(path: Path) -> tuple[Any, NDArray[np.float64], bool]:
    try:
        with quiet():
            return open_volume(path)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError("a volume is a whole NIfTI file", type(error).__name__, "export it again") from None
