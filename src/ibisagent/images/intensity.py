"""From a file's own numbers to eight bits: windows, robust percentiles, what is not a number.

A *window* (low, high) maps low and below to black, high and above to white, and what is between
linearly. Its unit is the file's: Hounsfield units for CT, stored numbers for a 16-bit PNG.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ibisagent.errors import InputError
from ibisagent.types import Laterality, Picture, Pixels

Window: TypeAlias = tuple[float, float]  # low < high
Display: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float64]]  # own numbers to [0, 1]

_LIKE_AIR = -500.0  # Hounsfield units: what reaches down to here is taken for CT
PERCENTILES = (0.5, 99.5)  # of the robust window
SAMPLE = 4_000_000  # percentiles of more values than this are those of an even subsample
BAND_PIXELS = 1_000_000  # pixels converted at a time, so that memory stays bounded
ONE_COLOUR = "One colour throughout: nothing can be seen in this picture."
LEFT_RIGHT_ASSUMED = "The file does not say which side is which: image left is taken as the patient's right."


@dataclass(frozen=True)
class Decoded:
    """What a reader found in a file, before windowing."""

    values: NDArray[Any]  # HxW of any real dtype in the file's unit, or HxWx3 uint8 RGB
    assumptions: tuple[str, ...] = ()
    source: str = ""  # which slice, frame or page
    spacing: tuple[float, float] | None = None  # mm between rows, mm between columns
    laterality: Laterality = "assumed"
    modality: str | None = None
    display: Display | None = None  # the file's own window; None: it has none
    unit: bool = False  # floats within [0, 1], shown as they are
    inverted: bool = False  # the file's large numbers are dark (MONOCHROME1)
    sample: NDArray[Any] | None = None  # what the robust window is taken from; None: `values`
    sample_name: str = "picture"  # the word for it
    invisible: bool = False  # transparent throughout


def parse_window(text: str) -> Window | None:
    """Read `LO,HI` or `auto`; None stands for `auto`. Raises InputError for anything else."""
    if text.strip().lower() == "auto":
        return None
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise InputError(
            "A window is two numbers LO,HI or the word auto", repr(text[:40]), "write it as -160,240"
        ) from None
    return checked_window((low, high))


def checked_window(window: Window) -> Window:
    """The window as two floats. Raises InputError unless it is finite with low < high."""
    try:
        low, high = (float(bound) for bound in window)
    except (TypeError, ValueError):
        raise InputError(
            "A window is a pair (low, high) of numbers", type(window).__name__, "pass (-160, 240)"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            "A window's low end lies below its high end, and both are finite",
            f"{low:g},{high:g}",
            "write the smaller number first, as in -160,240",
        )
    return low, high


def linear(window: Window) -> Display:
    """The display function of a window."""
    low, high = window
    return lambda values: (values.astype(np.float64) - low) / (high - low)


def robust_window(values: NDArray[Any]) -> Window | None:
    """The 0.5 and 99.5 percentiles of the finite values; min and max where those are equal.

    Returns None where all finite values are equal or there is none.
    """
    flat = values.reshape(-1)
    flat = flat[:: max(1, math.ceil(flat.size / SAMPLE))]
    finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    if finite.size == 0:
        return None
    low, high = (float(bound) for bound in np.percentile(finite, PERCENTILES))
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else None


def bands(height: int, width: int) -> Iterator[slice]:
    """Slices over the rows that hold about BAND_PIXELS pixels each."""
    step = max(1, BAND_PIXELS // max(1, width))
    for start in range(0, height, step):
        yield slice(start, min(height, start + step))


def to_picture(decoded: Decoded, window: Window | None) -> Picture:
    """Apply the window asked for, else the file's own, else the robust one, and say which.

    Raises InputError where no value is finite, where all is transparent, or where a window is asked
    for a colour picture.
    """
    if decoded.invisible:
        raise InputError(
            "A picture must show something", "a picture transparent throughout", "save it without alpha"
        )
    values = decoded.values
    notes = list(decoded.assumptions)
    if values.ndim == 3:
        if window is not None:
            raise InputError(
                "A window is for pictures with one channel", "a colour picture", "leave the window out"
            )
        pixels: Pixels = values
    elif _is_shown_as_stored(decoded, window):
        pixels = np.repeat(values[..., None], 3, axis=2)
    else:
        pixels = _windowed(decoded, window, notes)
    if (pixels == pixels[0, 0]).all():
        notes.append(ONE_COLOUR)
    if decoded.laterality == "assumed":
        notes.append(LEFT_RIGHT_ASSUMED)
    return Picture(
        pixels=pixels,
        spacing=decoded.spacing,
        laterality=decoded.laterality,
        assumptions=tuple(notes),
        modality=decoded.modality,
        source=", ".join(filter(None, (decoded.source, window and f"window {window[0]:g} to {window[1]:g}"))),
    )


def check_window(decoded: Decoded, window: Window | None, picture: Picture) -> None:
    """Raise InputError where a window that somebody chose shows nothing: it would pass for a finding.

    A slice of a volume may be empty; then the window must show something of the volume.
    """
    display = linear(window) if window is not None else decoded.display
    if display is None or decoded.values.ndim == 3 or ONE_COLOUR not in picture.assumptions:
        return
    whole = decoded.values if decoded.sample is None else decoded.sample
    finite = whole[np.isfinite(whole)]
    if not finite.size or finite.min() == finite.max():
        return
    if decoded.sample is None or np.ptp(np.clip(display(finite), 0, 1)) == 0:
        low, high = float(finite.min()), float(finite.max())
        whose = "the window in the file" if window is None else "the window asked for"
        raise InputError(
            "A window shows some of the values",
            f"one grey value throughout, by {whose}; the values run from {low:g} to {high:g}",
            f"give --window {low:g},{high:g} or a part of that",
        )


def _is_shown_as_stored(decoded: Decoded, window: Window | None) -> bool:
    """Eight bits without any window; a volume's are windowed, for they may hold anything."""
    no_window = window is None and decoded.display is None and decoded.sample is None
    return decoded.values.dtype == np.uint8 and no_window and not decoded.inverted


def _windowed(decoded: Decoded, window: Window | None, notes: list[str]) -> Pixels:
    values = decoded.values
    display = linear(window) if window is not None else decoded.display
    if display is None and values.dtype == np.uint8 and decoded.sample is None:
        display = linear((0.0, 255.0))
    if display is None and decoded.unit:
        display = linear((0.0, 1.0))
    if display is None:
        display = _automatic(decoded, notes)
    pixels, unreal = _grey(values, display, decoded.inverted)
    if unreal == values.size:
        raise InputError(
            "A picture needs values that are numbers",
            "only NaN or infinite ones",
            "export the picture again from its source",
        )
    if unreal:
        notes.append(f"{unreal} of {values.size} values are NaN or infinite and shown black.")
    return pixels


def _automatic(decoded: Decoded, notes: list[str]) -> Display:
    source = decoded.values if decoded.sample is None else decoded.sample
    window = robust_window(source)
    if window is None:
        return lambda values: np.zeros(values.shape)
    low, high = window
    lowest, highest = PERCENTILES
    notes.append(
        f"No window was given: {low:g} to {high:g} is shown"
        f" (percentiles {lowest} to {highest} of the {decoded.sample_name})."
        + (" For soft tissue in CT give the window -150,250." if low <= _LIKE_AIR and high >= 0 else "")
    )
    return linear(window)


def _grey(values: NDArray[Any], display: Display, inverted: bool) -> tuple[Pixels, int]:
    """HxW numbers to HxWx3 uint8, and how many of them were not finite."""
    height, width = values.shape
    pixels = np.empty((height, width, 3), np.uint8)
    unreal = 0
    for rows in bands(height, width):
        band = values[rows]
        finite = np.isfinite(band)
        unreal += int(band.size - np.count_nonzero(finite))
        shown = np.clip(display(np.where(finite, band, 0)), 0.0, 1.0)
        if inverted:
            shown = 1.0 - shown
        pixels[rows] = np.where(finite, np.rint(shown * 255.0), 0).astype(np.uint8)[..., None]
    return pixels, unreal
