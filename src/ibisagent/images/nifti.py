"""Slices of NIfTI volumes, in radiological convention.

`read_nifti` reads one slice as a stream: the volume passes by plane by plane and is never whole in
memory, compressed or not; the slice and an even sample of all values, for one window per volume,
are kept. `read_volume` keeps a whole volume for all of its slices. Left out: Analyze and .hdr/.img
pairs, complex numbers.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ibisagent.errors import InputError
from ibisagent.images.intensity import SAMPLE, Decoded
from ibisagent.images.nifti_header import Layout, mask_layout, read_layout
from ibisagent.images.picture_files import PictureFile, check_sides, quiet

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, Axis, Axis] = ("sagittal", "coronal", "axial")  # perpendicular to the canonical x, y, z
_CHUNK = 8 * 1024**2  # bytes read at a time
_DAMAGE = (EOFError, OSError, zlib.error, HeaderDataError, ValueError, KeyError, OverflowError)


def read_nifti(
    file: PictureFile, axis: str | None, index: int | None, picture: Layout | None = None
) -> Decoded:
    """Decode one slice of the first volume, of a mask where the layout of its `picture` is given.

    `index` counts canonically from 0: axial from the feet up, coronal from back to front,
    sagittal from left to right. Without an axis it is axial (or the one plane that there is),
    without an index the middle; both are recorded as assumptions. Values are HxW in the file's
    scaled unit, or HxWx3 uint8. Raises InputError.
    """
    with _opened(file) as stream:
        layout = _layout(stream, file)
        if picture is not None:
            layout = mask_layout(layout, picture)
        notes = [*file.assumptions, *layout.notes]
        if layout.volumes > 1:
            notes.append(f"The file holds {layout.volumes} volumes: the first is read.")
        plane, number = _choose(layout, axis, index, file, notes)
        rows, columns = _in_plane(plane)
        shape = layout.canonical_shape
        check_sides(shape[columns], shape[rows], file.given)
        values, sample = _scan(stream, layout, *_stored(layout, plane, number))
        _finish(stream)
    return _decoded(values, sample, layout, plane, number, tuple(notes))


@dataclass(frozen=True)
class Volume:
    """A volume as it is stored, and how that lies in the patient."""

    stored: NDArray[Any]  # i, j, k of the file, unscaled
    layout: Layout
    sample: NDArray[Any]  # an even sample of `stored`

    def slice(self, axis: str, index: int) -> Decoded:
        """A slice as `read_nifti` decodes it; `axis` is one of AXES."""
        plane = AXES.index(axis)
        stored_axis, number = _stored(self.layout, plane, index)
        values = self.stored.take(number, axis=stored_axis)
        return _decoded(values, self.sample, self.layout, plane, index, self.layout.notes)


def read_volume(file: PictureFile, number: int = 0) -> Volume:
    """A whole volume; of several in one file the one with this number, or the last. Raises InputError."""
    with _opened(file) as stream:
        layout = _layout(stream, file)
        for _ in range(min(number, layout.volumes - 1)):
            for _ in _chunks(stream, layout):
                pass
        parts = [chunk for _, chunk in _chunks(stream, layout)]
        _finish(stream)
    stored = parts[0] if len(parts) == 1 else np.asfortranarray(np.concatenate(parts, axis=2))
    step = max(1, -(-stored.size // SAMPLE))
    return Volume(stored, layout, stored.reshape(-1, order="F")[::step])


def read_slice(file: PictureFile, axis: int, number: int) -> NDArray[Any]:
    """A slice of the first volume along a stored axis, as it is stored but scaled. Raises InputError."""
    with _opened(file) as stream:
        layout = _layout(stream, file)
        values, _ = _scan(stream, layout, axis, number)
    return _scaled(values, layout)


def layout_of(file: PictureFile) -> Layout:
    """What the header of a volume says; no voxel is read. Raises InputError."""
    with _opened(file) as stream:
        return _layout(stream, file)


@contextmanager
def _opened(file: PictureFile) -> Iterator[BinaryIO]:
    """The unpacked bytes; whatever is wrong with them becomes one InputError."""
    with quiet():
        try:
            with gzip.open(file.path, "rb") if file.format == "gzip" else file.path.open("rb") as stream:
                yield cast(BinaryIO, stream)
        except InputError:
            raise
        except _DAMAGE as error:
            raise file.damaged(f"it cannot be decoded ({type(error).__name__})") from None


def _layout(stream: BinaryIO, file: PictureFile) -> Layout:
    """The header; the stream then stands at the first voxel."""
    head = stream.read(540)
    layout = read_layout(head, file)
    _skip(stream, layout.offset - len(head))
    return layout


def _stored(layout: Layout, plane: int, number: int) -> tuple[int, int]:
    """The stored axis of a canonical plane, and the number of its slice along that."""
    if layout.flipped[plane]:
        number = layout.canonical_shape[plane] - 1 - number
    return layout.stored_axis[plane], number


def _decoded(
    values: NDArray[Any],
    sample: NDArray[Any],
    layout: Layout,
    plane: int,
    index: int,
    notes: tuple[str, ...],
) -> Decoded:
    """A stored slice, its two axes in their order, in the picture frame and the file's unit."""
    rows, columns = _in_plane(plane)
    values = radiological(values, layout, plane)
    coloured = layout.dtype.names is not None
    return Decoded(
        _rgb(values) if coloured else _scaled(values, layout),
        laterality="known" if layout.known else "assumed",
        spacing=layout.spacing and (layout.spacing[rows], layout.spacing[columns]),
        assumptions=notes,
        source=f"{AXES[plane]} slice {index} of 0 to {layout.canonical_shape[plane] - 1}",
        sample=None if coloured else _scaled(sample, layout),
        sample_name="volume",
    )


# --- which slice ------------------------------------------------------------------------------


def _choose(
    layout: Layout, axis: str | None, index: int | None, file: PictureFile, notes: list[str]
) -> tuple[int, int]:
    """The canonical axis that the slice is perpendicular to, and its number along it."""
    shape = layout.canonical_shape
    if axis is None:
        flat = [plane for plane in range(3) if shape[plane] == 1]
        plane = flat[0] if len(flat) == 1 else 2
        if len(flat) != 1:
            notes.append("No axis was named: the slice is axial.")
    elif axis in AXES:
        plane = AXES.index(axis)
    else:
        raise InputError(
            f"An axis is one of {', '.join(reversed(AXES))}", repr(axis[:20]), "write --axis axial"
        )
    count = shape[plane]
    if index is None:
        if count > 1:
            notes.append(f"No slice was named: {AXES[plane]} slice {count // 2} of {count} is read.")
        return plane, count // 2
    if not 0 <= index < count:
        raise InputError(
            "A slice index lies within the volume",
            f"{file.given}: {AXES[plane]} slice {index} of {count}",
            f"name one from 0 to {count - 1}",
        )
    return plane, index


def _in_plane(plane: int) -> tuple[int, int]:
    """The canonical axes that run along the rows' order and along the columns' order."""
    return {0: (2, 1), 1: (2, 0), 2: (1, 0)}[plane]


def radiological(values: NDArray[Any], layout: Layout, plane: int) -> NDArray[Any]:
    """The stored slice to the picture frame.

    Canonical axes run to the right, to the front and to the head, so image left (right or front)
    and image top (front or head) are where they end: both are reversed.
    """
    rows, columns = _in_plane(plane)
    if layout.stored_axis[rows] > layout.stored_axis[columns]:
        values = values.T
    down = slice(None) if layout.flipped[rows] else slice(None, None, -1)
    right = slice(None) if layout.flipped[columns] else slice(None, None, -1)
    return values[down, right]


# --- voxels -----------------------------------------------------------------------------------


def _scan(stream: BinaryIO, layout: Layout, axis: int, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The stored slice, its two stored axes in their order, and an even sample of the volume."""
    step = max(1, -(-int(np.prod(layout.shape, dtype=object)) // SAMPLE))
    kept: list[NDArray[Any]] = []
    sample: list[NDArray[Any]] = []
    passed = 0
    for first, chunk in _chunks(stream, layout):
        sample.append(chunk.reshape(-1, order="F")[-passed % step :: step].copy())
        passed += chunk.size
        if axis < 2:
            kept.append(chunk.take(number, axis=axis))
        elif first <= number < first + chunk.shape[2]:
            kept.append(chunk[:, :, number - first : number - first + 1].copy())
    values = kept[0][:, :, 0] if axis == 2 else np.concatenate(kept, axis=1)
    return values, np.concatenate(sample)


def _chunks(stream: BinaryIO, layout: Layout) -> Iterator[tuple[int, NDArray[Any]]]:
    """Runs of planes along the last stored axis, with the number of the first of them."""
    width, height, depth = layout.shape
    plane_bytes = width * height * layout.dtype.itemsize
    step = max(1, _CHUNK // plane_bytes)
    for first in range(0, depth, step):
        planes = min(step, depth - first)
        data = stream.read(planes * plane_bytes)
        if len(data) < planes * plane_bytes:
            raise EOFError
        yield first, np.frombuffer(data, layout.dtype).reshape((width, height, planes), order="F")


def _skip(stream: BinaryIO, count: int) -> None:
    """Read past the rest of the header. The first 540 bytes may hold voxels already."""
    if count < 0:
        stream.seek(count, 1)
    elif len(stream.read(count)) < count:
        raise EOFError


def _finish(stream: BinaryIO) -> None:
    """Read on a little: at the end of the stream gzip compares its checksum."""
    stream.read(2**16)


def _scaled(values: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Slope and intercept; numbers beyond float32 become infinite and count as not a number."""
    if (layout.slope, layout.intercept) == (1.0, 0.0):
        return values
    with np.errstate(over="ignore"):
        return (values * np.float64(layout.slope) + layout.intercept).astype(np.float32)


def _rgb(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.stack([values[channel] for channel in ("R", "G", "B")], axis=-1)
