"""Reading pictures and masks: the only way from a file, image or array into a Picture.

Frame. Pixels are the stored ones after EXIF transpose and MONOCHROME1 inversion; slices of a
volume are in radiological convention. Whatever had to be assumed is a sentence in
`Picture.assumptions`. Left out on purpose: spacing is recorded, not applied (the renderer does
that), and nothing is resized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ibisagent.errors import InputError
from ibisagent.intensity import Decoded, Window, checked_window, parse_window, to_picture
from ibisagent.picture_files import check_sides, open_picture
from ibisagent.raster import decode_image, read_raster
from ibisagent.types import Mask, Picture

__all__ = ["load_mask", "load_picture", "parse_window"]


def load_picture(
    source: str | Path | Image.Image | NDArray[Any],
    *,
    window: str | Window | None = None,
    frame: int | None = None,
    axis: str | None = None,
    index: int | None = None,
) -> Picture:
    """Read one picture from a file, a Pillow image or an array. Raises InputError."""
    bounds = parse_window(window) if isinstance(window, str) else window and checked_window(window)
    return to_picture(_decode(source, frame, axis, index), bounds)


def load_mask(path: str | Path, shape: tuple[int, int]) -> Mask:
    """Read a mask; what is not zero is foreground. Raises InputError."""
    decoded = _decode(path, None, None, None)
    values = decoded.values.any(axis=2) if decoded.values.ndim == 3 else decoded.values != 0
    if values.shape != tuple(shape):
        raise InputError(
            "A mask has the height and width of its picture",
            f"{values.shape[0]} x {values.shape[1]} for a picture of {shape[0]} x {shape[1]}",
            "resample the mask to the picture's own grid",
        )
    return values


def _decode(source: Any, frame: int | None, axis: str | None, index: int | None) -> Decoded:
    if isinstance(source, Image.Image):
        return decode_image(source, "the picture given")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    file = open_picture(source)
    return read_raster(file, frame)


def _from_array(array: NDArray[Any]) -> Decoded:
    height, width = array.shape[:2]
    check_sides(width, height, "the array given")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3:
        return Decoded(np.ascontiguousarray(array[..., :3]))
    return Decoded(array)
