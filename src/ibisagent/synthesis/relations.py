"""Which of several structures a relation picks out, measured on their masks with a margin.

A relation is only ever said where every reader would agree: it clearly holds for one candidate and
clearly does not for the others. Where one of them is nearly tied, straddles the line or consists of
several pieces, nothing is picked. Left, right, above and below are those of the picture frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import cv2
import numpy as np

from ibisagent.types import Mask

Relation = Literal[
    "left",
    "right",
    "above",
    "below",
    "larger",
    "smaller",
    "between",
    "inside",
    "nearest",
    "leftmost",
    "rightmost",
    "highest",
    "lowest",
    "largest",
    "smallest",
]
REFERENCES: dict[Relation, int] = {
    **dict.fromkeys(("left", "right", "above", "below", "larger", "smaller", "inside", "nearest"), 1),
    "between": 2,
    **dict.fromkeys(("leftmost", "rightmost", "highest", "lowest", "largest", "smallest"), 0),
}  # type: ignore[assignment]
"""How many structures a relation refers to."""

_EXTREMES: dict[Relation, Relation] = {
    "leftmost": "left",
    "rightmost": "right",
    "highest": "above",
    "lowest": "below",
}
_MOST, _LITTLE = 0.9, 0.1  # shares of a structure that count as all and as nothing of it
_STEP = 0.03  # of the longest side: what is closer together than this is a tie
_RATIO = 1.3  # areas and gaps closer than this factor are a tie
_ONE_PIECE = 0.97  # share of the largest component above which specks do not count
_LEAST = 0.0003  # of the picture: smaller structures are not spoken of
_OVERLAP = 0.02  # share of the smaller of two structures


def one_piece(mask: Mask) -> bool:
    """Whether a bool HxW mask is one component (but for specks) and large enough to speak of."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    total = int(areas.sum())
    return count > 1 and total >= max(20.0, _LEAST * mask.size) and int(areas.max()) >= _ONE_PIECE * total


def disjoint(masks: Sequence[Mask]) -> bool:
    """Whether no two of the masks share more than a sliver."""
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            if int((mask & other).sum()) > _OVERLAP * min(int(mask.sum()), int(other.sum())):
                return False
    return True


def pick(relation: Relation, candidates: Mapping[str, Mask], references: Sequence[Mask]) -> str | None:
    """The one candidate for which the relation holds; None where there is none, or any doubt.

    Masks are bool HxW of one frame; `references` are as many as REFERENCES says.
    """
    assert len(references) == REFERENCES[relation], f"{relation} refers to {REFERENCES[relation]}"
    masks = list(candidates.values())
    apart = [*masks, *references]
    if not masks or not all(mask.any() for mask in apart):
        return None
    chosen: str | None
    if relation in ("leftmost", "rightmost", "highest", "lowest", "largest", "smallest", "nearest"):
        chosen = _extreme(relation, candidates, references)
    else:
        verdicts = {name: _holds(relation, mask, references) for name, mask in candidates.items()}
        fit = [name for name, holds in verdicts.items() if holds]
        chosen = fit[0] if len(fit) == 1 and None not in verdicts.values() else None
    if chosen is None or not disjoint(masks if relation == "inside" else apart):
        return None
    return chosen if all(one_piece(mask) for mask in apart) else None


def clearly_left(first: Mask, second: Mask) -> bool | None:
    """Whether `first` lies further to the left of the picture than `second`; None: not clear."""
    return _beyond(first, second, axis=0)


def _holds(relation: Relation, mask: Mask, references: Sequence[Mask]) -> bool | None:
    """Whether a relation holds for one structure; None where that is not clear."""
    other = references[0]
    match relation:
        case "left":
            return _beyond(mask, other, axis=0)
        case "right":
            return _beyond(mask[:, ::-1], other[:, ::-1], axis=0)
        case "above":
            return _beyond(mask, other, axis=1)
        case "below":
            return _beyond(mask[::-1], other[::-1], axis=1)
        case "larger":
            return _ratio(mask, other)
        case "smaller":
            return _ratio(other, mask)
        case "inside":
            share = float((mask & other).sum() / mask.sum())
            return True if share >= 1 - _OVERLAP else False if share <= _OVERLAP else None
        case _:
            hull = _hull(other | references[1])
            share = float((mask & hull).sum() / mask.sum())
            return True if share >= _MOST else False if share <= _LITTLE else None


def _beyond(first: Mask, second: Mask, axis: int) -> bool | None:
    """Whether `first` has smaller columns (axis 0 summed) or rows than `second`.

    Yes: most of it lies before the other's centre line and most of the other behind its own. No: next
    to nothing of it does. The middles of their boxes must agree, since people go by those too.
    """
    one, two = first.sum(axis=axis), second.sum(axis=axis)
    places = np.arange(len(one))
    centre_one, centre_two = (float((places * line).sum() / line.sum()) for line in (one, two))
    before = float(one[places < centre_two].sum() / one.sum())
    behind = float(two[places > centre_one].sum() / two.sum())
    far = centre_two - centre_one >= _STEP * max(first.shape)
    box_one, box_two = (int(np.flatnonzero(line)[[0, -1]].sum()) for line in (one, two))
    if before <= _LITTLE and centre_one >= centre_two and box_one >= box_two:
        return False
    return True if before >= _MOST and behind >= _MOST and far and box_one < box_two else None


def _ratio(first: Mask, second: Mask) -> bool | None:
    ratio = float(first.sum() / second.sum())
    return True if ratio >= _RATIO else False if ratio <= 1 / _RATIO else None


def _hull(mask: Mask) -> Mask:
    """Pixels within the convex hull of a mask."""
    rows, columns = np.nonzero(mask)
    hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(canvas, hull, 1)
    return canvas.astype(bool)


def _extreme(relation: Relation, candidates: Mapping[str, Mask], references: Sequence[Mask]) -> str | None:
    """The candidate that is first in an order, clearly before the second; None for a near tie or only one."""
    if len(candidates) < 2:
        return None
    side = max(next(iter(candidates.values())).shape)
    if relation in ("largest", "smallest"):
        sizes = {name: int(mask.sum()) for name, mask in candidates.items()}
        first, second = sorted(sizes, key=sizes.__getitem__, reverse=relation == "largest")[:2]
        more, less = (first, second) if relation == "largest" else (second, first)
        return first if _ratio(candidates[more], candidates[less]) else None
    if relation == "nearest":
        away = cv2.distanceTransform(1 - references[0].astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        gaps = {name: float(away[mask].min()) for name, mask in candidates.items()}
        first, second = sorted(gaps, key=gaps.__getitem__)[:2]
        clear = gaps[second] >= _RATIO * gaps[first] and gaps[second] - gaps[first] >= _STEP * side
        return first if clear else None
    verdicts = {
        name: [_holds(_EXTREMES[relation], mask, [other]) for key, other in candidates.items() if key != name]
        for name, mask in candidates.items()
    }
    return next((name for name, holds in verdicts.items() if all(holds)), None)
