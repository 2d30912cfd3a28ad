"""Reading pictures and masks: the only way from a file, image or array into a Picture.

Frame. Pixels are the stored ones after EXIF transpose and MONOCHROME1 inversion; slices of a
volume are in radiological convention. Whatever had to be assumed is a sentence in
`Picture.assumptions`, and every refusal is one InputError that names rule, value and fix but
neither file names nor anything about the patient. Left out on purpose: spacing is recorded, not
applied (the renderer does that), and nothing is resized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ibisagent.errors import InputError
from ibisagent.images.dicom import read_dicom
from ibisagent.images.intensity import Decoded, Window, check_window, checked_window, parse_window, to_picture
from ibisagent.images.nifti import layout_of, read_nifti
from ibisagent.images.nifti_header import Layout
from ibisagent.images.picture_files import open_picture
from ibisagent.images.raster import decode_array, decode_image, read_raster
from ibisagent.types import Mask, Picture

__all__ = ["Source", "load_mask", "load_picture", "parse_window"]

Source: TypeAlias = str | Path | Image.Image | NDArray[Any]


def load_picture(
    source: Source,
    *,
    window: str | Window | None = None,
    frame: int | None = None,
    axis: str | None = None,
    index: int | None = None,
) -> Picture:
    """Read one picture.

    source: a file (PNG, JPEG, TIFF, BMP, DICOM, NIfTI, told apart by their first bytes), a Pillow
        image, or an array HxW, HxWx3 or HxWx4 (uint8, uint16, other integers, bool, float).
    window: (low, high) in the file's unit (Hounsfield units for CT) or the text "LO,HI". None and
        "auto": the first window that a DICOM file names; else eight bits and floats within [0, 1]
        as they are; else the 0.5 and 99.5 percentiles (of the whole volume for NIfTI).
    frame: of a multi-frame DICOM file or multi-page TIFF, from 0; by default the first.
    axis, index: for NIfTI, "axial", "coronal" or "sagittal" and the slice from 0, counted from
        the feet up, from back to front, from left to right; by default the middle axial one.

    Raises InputError for whatever cannot be read whole, or has a side above 8192 pixels.
    """
    bounds = parse_window(window) if isinstance(window, str) else window
    if bounds is not None:
        bounds = checked_window(bounds)
    decoded = _decode(source, "picture", frame, axis, index)
    picture = to_picture(decoded, bounds)
    check_window(decoded, bounds, picture)
    return picture


def load_mask(
    source: Source,
    shape: tuple[int, int],
    *,
    picture: Source | None = None,
    frame: int | None = None,
    axis: str | None = None,
    index: int | None = None,
) -> Mask:
    """Read a mask in the frame of its picture: bool, of `shape` (height, width).

    The formats are those of pictures but JPEG, whose losses leave values that are not quite zero.
    Whatever is not zero, in any channel, is foreground; windows, rescale and inversion are not
    applied. An empty mask is allowed: it says that nothing was found so far. frame, axis and index
    are those of the picture; they count where the mask, too, is a volume or has several frames.
    picture: where the picture comes from. A mask volume must have the size, orientation and spacing
    of a picture volume, or lies like it where only its orientation is missing.

    Raises InputError as `load_picture` does, where the size is not the picture's, and for a mask
    volume without orientation whose picture is no volume.
    """
    decoded = _decode(source, "mask", frame, axis, index, _volume_layout(picture))
    values = decoded.values
    if not np.isfinite(values).all():
        raise InputError("A mask holds numbers", "a mask with NaN or infinite values", "save it as integers")
    foreground = values != 0
    mask: Mask = foreground.any(axis=2) if values.ndim == 3 else foreground
    if mask.shape != tuple(shape):
        raise InputError(
            "A mask has the height and width of its picture",
            f"{mask.shape[0]} x {mask.shape[1]} for a picture of {shape[0]} x {shape[1]}",
            "resample the mask to the picture's own grid",
        )
    return np.ascontiguousarray(mask)


def _volume_layout(source: Source | None) -> Layout | None:
    """How a NIfTI volume lies; None for any other source."""
    if not isinstance(source, str | Path):
        return None
    file = open_picture(source, "picture")
    return layout_of(file) if file.format in ("NIfTI", "gzip") else None


def _decode(
    source: Source,
    noun: str,
    frame: int | None,
    axis: str | None,
    index: int | None,
    picture: Layout | None = None,
) -> Decoded:
    if isinstance(source, np.ndarray | Image.Image):
        if noun == "picture":
            _refuse({"frame": frame, "axis": axis, "index": index}, "an array or image", "pass the slice")
        elif isinstance(source, Image.Image) and source.mode == "P":
            return Decoded(np.asarray(source))  # the numbers, as from a file
        return decode_array(source) if isinstance(source, np.ndarray) else decode_image(source)
    if not isinstance(source, str | Path):
        raise InputError(
            f"A {noun} is a path, a Pillow image or an array", type(source).__name__, "pass one of these"
        )
    file = open_picture(source, noun)
    if file.format in ("NIfTI", "gzip"):
        if noun == "picture":
            _refuse({"frame": frame}, "a NIfTI volume", "use axis and index")
        elif picture is None and not layout_of(file).known:
            raise file.fail(
                "A mask volume states its orientation, or belongs to a picture volume of the same size",
                "no usable orientation in its header",
                "write it with the picture's affine, or save the slice as PNG",
            )
        elif picture is None and index is None and min(layout_of(file).shape) > 1:
            raise file.fail(
                "A mask volume belongs to a picture volume, or its slice is named",
                "neither",
                "pass the picture's file along, or name axis and index",
            )
        return read_nifti(file, axis, index, picture)
    if noun == "picture":
        _refuse({"axis": axis, "index": index}, f"a {file.format} file", "leave axis and index out")
    if file.format == "DICOM":
        return read_dicom(file, frame, stored=noun == "mask")
    if file.format == "JPEG" and noun == "mask":
        raise file.fail("A mask is stored without losses", "a JPEG file", "save it as PNG")
    return read_raster(file, frame, stored=noun == "mask")


def _refuse(options: dict[str, object], kind: str, fix: str) -> None:
    """Options that mean nothing for this kind of source are refused, not ignored."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            "frame is for pages and frames, axis and index are for NIfTI volumes",
            f"{' and '.join(given)} with {kind}",
            fix,
        )
