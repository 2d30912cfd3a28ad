"""Thoughts and answers from templates that are fed by measured facts, so that each one is true.

A thought is a verdict, which says what to do, then what it is about, then statements, then what is
done. The statements are whole sentences of their own: how well the mask fits, where the target is,
how large it is, how large the error. The facts come from the true mask, which only training data
has. Each statement is left out at times, so that a policy learns thoughts without those that it is
not sure of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ibisagent.masks import error_regions, iou
from ibisagent.types import Action, Click, Mask, Terminate, Undo

Situation = Literal["bare", "absent", "missed", "included", "good", "elsewhere", "phantom"]

PLACES = (
    ("upper left", "upper middle", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "lower middle", "lower right"),
)
"""Thirds of the picture, rows from the top, columns from the left."""

SIZES = ((0.005, "tiny"), (0.03, "small"), (0.12, "medium-sized"), (1.0, "large"))
"""Share of the picture up to which a target is called so."""

ERRORS = ((0.1, "small"), (0.4, "moderate"), (float("inf"), "large"))
"""Share of the target up to which an error region is called so."""

PLURAL = frozenset({"lungs", "nuclei", "portal vein and splenic vein"})


FITS_ABOVE, BADLY_BELOW = 0.80, 0.50
"""IoU from which a mask is said to fit, and below which it is said to fit badly; nothing between."""

STATED = 0.75  # of the statements that could be made, so many are


@dataclass(frozen=True)
class Facts:
    """What a thought may say; every word of it can be checked against the masks."""

    target: str  # canonical name
    situation: Situation
    place: str = ""  # of the target's largest part; "" where it is absent
    size: str = ""  # of the target; "" where it is absent
    error: str = ""  # size of the error region that is clicked; "" without one
    fit: Literal["", "well", "badly"] = ""  # of the mask; "" without one and between the two


def place_of(x: float, y: float) -> str:
    """Third of the picture that holds a point; x and y in [0, 1]."""
    return PLACES[min(int(y * 3), 2)][min(int(x * 3), 2)]


def size_word(share: float) -> str:
    """Word for a target that covers `share` (0 to 1) of the picture."""
    return next(word for limit, word in SIZES if share <= limit)


def error_word(share: float) -> str:
    """Word for an error region whose area is `share` (0 and more) of the target's."""
    return next(word for limit, word in ERRORS if share <= limit)


def largest_part(mask: Mask) -> Mask:
    """The largest 8-connected component of a bool HxW mask with at least one pixel."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def _centre(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(largest_part(mask))
    return (float(columns.mean()) + 0.5) / mask.shape[1], (float(rows.mean()) + 0.5) / mask.shape[0]


def facts(target: str, truth: Mask, mask: Mask | None, action: Action) -> Facts:
    """Measure what is true before `action`; masks are bool HxW of one frame, `mask` None is bare.

    An Undo is explained by a mask that is not worth keeping (or by a target that is absent), a
    Terminate by one that no click would improve much (or, without a mask, by an absent target).
    """
    stands = mask is not None and bool(mask.any())
    if not truth.any():
        if isinstance(action, Click):
            return Facts(target, "bare")
        return Facts(target, "phantom" if isinstance(action, Undo) else "absent")
    place, size = place_of(*_centre(truth)), size_word(float(truth.mean()))
    if mask is None or not stands:
        return Facts(target, "absent" if isinstance(action, Terminate) else "bare", place, size)
    overlap = iou(truth, mask)
    fit: Literal["", "well", "badly"] = (
        "well" if overlap >= FITS_ABOVE else "badly" if overlap < BADLY_BELOW else ""
    )
    if not isinstance(action, Click):
        return Facts(target, "elsewhere" if isinstance(action, Undo) else "good", place, size, "", fit)
    missed, included = error_regions(truth, mask)
    share = float((missed if action.positive else included).sum()) / int(truth.sum())
    return Facts(target, "missed" if action.positive else "included", place, size, error_word(share), fit)


VERDICTS: dict[Situation, str] = {
    "bare": "No mask yet.",
    "absent": "Nothing to mark.",
    "missed": "Something is missing.",
    "included": "Too much is covered.",
    "good": "No click would help much.",
    "elsewhere": "A fresh start is better.",
    "phantom": "Wrong and not needed.",
}
"""How every thought begins: what to do comes first, the wording after it varies."""

STATEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "fit": {"well": ("The mask fits.",), "badly": ("The mask fits badly.",)},
    "place": {
        place: (f"It lies at the {place} of the picture.", f"They lie at the {place} of the picture.")
        for row in PLACES
        for place in row
    },
    "size": {size: (f"It is {size}.", f"They are {size}.") for _, size in SIZES},
    "error": {error: (f"The error is {error}.",) for _, error in ERRORS},
}
"""What thoughts and answers state, by field of Facts and value; the second wording is the plural's."""

_THOUGHTS: dict[Situation, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bare": (
        ("I look for the {target}.", "The {target} {is} to be marked."),
        ("I click inside.", "I start there."),
    ),
    "absent": (
        (
            "I looked for the {target} and see nothing of the kind in this picture.",
            "The {target} {is} not in this picture, so there is nothing to click.",
        ),
        (),
    ),
    "missed": (
        ("The mask misses a part of the {target}.", "A part of the {target} is not covered."),
        ("I add it.", "I click it."),
    ),
    "included": (
        ("The mask covers more than the {target}.", "Something beside the {target} is covered."),
        ("I take it out.", "I exclude it."),
    ),
    "good": (
        ("I compare the mask with the {target}.", "I look at the {target} under the mask."),
        ("I stop.", "I leave it so."),
    ),
    "elsewhere": (
        ("I compare the mask with the {target}.", "I look at the {target} and at the mask."),
        ("I take the mask back.", "I undo."),
    ),
    "phantom": (
        (
            "The mask covers something else and the {target} {is} not in this picture.",
            "I see nothing of the {target} under this mask.",
        ),
        ("I take it back.", "I undo."),
    ),
}
"""Before the statements, and after them."""

_ANSWERS: dict[Situation, tuple[str, ...]] = {
    "good": ("The {target} {is} marked.", "The mask shows the {target}."),
    "absent": (
        "The {target} {is} not present in this picture.",
        "No {target} can be seen in this picture.",
    ),
}


def _fill(template: str, target: str) -> str:
    return template.format(target=target, **{"is": "are" if target in PLURAL else "is"})


def _stated(known: Facts, kinds: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """The statements of some kinds, each at times left out."""
    said = []
    for kind in kinds:
        value = getattr(known, kind)
        if value and rng.random() < STATED:
            wordings = STATEMENTS[kind][value]
            said.append(wordings[-1] if known.target in PLURAL else wordings[0])
    return said


def thought(known: Facts, rng: np.random.Generator) -> str:
    """The verdict on the situation, what it is about, some of the statements, what is done."""
    before, after = _THOUGHTS[known.situation]
    parts = [VERDICTS[known.situation], _fill(before[int(rng.integers(len(before)))], known.target)]
    if known.situation != "absent":
        parts += _stated(known, tuple(STATEMENTS), rng)
    parts += [after[int(rng.integers(len(after)))]] if after else []
    return " ".join(parts)


def answer(known: Facts, rng: np.random.Generator) -> str:
    """The finding that goes with Terminate (situations good and absent)."""
    templates = _ANSWERS[known.situation]
    parts = [_fill(templates[int(rng.integers(len(templates)))], known.target)]
    if known.situation != "absent":
        parts += _stated(known, ("place", "size"), rng)
    return " ".join(parts)


def sentences() -> tuple[str, ...]:
    """Every sentence, with every value filled in that changes its words: what a vocabulary must hold."""
    templates = [text for before, after in _THOUGHTS.values() for text in (*before, *after)]
    templates += [text for every in _ANSWERS.values() for text in every]
    found = [*VERDICTS.values(), *statement_sentences()]
    return tuple(found + [_fill(text, target) for text in templates for target in ("liver", "lungs")])


def statement_sentences() -> tuple[str, ...]:
    """Every sentence that states something."""
    return tuple(wording for values in STATEMENTS.values() for every in values.values() for wording in every)
