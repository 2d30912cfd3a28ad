"""One slice of a NIfTI volume, in radiological convention, read as a stream.

The volume passes by plane by plane and is never whole in memory, compressed or not; the slice
and an even sample of all values, for one window per volume, are kept. Left out: Analyze and
.hdr/.img pairs, time points beyond the first, complex numbers.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ibisagent.errors import InputError
from ibisagent.images.intensity import SAMPLE, Decoded
from ibisagent.images.nifti_header import Layout, read_layout
from ibisagent.images.picture_files import PictureFile, check_sides, quiet

AXES = ("sagittal", "coronal", "axial")  # perpendicular to the canonical x, y, z
_CHUNK = 8 * 1024**2  # bytes read at a time
_DAMAGE = (EOFError, OSError, zlib.error, HeaderDataError, ValueError, KeyError, OverflowError)


def read_nifti(file: PictureFile, axis: str | None, index: int | None) -> Decoded:
    """Decode one slice of the first volume.

    `index` counts canonically from 0: axial from the feet up, coronal from back to front,
    sagittal from left to right. Without an axis it is axial (or the one plane that there is),
    without an index the middle; both are recorded as assumptions. Values are HxW in the file's
    scaled unit, or HxWx3 uint8. Raises InputError.
    """
    with quiet():
        try:
            with _opened(file) as stream:
                return _read(cast(BinaryIO, stream), file, axis, index)
        except InputError:
            raise
        except _DAMAGE as error:
            raise file.damaged(f"it cannot be decoded ({type(error).__name__})") from None


def _opened(file: PictureFile) -> BinaryIO | gzip.GzipFile:
    return gzip.open(file.path, "rb") if file.format == "gzip" else file.path.open("rb")


def _read(stream: BinaryIO, file: PictureFile, axis: str | None, index: int | None) -> Decoded:
    head = stream.read(540)
    layout = read_layout(head, file)
    notes = [*file.assumptions, *layout.notes]
    plane, number = _choose(layout, axis, index, file, notes)
    rows, columns = _in_plane(plane)
    shape = layout.canonical_shape
    check_sides(shape[columns], shape[rows], file.given)
    _skip(stream, layout.offset - len(head))
    stored_axis, stored_number = layout.stored_axis[plane], number
    if layout.flipped[plane]:
        stored_number = shape[plane] - 1 - number
    values, sample = _scan(stream, layout, stored_axis, stored_number)
    _finish(stream)
    values = _radiological(values, layout, plane)
    picture = Decoded(
        values,
        laterality="known" if layout.known else "assumed",
        spacing=layout.spacing and (layout.spacing[rows], layout.spacing[columns]),
        assumptions=tuple(notes),
        sample=sample,
        sample_name="volume",
    )
    if layout.dtype.names:
        return replace(picture, values=_rgb(values), sample=None)
    return replace(picture, values=_scaled(values, layout), sample=_scaled(sample, layout))


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


def _radiological(values: NDArray[Any], layout: Layout, plane: int) -> NDArray[Any]:
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
