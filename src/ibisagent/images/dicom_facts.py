"""What a DICOM data set says about its pixels: numbers, windows, spacing, orientation.

`facts` is always the data set with what it says about one frame on top (`frame_facts`). Whatever
cannot be used, or had to be assumed, is added to `notes` as a sentence.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ibisagent.images.intensity import Display
from ibisagent.images.orientation import Sides, sides_of_cosines, sides_of_letters

_FUNCTIONAL_GROUPS = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)


def frame_facts(data_set: Dataset, frame: int) -> Dataset:
    """The data set with what an enhanced multi-frame object says about this frame on top."""
    facts = Dataset()
    facts.update({tag: data_set.get_item(tag) for tag in data_set.keys()})  # noqa: SIM118
    shared = data_set.get("SharedFunctionalGroupsSequence") or []
    frames = data_set.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *frames[frame : frame + 1]):
        for keyword in _FUNCTIONAL_GROUPS:
            for item in (group.get(keyword) or [])[:1]:
                facts.update({element.tag: element for element in item})
    return facts


def modality(data_set: Dataset) -> str | None:
    """The modality code, such as CT; None where it is absent or not a code."""
    value = str(data_set.get("Modality") or "")
    return value if re.fullmatch(r"[A-Z]{2,16}", value) else None


# --- numbers and windows ----------------------------------------------------------------------


def modality_values(pixels: NDArray[Any], facts: Dataset, notes: list[str]) -> NDArray[Any]:
    """Stored numbers through the modality LUT, or slope and intercept (PS3.3 C.11.1)."""
    if facts.get("ModalityLUTSequence"):
        table, first, _ = _table(facts.ModalityLUTSequence[0])
        return table[np.clip(pixels.astype(np.int64) - first, 0, len(table) - 1)]
    slope = _numbers(facts.get("RescaleSlope"), 1) or (1.0,)
    intercept = _numbers(facts.get("RescaleIntercept"), 1) or (0.0,)
    if slope[0] == 0:
        notes.append("The rescale slope is 0 and not applied: values are the stored numbers.")
        return pixels
    if (slope[0], intercept[0]) == (1.0, 0.0):
        return pixels
    values = pixels.astype(np.float32)
    values *= np.float32(slope[0])
    values += np.float32(intercept[0])
    return values


def file_window(facts: Dataset, notes: list[str]) -> Display | None:
    """The first VOI LUT, else the first window (PS3.3 C.11.2); None: the file has neither."""
    if facts.get("VOILUTSequence"):
        table, first, bits = _table(facts.VOILUTSequence[0])
        top = float(2**bits - 1)
        return lambda values: table[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)] / top
    centres, widths = facts.get("WindowCenter"), facts.get("WindowWidth")
    if centres is None or widths is None:
        return None
    count = len(centres) if isinstance(centres, MultiValue) else 1
    centre, width = _numbers(centres, 1), _numbers(widths, 1)
    function = str(facts.get("VOILUTFunction") or "LINEAR")
    display = _window_function(function, centre[0], width[0]) if centre and width else None
    if display is None:
        notes.append("The file's window cannot be used.")
    elif count > 1:
        notes.append(f"The file has {count} windows: the first is shown.")
    return display


def _window_function(function: str, centre: float, width: float) -> Display | None:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, as a map to [0, 1]."""
    if function == "LINEAR" and width > 1:
        return lambda values: (values.astype(np.float64) - (centre - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR" and width == 1:
        return lambda values: (values > centre - 0.5).astype(np.float64)
    if function == "LINEAR_EXACT" and width > 0:
        return lambda values: (values.astype(np.float64) - centre) / width + 0.5
    if function == "SIGMOID" and width > 0:
        return lambda values: (
            1 / (1 + np.exp(np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)))
        )
    return None


def _table(item: Dataset) -> tuple[NDArray[Any], int, int]:
    """A lookup table, the number that its first entry stands for, and its bits."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, np.uint16)
    if table.size < (entries or 2**16) or not 1 <= bits <= 16:
        raise ValueError
    return table[: entries or 2**16], first, bits


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """The first `count` numbers of an element, or None unless all are there and finite."""
    if value is None or value == "":
        return None
    values = list(value) if isinstance(value, (list, MultiValue)) else [value]
    numbers = tuple(float(number) for number in values[:count] if number not in (None, ""))
    return numbers if len(numbers) == count and all(np.isfinite(numbers)) else None


# --- geometry ---------------------------------------------------------------------------------


def pixel_spacing(facts: Dataset, notes: list[str]) -> tuple[float, float] | None:
    """Millimetres between rows and between columns; None: unknown."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if facts.get(keyword) is None:
            continue
        spacing = _numbers(facts.get(keyword), 2)
        if spacing is None or min(spacing) <= 0:
            notes.append("The file's pixel spacing cannot be used: pixels are taken as square.")
            return None
        if keyword == "ImagerPixelSpacing":
            notes.append("Pixel spacing is that at the detector, not within the patient.")
        return spacing[0], spacing[1]
    return None


def patient_sides(facts: Dataset, notes: list[str]) -> Sides | None:
    """Which sides of the patient image left and top are; None: unknown."""
    cosines = _numbers(facts.get("ImageOrientationPatient"), 6)
    letters = facts.get("PatientOrientation")
    sides = None
    if cosines:
        sides = sides_of_cosines(cosines)
    elif isinstance(letters, MultiValue) and len(letters) == 2:
        sides = sides_of_letters(str(letters[0]), str(letters[1]))
    if sides is None and (facts.get("ImageOrientationPatient") or letters):
        notes.append("The file's orientation cannot be used.")
    if sides is not None:
        notes.extend(sides.sentences())
    return sides
