"""Which side of the patient is image left and image top, and what counts as usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Patient axes of DICOM (PS3.3 C.7.6.2.1.1): x to the left, y to the back, z to the head.
_AXES = (("right", "left"), ("anterior", "posterior"), ("inferior", "superior"))
_LETTERS = {
    "R": "right",
    "L": "left",
    "A": "anterior",
    "P": "posterior",
    "F": "inferior",
    "H": "superior",
}
_USUAL = {("right", "anterior"), ("right", "superior"), ("anterior", "superior")}
_OBLIQUE = 0.9  # cosine to the nearest patient axis below which a picture is called oblique


@dataclass(frozen=True)
class Sides:
    """The patient's sides at image left and image top."""

    left: str
    top: str
    oblique: bool = False

    def sentences(self) -> tuple[str, ...]:
        """What a reader must know: sides that are not radiological, and obliqueness."""
        said = []
        if (self.left, self.top) not in _USUAL:
            said.append(
                f"The picture is kept as stored: image left is {_phrase(self.left)},"
                f" image top is {_phrase(self.top)}."
            )
        if self.oblique:
            said.append("The picture is oblique: its sides are the nearest ones of the patient.")
        return tuple(said)


def sides_of_cosines(cosines: Sequence[float]) -> Sides | None:
    """Sides from ImageOrientationPatient: the directions of image right, then of image down.

    None unless both are unit vectors at right angles (to 0.05) near two different patient axes.
    """
    right, down = np.asarray(cosines[:3], float), np.asarray(cosines[3:6], float)
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if max(abs(length - 1) for length in lengths) > 0.05 or abs(float(right @ down)) > 0.05:
        return None
    across, along = int(np.abs(right).argmax()), int(np.abs(down).argmax())
    if across == along:
        return None
    return Sides(
        left=_AXES[across][int(right[across] < 0)],
        top=_AXES[along][int(down[along] < 0)],
        oblique=bool(min(abs(right[across]), abs(down[along])) < _OBLIQUE),
    )


def sides_of_letters(right: str, down: str) -> Sides | None:
    """Sides from PatientOrientation, whose first letters name image right and image down."""
    opposite = {name: other for a, b in _AXES for name, other in ((a, b), (b, a))}
    across, along = _LETTERS.get(right[:1]), _LETTERS.get(down[:1])
    if across is None or along is None or along in (across, opposite[across]):
        return None
    return Sides(opposite[across], opposite[along], oblique=len(right) > 1 or len(down) > 1)


def _phrase(side: str) -> str:
    return f"the patient's {side}" if side in ("left", "right") else side
