"""Changes that a good agent should bear: of the picture, of the instruction, of the first click.

Parameters are drawn first (`draw`, seeded by picture and kind) and applied after (`apply`), so that
a change can be looked at, repeated and tested. Picture and true mask are changed alike; strength 0
changes nothing, 1 is what tables are made with. All targets of a picture get the same draw, unless
less than half of the target would be left in the picture; then the next draw is taken.

Words: paraphrase asks for the same in other words. wrong-place names a corner where the target is
not, denied adds that the picture does not show it; the target is there, so its mask stays the truth.
contradictory words name nothing that can be there (the left kidney on the patient's right; the
liver without the liver): nothing is the right answer, and a refusal is as good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import cv2
import numpy as np

from ibisagent.actions import click_at, format_text
from ibisagent.errors import InputError
from ibisagent.seeding import generator_for
from ibisagent.targets import OTHER_SIDE, in_the_mirror
from ibisagent.types import Mask, Observation, Picture, Pixels, Policy, PolicyReply, Sample, Support

KINDS = (
    "noise", "blur", "contrast", "rotation", "shift", "mirror",
    "paraphrase", "wrong-place", "denied", "contradictory", "wrong-first-click",
)  # fmt: skip

NOISE = 15.0  # grey values of 255, standard deviation
BLUR = 0.006  # of the longest side, standard deviation: 2 px of 320
GAIN = 2.0  # contrast times or divided by this
DEGREES = 15.0  # rotation either way
ZOOM = (0.7, 1.4)  # of a shift, log-uniform
MOVE = 0.15  # of each side, either way, uniform
CROP = 0.10  # of each side that is cut off at each edge at most
KEPT = 0.5  # of the target that a shift or rotation must leave in the picture
_TRIES = 20
_MOST = 5.0  # strength

PARAPHRASES = (
    "Please outline the {target}.",
    "Where is the {target}? Mark it.",
    "Could you segment the {target} for me?",
    "I need a mask of the {target}.",
    "Show me the {target}.",
    "{target}",
    "Trace the border of the {target}.",
    "Highlight every pixel that belongs to the {target}.",
)


# --- parameters and what they do --------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, the same in all channels."""

    deviation: float  # grey values of 255
    seed: int

    def apply(self, sample: Sample) -> Sample:
        """`sample` with another picture."""
        pixels = sample.picture.pixels
        noise = np.random.default_rng(self.seed).normal(0.0, self.deviation, (*pixels.shape[:2], 1))
        return _repainted(sample, pixels + noise)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur."""

    deviation: float  # pixels

    def apply(self, sample: Sample) -> Sample:
        """`sample` with another picture."""
        if self.deviation == 0:
            return sample
        return _repainted(sample, cv2.GaussianBlur(sample.picture.pixels, (0, 0), self.deviation))


@dataclass(frozen=True)
class Contrast:
    """Distance to the picture's mean times `gain`; what leaves [0, 255] is cut."""

    gain: float

    def apply(self, sample: Sample) -> Sample:
        """`sample` with another picture."""
        pixels = sample.picture.pixels
        return _repainted(sample, pixels.mean() + self.gain * (pixels - pixels.mean()))


@dataclass(frozen=True)
class Placement:
    """Cut, turned about the centre, scaled, moved; the canvas keeps its size, the rest is black."""

    degrees: float = 0.0  # counter-clockwise as seen
    zoom: float = 1.0
    down: float = 0.0  # of the height
    right: float = 0.0  # of the width
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # top, bottom, left, right, of the sides

    def apply(self, sample: Sample) -> Sample:
        """`sample` with picture, true mask and spacing changed alike."""
        if self == Placement():
            return sample
        picture = sample.picture
        spacing = picture.spacing
        pixels = self._place(picture.pixels, spacing, cv2.INTER_LINEAR)
        if spacing is not None:
            spacing = (spacing[0] / self.zoom, spacing[1] / self.zoom)
        truth = None if sample.truth is None else self.place_mask(sample.truth, picture.spacing)
        return replace(sample, picture=replace(picture, pixels=pixels, spacing=spacing), truth=truth)

    def place_mask(self, mask: Mask, spacing: tuple[float, float] | None = None) -> Mask:
        """A mask (bool HxW) where the picture's pixels go; `spacing` as of the picture."""
        return self._place(mask.astype(np.uint8), spacing, cv2.INTER_NEAREST).astype(bool)

    def _place(self, array: Pixels, spacing: tuple[float, float] | None, how: int) -> Pixels:
        height, width = array.shape[:2]
        row, column = spacing or (1.0, 1.0)
        top, bottom, left, right = self.crop
        kept = np.zeros_like(array)
        window = np.s_[round(top * height) : height - round(bottom * height),
                       round(left * width) : width - round(right * width)]  # fmt: skip
        kept[window] = array[window]
        turn = math.radians(self.degrees)
        cos, sin = self.zoom * math.cos(turn), self.zoom * math.sin(turn)
        # (x, y) about the centre, in millimetres while it is turned
        linear = np.array([[cos, sin * row / column], [-sin * column / row, cos]])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = np.array([self.right * width, self.down * height])
        offset = centre + moved - linear @ centre
        matrix = np.hstack([linear, offset[:, None]])
        placed = cv2.warpAffine(kept, matrix, (width, height), flags=how, borderMode=cv2.BORDER_CONSTANT)
        return np.asarray(placed, np.uint8)


@dataclass(frozen=True)
class Mirror:
    """Left and right exchanged, as in files that were exported without regard to sides.

    What says where the patient's sides are is lost with it: by the convention the left kidney is then
    called the right one, and so it is asked for.
    """

    def apply(self, sample: Sample) -> Sample:
        """`sample` with picture, true mask and, where the target has a side, the instruction changed."""
        picture = replace(
            sample.picture, pixels=np.ascontiguousarray(sample.picture.pixels[:, ::-1]), laterality="assumed"
        )
        truth = None if sample.truth is None else np.ascontiguousarray(sample.truth[:, ::-1])
        name = sample.target or ""
        instruction = sample.instruction.replace(name, in_the_mirror(name)) if name else sample.instruction
        return replace(sample, picture=picture, truth=truth, instruction=instruction)


@dataclass(frozen=True)
class Wording:
    """Another instruction."""

    instruction: str
    nothing: bool = False  # it asks for what cannot be there

    def apply(self, sample: Sample) -> Sample:
        """`sample` with another instruction and, where that asks for nothing, an empty true mask."""
        truth = sample.truth
        if self.nothing and truth is not None:
            truth = np.zeros_like(truth)
        return replace(sample, instruction=self.instruction, truth=truth)


Change: TypeAlias = Noise | Blur | Contrast | Placement | Mirror | Wording


# --- drawing ----------------------------------------------------------------------------------


def draw(kind: str, sample: Sample, strength: float = 1.0, seed: int = 0) -> Change | None:
    """The parameters of one kind for one sample; None where neither picture nor words change.

    Raises InputError for an instruction kind where the sample's target has no name.
    """
    if strength == 0 or kind == "wrong-first-click":
        return None
    rng = generator_for(seed, "perturb", kind, sample.picture.content_id)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    if kind == "noise":
        return Noise(NOISE * strength, int(rng.integers(2**63)))
    if kind == "blur":
        return Blur(BLUR * strength * max(sample.picture.height, sample.picture.width))
    if kind == "contrast":
        return Contrast(GAIN ** (sign * strength))
    if kind == "mirror":
        return Mirror()
    if kind in ("rotation", "shift"):
        return _placement(kind, sample, strength, sign, rng)
    if sample.target is None:
        raise InputError(
            "instructions are rephrased for targets with names", "a case without one", "name it with --target"
        )
    if kind == "paraphrase":
        return Wording(PARAPHRASES[int(rng.integers(len(PARAPHRASES)))].format(target=sample.target))
    if kind == "contradictory":
        return Wording(_contradiction(sample.target), nothing=True)
    if kind == "denied":
        return Wording(f"Find the {sample.target}, though this image shows no {sample.target}.")
    return Wording(f"Find the {sample.target} in the {_elsewhere(sample.truth)} of this image.")


def _placement(
    kind: str, sample: Sample, strength: float, sign: float, rng: np.random.Generator
) -> Placement:
    """The first of some draws that keeps enough of the target, else one that only turns or scales."""
    truth, spacing = sample.truth, sample.picture.spacing
    zoom = 1.0
    for _ in range(_TRIES):
        if kind == "rotation":
            drawn = Placement(degrees=sign * DEGREES * strength)
        else:
            zoom = float(np.exp(strength * rng.uniform(np.log(ZOOM[0]), np.log(ZOOM[1]))))
            down, right = (float(value) for value in MOVE * strength * rng.uniform(-1, 1, 2))
            top, bottom, left, end = (float(value) for value in min(0.45, CROP * strength) * rng.random(4))
            drawn = Placement(0.0, zoom, down, right, (top, bottom, left, end))
        if truth is None or not truth.any():
            return drawn
        kept = np.count_nonzero(drawn.place_mask(truth, spacing)) / np.count_nonzero(truth) / drawn.zoom**2
        if kept >= KEPT:
            return drawn
    return Placement(zoom=min(1.0, zoom))


def _contradiction(target: str) -> str:
    side, _, organ = target.partition(" ")
    if organ and side in OTHER_SIDE:
        return f"Find the {side} {organ} on the patient's {OTHER_SIDE[side]} side."
    return f"Find the {target}, but leave out all of the {target}."


def _elsewhere(truth: Mask | None) -> str:
    """The corner that lies opposite to the target, in words."""
    if truth is None or not truth.any():
        return "upper left"
    rows, columns = np.nonzero(truth)
    row = "upper" if rows.mean() >= truth.shape[0] / 2 else "lower"
    return f"{row} {'left' if columns.mean() >= truth.shape[1] / 2 else 'right'}"


def _repainted(sample: Sample, values: np.ndarray) -> Sample:
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    picture: Picture = replace(sample.picture, pixels=pixels)
    return replace(sample, picture=picture)


# --- one kind for a whole run -----------------------------------------------------------------


@dataclass(frozen=True)
class Perturbation:
    """One kind at one strength; called with a sample, it gives the changed one."""

    kind: str
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                "the perturbation is one of those known", self.kind, f"choose {', '.join(KINDS)}"
            )
        if not 0 <= self.strength <= _MOST:
            raise InputError(f"--strength is from 0 to {_MOST:g}", self.strength)

    def __call__(self, sample: Sample) -> Sample:
        change = draw(self.kind, sample, self.strength, self.seed)
        return sample if change is None else change.apply(sample)

    @property
    def wraps(self) -> bool:
        """It changes what the policy does, not the sample."""
        return self.kind == "wrong-first-click" and self.strength > 0

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": self.kind, "strength": self.strength, "seed": self.seed}


class WrongFirstClick:
    """A policy whose first turn is a Positive Point outside the target, wherever that is."""

    def __init__(self, inner: Policy, truths: Mapping[str, Mask]) -> None:
        self.name = f"wrong first click ({inner.name})"
        self.view = inner.view
        self.verbs = inner.verbs
        self._inner = inner
        self._truths = truths

    def supports(self, instruction: str) -> Support:
        return self._inner.supports(instruction)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """Texts of the inner policy from turn 2 on."""
        later = [item for item in observations if item.turn > 1]
        texts = iter(self._inner.act(later) if later else [])
        return [next(texts) if item.turn > 1 else PolicyReply(self._wrong(item)) for item in observations]

    def fingerprint(self) -> Mapping[str, Any]:
        return {"name": self.name, "inner": dict(self._inner.fingerprint())}

    def _wrong(self, observation: Observation) -> str:
        truth = self._truths[observation.sample_id]
        places = np.flatnonzero(~truth) if not truth.all() else np.arange(truth.size)
        place = int(places[np.random.default_rng(observation.seed).integers(len(places))])
        row, column = divmod(place, truth.shape[1])
        return format_text("It may be here.", click_at(row, column, truth.shape[0], truth.shape[1], True))
