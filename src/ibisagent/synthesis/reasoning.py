"""Thoughts and answers from templates that are fed by measured facts, so that each one is true.

The facts come from the true mask, which only training data has; the sentences say what a person
would see in the picture: where, how large, which error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ibisagent.masks import error_regions
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


@dataclass(frozen=True)
class Facts:
    """What a thought may say; every word of it can be checked against the masks."""

    target: str  # canonical name
    situation: Situation
    place: str  # of the click, else of the target's largest part; "" where the target is absent
    size: str  # of the target; "" where it is absent
    error: str  # size of the error region that is clicked; "" without one


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

    An Undo is explained by a mask that fits the target badly (or by a target that is absent), a
    Terminate by a mask that fits (or, without a mask, by an absent target).
    """
    present = bool(truth.any())
    size = size_word(float(truth.mean())) if present else ""
    if isinstance(action, Terminate):
        if not present or mask is None:
            return Facts(target, "absent", "", "", "")
        return Facts(target, "good", place_of(*_centre(truth)), size, "")
    if isinstance(action, Undo):
        if not present:
            return Facts(target, "phantom", "", "", "")
        return Facts(target, "elsewhere", place_of(*_centre(truth)), size, "")
    assert isinstance(action, Click)
    place = place_of(action.x, action.y)
    if mask is None or not mask.any():
        return Facts(target, "bare", place, size, "")
    missed, included = error_regions(truth, mask)
    region = missed if action.positive else included
    share = float(region.sum()) / max(int(truth.sum()), 1)
    return Facts(target, "missed" if action.positive else "included", place, size, error_word(share))


VERDICTS: dict[Situation, str] = {
    "bare": "No mask yet.",
    "absent": "Nothing to mark.",
    "missed": "Something is missing.",
    "included": "Too much is covered.",
    "good": "The mask fits.",
    "elsewhere": "It does not fit.",
    "phantom": "Wrong and not needed.",
}
"""How every thought begins: the judgement comes first, the wording after it varies."""

_THOUGHTS: dict[Situation, tuple[str, ...]] = {
    "bare": (
        "The {target} {is} {size} and {lies} at the {place} of the picture. I click inside.",
        "I see the {target} at the {place} of the picture, {size}. I start there.",
        "A clear part of the {target} is at the {place}. I click it.",
    ),
    "absent": (
        "I looked for the {target} and see nothing of the kind in this picture.",
        "The {target} {is} not in this picture, so there is nothing to click.",
    ),
    "missed": (
        "The mask misses a {error} part of the {target} at the {place}. I add it.",
        "A {error} part of the {target} at the {place} of the picture is not covered. I click it.",
    ),
    "included": (
        "The mask wrongly includes a {error} region at the {place}. I take it out.",
        "A {error} region at the {place} of the picture does not belong to the {target}. I exclude it.",
    ),
    "good": (
        "It covers the {size} {target} at the {place}. No click would improve it much.",
        "The {target} at the {place} of the picture {is} {size} and well covered. I stop.",
    ),
    "elsewhere": (
        "The mask is not well on the {target}, which {is} {size} and {lies} at the {place}. I take it back.",
        "This mask is not well on the {target} at the {place} of the picture. I undo.",
    ),
    "phantom": (
        "The mask covers something else and the {target} {is} not in this picture. I take it back.",
        "I see nothing of the {target} under this mask. I undo.",
    ),
}

_ANSWERS: dict[Situation, tuple[str, ...]] = {
    "good": (
        "The {target} {is} visible at the {place} of the picture and {size}. The mask covers it.",
        "A {size} {target} can be seen at the {place} of the picture, covered by the mask.",
    ),
    "absent": (
        "The {target} {is} not present in this picture.",
        "No {target} can be seen in this picture.",
    ),
}


def _fill(template: str, known: Facts) -> str:
    plural = known.target in PLURAL
    if plural:
        template = template.replace("A {size} {target}", "The {size} {target}")
        template = template.replace("covers it", "covers them")
    return template.format(
        target=known.target,
        place=known.place,
        size=known.size,
        error=known.error,
        **{"is": "are" if plural else "is", "lies": "lie" if plural else "lies"},
    )


def thought(known: Facts, rng: np.random.Generator) -> str:
    """The verdict on the situation, then one of its templates filled with the facts."""
    templates = _THOUGHTS[known.situation]
    return VERDICTS[known.situation] + " " + _fill(templates[int(rng.integers(len(templates)))], known)


def answer(known: Facts, rng: np.random.Generator) -> str:
    """The finding that goes with Terminate (situations good and absent)."""
    templates = _ANSWERS[known.situation]
    return _fill(templates[int(rng.integers(len(templates)))], known)


def sentences() -> tuple[str, ...]:
    """Every template with every value filled in that changes its words: what a vocabulary must hold."""
    found = list(VERDICTS.values())
    places = [place for row in PLACES for place in row]
    for table in (_THOUGHTS, _ANSWERS):
        for situation, templates in table.items():
            for template in templates:
                for target in ("liver", "lungs"):
                    found += [
                        _fill(template, Facts(target, situation, place, size, error))
                        for place in places
                        for _, size in SIZES
                        for _, error in ERRORS
                    ]
    return tuple(found)
