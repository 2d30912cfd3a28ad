"""Where masks are, and what their files store: values, colours, polygons and run lengths as masks HxW."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ibisagent.errors import InputError
from ibisagent.masks import decode_rle, fill_runs
from ibisagent.types import Mask

JPEG_FOREGROUND = 128  # losses leave values around 0 and 255 in masks stored as JPEG


class MaskSource(Protocol):
    """Where a mask is; `shape` is the picture's (height, width)."""

    def read(self, shape: tuple[int, int]) -> Mask: ...


@dataclass(frozen=True)
class MaskFiles:
    """The union of mask files. `label` None: whatever is not 0 (1-bit, 0/1 and 0/255 files alike).

    With a label, the pixels of that value, or of that colour where it is written #rrggbb.
    """

    paths: tuple[Path, ...]
    label: str | None = None

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([read_label(path, self.label) for path in self.paths])


@dataclass(frozen=True)
class PolygonMask:
    """The union of polygons, each x0, y0, x1, y1, ... in pixels; a pixel counts by its centre."""

    polygons: tuple[tuple[float, ...], ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        mask = np.zeros(shape, bool)
        for polygon in self.polygons:
            mask |= fill_polygon(np.asarray(polygon, float).reshape(-1, 2), shape)
        return mask


@dataclass(frozen=True)
class RleMask:
    """The union of COCO run lengths, compressed (counts a text) or not (counts a list)."""

    codes: tuple[Mapping[str, object], ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([decode_any_rle(code) for code in self.codes])


@dataclass(frozen=True)
class UnionMask:
    """The union of several sources."""

    parts: tuple[MaskSource, ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([part.read(shape) for part in self.parts])


def _union(masks: Sequence[Mask]) -> Mask:
    for mask in masks:
        if mask.shape != masks[0].shape:
            raise InputError(
                "masks of one picture have one size",
                f"{mask.shape} and {masks[0].shape}",
                "export them again",
            )
    return np.asarray(np.logical_or.reduce(masks))


# --- reading values ---------------------------------------------------------------------------


def read_label(source: Path | BinaryIO, label: str | None) -> Mask:
    """The pixels of a mask file that have a label; see `MaskFiles`."""
    if label not in (None, "0", "1") and not is_color(label) and _is_jpeg(source):
        raise _lossy(f"the label {label} in a JPEG file", "save it as PNG, or write 1=NAME")
    return label_mask(label_values(source, colors=is_color(label)), label)


def _is_jpeg(source: Path | BinaryIO) -> bool:
    try:
        with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as stream:
            head = stream.read(3)
    except OSError:
        return False  # said where it is read
    if not isinstance(source, Path):
        source.seek(0)
    return head == b"\xff\xd8\xff"


def _lossy(value: str, fix: str) -> InputError:
    return InputError("colours of labels and values other than 1 are stored without losses", value, fix)


def is_color(label: str | None) -> bool:
    """Whether a label is written #rrggbb."""
    return label is not None and label.startswith("#")


def label_values(source: Path | BinaryIO, *, colors: bool = False) -> NDArray[np.integer]:
    """What a mask file stores: HxW integers, or HxWx3 uint8 colours.

    Pixels with a palette are its indices, or with `colors` what the palette says. An alpha channel
    is dropped, three equal channels become one, JPEG is cut at 128 to 0 and 1. Raises InputError
    where the file cannot be read, and for colours in a JPEG file.
    """
    try:
        with Image.open(source) as file:
            lossy = file.format == "JPEG"
            image: Image.Image = file
            if (colors and image.mode in ("P", "1")) or image.mode in ("RGBA", "CMYK", "YCbCr", "PA", "RGBX"):
                image = image.convert("RGB")
            elif image.mode == "LA":
                image = image.convert("L")
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            "a mask is a readable picture file", type(error).__name__, "export it again"
        ) from None
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if lossy and colors:
        raise _lossy("a colour in a JPEG file", "save it as PNG")
    if lossy:
        values = (values if values.ndim == 2 else values.max(axis=2)) >= JPEG_FOREGROUND
    if values.dtype.kind == "f":
        values = np.rint(values)
    return values.astype(np.uint8 if values.dtype == bool else values.dtype)


def label_mask(values: NDArray[np.integer], label: str | None) -> Mask:
    """The pixels of a label; see `MaskFiles`."""
    if label is None:
        return np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=2))
    if is_color(label):
        color = np.array([int(label[start : start + 2], 16) for start in (1, 3, 5)])
        stacked = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
        return np.asarray((stacked == color).all(axis=2))
    if values.ndim == 3:
        raise InputError("a mask read by values has one channel", "a colour mask", "name colours as #rrggbb")
    return np.asarray(values == int(label))


def label_names(found: NDArray[np.integer]) -> list[str]:
    """The labels that occur in values, as `ReadOptions.labels` writes them; 0 and black left out."""
    if found.ndim == 2:
        return [str(int(value)) for value in np.unique(found) if value != 0]
    colors = np.unique(found.reshape(-1, 3), axis=0)
    return ["#" + "".join(f"{int(part):02x}" for part in color) for color in colors if color.any()]


def decode_any_rle(code: Mapping[str, object]) -> Mask:
    """COCO run lengths of either kind. Raises EpisodeFormatError where counts and size disagree."""
    counts, size = code.get("counts"), code.get("size")
    if isinstance(counts, Sequence) and not isinstance(counts, str | bytes):
        try:
            height, width = (int(side) for side in size)  # type: ignore[attr-defined]
            runs = [int(count) for count in counts]
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                "run lengths have a size [H, W] and whole counts", "neither", "repair them"
            ) from None
        return fill_runs((height, width), runs)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    return decode_rle({"size": size, "counts": counts})


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies within a polygon (Nx2, x and y in pixels), by the even-odd rule."""
    mask = np.zeros(shape, bool)
    if len(points) < 3 or not np.isfinite(points).all():
        return mask
    following = np.roll(points, -1, axis=0)
    low = np.minimum(points[:, 1], following[:, 1])
    high = np.maximum(points[:, 1], following[:, 1])
    centres = np.arange(shape[1]) + 0.5
    first, last = max(0, int(low.min() - 0.5)), min(shape[0], int(high.max() + 0.5) + 1)
    for row in range(first, last):
        crossed = (low <= row + 0.5) & (high > row + 0.5)
        start, end = points[crossed], following[crossed]
        at = start[:, 0] + (row + 0.5 - start[:, 1]) * (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
        mask[row] = np.searchsorted(np.sort(at), centres) % 2 == 1
    return mask


def fill_outline(points: Sequence[Sequence[float]], canvas: NDArray[np.uint8], value: int) -> None:
    """Fill a polygon of integer points with its outline, as LISA's annotations are drawn."""
    outline = np.array(points, np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [outline], True, value, 1)
    cv2.fillPoly(canvas, [outline], value)
