"""Simulated clicks from the true mask G and the current mask M (METHOD section 5).

The rule: FN = G and not M, FP = M and not G; exact Euclidean distances of both to the nearest pixel
outside, where the picture's border counts as outside; already clicked pixels count as 0; the
error with the larger maximum is clicked at its first maximum in row-major order, positive in FN
(which wins ties) and negative in FP. Distances are compared as integers (squared), so the point
never depends on rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ibisagent.actions import click_at, click_pixel
from ibisagent.types import Click, Mask

_SINGLE_PRECISION_LIMIT = 1000.0  # distances up to here have squares that are exact after rounding
_TRIES = 20

Kind = Literal["centre", "component", "uniform", "jittered", "people"]


@dataclass(frozen=True)
class _Error:
    """One error region within its bounding box."""

    squared: NDArray[np.int64]  # squared distance to the nearest pixel outside; 0: not clickable
    top: int
    left: int
    positive: bool

    def first_maximum(self) -> tuple[int, int]:
        row, column = divmod(int(self.squared.argmax()), self.squared.shape[1])
        return row, column

    def click(self, row: int, column: int, shape: tuple[int, int]) -> Click:
        return click_at(self.top + row, self.left + column, *shape, self.positive)


def next_click(truth: Mask, mask: Mask | None, clicked: Sequence[Click] = ()) -> Click | None:
    """The click of METHOD section 5, or None where no pixel is left (`no_error_left`).

    `truth` and `mask` are bool HxW (None: empty); `clicked` holds earlier clicks, whose pixels are
    not clicked again.
    """
    error = _larger_error(truth, mask, clicked)
    return None if error is None else error.click(*error.first_maximum(), (truth.shape[0], truth.shape[1]))


@dataclass(frozen=True)
class ClickSimulator:
    """Ways to click behind one interface; only "centre" ignores the generator.

    centre: the rule of METHOD section 5. component: the same within the largest connected
    component of both errors. uniform: any pixel of the rule's error, all alike. jittered: the
    rule's point moved by Gaussian noise of `spread` times its distance to the border, within the
    error. people: a pixel of the error drawn in proportion to its distance to the border, since
    people click well inside but seldom in the middle.
    """

    kind: Kind = "centre"
    spread: float = 0.35

    def next_click(
        self,
        truth: Mask,
        mask: Mask | None,
        clicked: Sequence[Click],
        generator: np.random.Generator,
    ) -> Click | None:
        """As `next_click` of this module; random kinds draw from `generator` alone."""
        if self.kind == "component":
            truth, mask = _largest_component(truth, mask)
        error = _larger_error(truth, mask, clicked)
        if error is None:
            return None
        if self.kind == "uniform":
            return error.click(*_draw(error, 0.0, generator), (truth.shape[0], truth.shape[1]))
        if self.kind == "people":
            return error.click(*_draw(error, 1.0, generator), (truth.shape[0], truth.shape[1]))
        row, column = error.first_maximum()
        if self.kind == "jittered":
            row, column = _jitter(error, row, column, self.spread, generator)
        return error.click(row, column, (truth.shape[0], truth.shape[1]))


def _larger_error(truth: Mask, mask: Mask | None, clicked: Sequence[Click]) -> _Error | None:
    missed = truth if mask is None else np.greater(truth, mask)
    added = None if mask is None else np.greater(mask, truth)
    pixels = [click_pixel(click, *(truth.shape[0], truth.shape[1])) for click in clicked]
    best: _Error | None = None
    for region, positive in ((missed, True), (added, False)):
        error = None if region is None else _measure(region, positive, pixels)
        if error is not None and (best is None or error.squared.max() > best.squared.max()):
            best = error
    return best


def _measure(region: Mask, positive: bool, clicked: Sequence[tuple[int, int]]) -> _Error | None:
    """Squared distances of one error; None where nothing of it can be clicked.

    The nearest pixel outside never lies further away than the ring around the bounding box.
    """
    bytes_ = np.ascontiguousarray(region).view(np.uint8)
    left, top, width, height = cv2.boundingRect(bytes_)
    if width == 0:
        return None
    box = bytes_[top : top + height, left : left + width]
    padded = cv2.copyMakeBorder(box, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if distance.max() > _SINGLE_PRECISION_LIMIT:
        distance = distance_transform_edt(padded)
    inner = distance[1:-1, 1:-1]
    squared = np.rint(inner * inner).astype(np.int64)
    for row, column in clicked:
        if top <= row < top + height and left <= column < left + width:
            squared[row - top, column - left] = 0
    return _Error(squared, top, left, positive) if squared.any() else None


def _largest_component(truth: Mask, mask: Mask | None) -> tuple[Mask, Mask]:
    """Truth and mask that differ only in the largest 8-connected component of both errors."""
    mask = np.zeros_like(truth) if mask is None else mask
    chosen, size = None, 0
    for region in (truth & ~mask, mask & ~truth):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if len(areas) and areas.max() > size:
            size = int(areas.max())
            chosen = labels == 1 + int(areas.argmax())
    return (truth, mask) if chosen is None else (truth, np.where(chosen, mask, truth))


def _draw(error: _Error, power: float, generator: np.random.Generator) -> tuple[int, int]:
    """A pixel drawn with weight distance ** power."""
    rows, columns = np.nonzero(error.squared)
    weights = np.sqrt(error.squared[rows, columns]) ** power
    k = int(generator.choice(len(rows), p=weights / weights.sum()))
    return int(rows[k]), int(columns[k])


def _jitter(
    error: _Error, row: int, column: int, spread: float, generator: np.random.Generator
) -> tuple[int, int]:
    """Move a point by noise that keeps it within the error; after some tries it stays."""
    scale = spread * float(np.sqrt(error.squared[row, column]))
    height, width = error.squared.shape
    for _ in range(_TRIES):
        down, right = generator.normal(0.0, scale, 2)
        moved = round(row + down), round(column + right)
        if 0 <= moved[0] < height and 0 <= moved[1] < width and error.squared[moved]:
            return moved
    return row, column
