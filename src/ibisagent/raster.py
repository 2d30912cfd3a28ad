"""PNG, JPEG, TIFF and BMP through Pillow: one page, whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ibisagent.errors import InputError
from ibisagent.intensity import Decoded, bands
from ibisagent.picture_files import MAX_SIDE, PictureFile, check_sides, quiet

_NUMBERS = {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32, "F": np.float32}
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)


def read_raster(file: PictureFile, frame: int | None) -> Decoded:
    """Decode one page. Raises InputError for what is too large, damaged or not supported."""
    with quiet():
        try:
            if file.format == "PNG":
                with Image.open(file.path, formats=("PNG",)) as image:
                    check_sides(*image.size, file.given)
                    image.verify()
            with Image.open(file.path, formats=(file.format,)) as image:
                check_sides(*image.size, file.given)
                notes = _turn_to(image, frame, file)
                decoded = decode_image(image, file.given)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise file.fail(
                f"A picture may have at most {MAX_SIDE} pixels a side",
                "its header claims far more",
                "downscale it, or cut out the part that matters",
            ) from None
        except InputError:
            raise
        except _DAMAGE as error:
            raise file.damaged(type(error).__name__) from None
    return Decoded(
        decoded.values,
        (*file.assumptions, *notes, *decoded.assumptions),
        display=decoded.display,
        inverted=decoded.inverted,
    )


def decode_image(image: Image.Image, given: str) -> Decoded:
    """A Pillow image to numbers: transposed as EXIF says, alpha over black, colours as RGB.

    Values are HxW uint8, uint16, int32 or float32, or HxWx3 uint8.
    """
    check_sides(*image.size, given)
    notes: list[str] = []
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned is not None and turned.size != image.size:
        pass
    image = turned
    if image.mode in _NUMBERS:
        return Decoded(_banded(image, image.mode, _NUMBERS[image.mode]), tuple(notes))
    values = _banded(image, "RGB", np.uint8)
    return Decoded(values, tuple(notes))


def _turn_to(image: Image.Image, frame: int | None, file: PictureFile) -> list[str]:
    return []


def _banded(image: Image.Image, mode: str, dtype: type) -> NDArray[Any]:
    """Convert band by band: Pillow's own conversion would hold the picture several times."""
    width, height = image.size
    channels = (3,) if mode == "RGB" else ()
    values = np.empty((height, width, *channels), dtype)
    for rows in bands(height, width):
        band = image.crop((0, rows.start, width, rows.stop))
        values[rows] = np.asarray(band if band.mode == mode else band.convert(mode))
    return values
