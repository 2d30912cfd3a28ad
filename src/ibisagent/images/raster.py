"""PNG, JPEG, TIFF and BMP through Pillow, and arrays: one page, whole or not at all."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ibisagent.errors import InputError
from ibisagent.images.complaints import is_damaged_jpeg, overhearing
from ibisagent.images.intensity import Decoded, bands
from ibisagent.images.picture_files import MAX_SIDE, PictureFile, check_sides, frame_number, quiet

_NUMBERS = {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}
_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
_OVER_BLACK = "Transparent parts are shown over black."
_WHITE_IS_ZERO = 0  # of the TIFF tag PhotometricInterpretation
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(AttributeError, RuntimeError, struct.error),
)


def read_raster(file: PictureFile, frame: int | None, *, stored: bool = False) -> Decoded:
    """Decode one page, numbered from 0. Raises InputError for what is too large or damaged.

    `stored` gives the numbers of a palette instead of its colours, for masks.
    """
    with quiet():
        try:
            if file.format == "PNG":
                _verify_png(file)
            with overhearing() as heard:
                decoded = _read(file, frame, stored)
            if heard or (file.format == "JPEG" and is_damaged_jpeg(file.path.read_bytes())):
                raise file.damaged("its decoder meets damage within the pixels")
            return decoded
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise file.fail(
                f"A picture may have at most {MAX_SIDE} pixels a side",
                "its header claims far more",
                "downscale it, or cut out the part that matters",
            ) from None
        except InputError:
            raise
        except _DAMAGE as error:
            raise file.damaged(f"it cannot be decoded ({type(error).__name__})") from None


def _read(file: PictureFile, frame: int | None, stored: bool) -> Decoded:
    notes = list(file.assumptions)
    # From a stream, for Pillow maps files that it opens itself, and misreads turned TIFFs then.
    with file.path.open("rb") as stream, Image.open(stream, formats=(file.format,)) as image:
        check_sides(*image.size, file.given)
        count = getattr(image, "n_frames", 1)
        number = frame_number(frame, count, "page", file, notes)
        if number:
            image.seek(number)
            check_sides(*image.size, file.given)
        notes.extend(_reduced(image))
        inverted = file.format == "TIFF" and _white_is_zero(image)
        decoded = _decode(image, file.given, stored)
    source = f"page {number} of 0 to {count - 1}" if count > 1 else ""
    return replace(decoded, assumptions=(*notes, *decoded.assumptions), inverted=inverted, source=source)


def decode_image(image: Image.Image) -> Decoded:
    """A Pillow image that the user holds; it is not changed. Raises InputError."""
    check_sides(*image.size, "the picture given")
    with quiet():
        try:
            return _decode(image, "the picture given")
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(
                "A picture must be whole",
                f"the picture given: it cannot be decoded ({type(error).__name__})",
                "load it again from its source",
            ) from None


def decode_array(array: NDArray[Any]) -> Decoded:
    """HxW of any real dtype, or HxWx3 / HxWx4 (uint8, uint16, float in [0, 1], bool).

    Raises InputError for another shape, dtype or range.
    """
    given = "the array given"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            "A picture array is height x width, or height x width x 3 or 4",
            f"shape {array.shape}",
            "pass one slice of a volume, as in array[k], and channels last",
        )
    if array.dtype.kind not in "buif":
        raise InputError(
            "A picture array holds real numbers", f"dtype {array.dtype}", "convert it to float32"
        )
    check_sides(array.shape[1], array.shape[0], given)
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.ndim == 2:
        return _numbers(np.array(array))
    return _colour_array(array)


def _colour_array(array: NDArray[Any]) -> Decoded:
    notes: list[str] = []
    if array.dtype == np.uint16:
        array = array >> 8
        notes.append("Colours of 16 bits are reduced to 8 by dropping the lowest 8.")
    finite = np.isfinite(array) if array.dtype.kind == "f" else np.True_
    low, high = array.min(where=finite, initial=0), array.max(where=finite, initial=0)
    top = 1 if array.dtype.kind == "f" else 255
    if low < 0 or high > top or not np.any(finite):
        raise InputError(
            "A colour array is uint8, uint16, bool, or float in [0, 1]",
            f"values from {low:g} to {high:g} ({array.dtype})",
            "scale it to [0, 1] or convert it to uint8",
        )
    if array.dtype.kind == "f":
        if unreal := int(array.size - np.count_nonzero(finite)):
            notes.append(f"{unreal} of {array.size} values are NaN or infinite and shown as 0.")
        array = np.rint(np.where(finite, array, 0) * 255)
    array = array.astype(np.uint8)
    if array.shape[2] == 3:
        return Decoded(np.ascontiguousarray(array), tuple(notes))
    values, opaque = _over_black(array)
    if not opaque:
        notes.append(_OVER_BLACK)
    return Decoded(values, tuple(notes), invisible=not array[..., 3].any())


def _decode(image: Image.Image, given: str, stored: bool = False) -> Decoded:
    """Pillow image to numbers: turned as EXIF says, alpha over black, colours as RGB."""
    notes = []
    turned = _orientation(image)
    image.load()
    if turned != 1:
        if image.format != "TIFF":  # which Pillow turns while loading it
            image = ImageOps.exif_transpose(image)
        notes.append(f"The picture is turned as its EXIF orientation ({turned}) says.")
    if image.mode in _NUMBERS:
        decoded = _numbers(_banded(image, image.mode))
        return replace(decoded, assumptions=(*notes, *decoded.assumptions))
    if stored and image.mode == "P":
        return Decoded(np.asarray(image), tuple(notes))
    if image.mode not in (*_GREY, *_COLOUR):
        raise InputError(
            "A picture is grey, RGB, CMYK or has a palette",
            f"{given}: colour mode {image.mode}",
            "save it as RGB",
        )
    if image.mode == "CMYK":
        notes.append("CMYK colours are converted to RGB without a colour profile.")
    if image.mode in _ALPHA or image.has_transparency_data:
        return _composited(image, notes)
    return Decoded(_banded(image, "L" if image.mode in _GREY else "RGB"), tuple(notes))


def _numbers(values: NDArray[Any]) -> Decoded:
    """Floats within [0, 1] are shown as they are; the rest is left to the window."""
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        low = values.min(where=finite, initial=np.inf)
        high = values.max(where=finite, initial=-np.inf)
        if 0 <= low <= high <= 1:
            note = "Values lie within [0, 1]: 0 is shown black and 1 white."
            return Decoded(values, (note,), unit=True)
    return Decoded(values)


def _verify_png(file: PictureFile) -> None:
    """Pillow compares the checksums of a PNG's pixel data only when it is asked to."""
    with Image.open(file.path, formats=("PNG",)) as image:
        check_sides(*image.size, file.given)
        image.verify()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if value in range(1, 9) else 1


def _reduced(image: Image.Image) -> list[str]:
    """Pillow reads 16-bit colours, and 16-bit grey with alpha, as 8-bit ones."""
    deep = image.format in ("PNG", "TIFF") and any(
        "16" in str(tile.args) for tile in getattr(image, "tile", [])
    )
    if not deep or image.mode in _NUMBERS:
        return []
    return ["Colours of 16 bits are reduced to 8 by dropping the lowest 8."]


def _white_is_zero(image: Image.Image) -> bool:
    """Pillow inverts such TIFF pages itself up to 8 bits, not beyond."""
    tags = getattr(image, "tag_v2", {})
    return image.mode in _NUMBERS and tags.get(262) == _WHITE_IS_ZERO


def _banded(image: Image.Image, mode: str) -> NDArray[Any]:
    """Convert band by band: Pillow's own conversion would hold the picture several times."""
    width, height = image.size
    channels = (3,) if mode == "RGB" else ()
    values = np.empty((height, width, *channels), _NUMBERS.get(mode, np.uint8))
    for rows in bands(height, width):
        band = image.crop((0, rows.start, width, rows.stop))
        values[rows] = np.asarray(band if band.mode == mode else band.convert(mode))
    return values


def _composited(image: Image.Image, notes: list[str]) -> Decoded:
    width, height = image.size
    values = np.empty((height, width, 3), np.uint8)
    opaque, invisible = True, True
    for rows in bands(height, width):
        band = np.asarray(image.crop((0, rows.start, width, rows.stop)).convert("RGBA"))
        values[rows], full = _over_black(band)
        opaque = opaque and full
        invisible = invisible and not band[..., 3].any()
    if not opaque:
        notes.append(_OVER_BLACK)
    if image.mode in ("LA", "La"):
        values = values[..., 0].copy()
    return Decoded(values, tuple(notes), invisible=invisible)


def _over_black(colours: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """HxWx4 over black as HxWx3, and whether it was opaque throughout."""
    alpha = colours[..., 3:].astype(np.uint16)
    return ((colours[..., :3] * alpha + 127) // 255).astype(np.uint8), bool((alpha == 255).all())
