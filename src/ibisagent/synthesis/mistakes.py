"""What a teacher begins from or does on purpose: masks that are good or elsewhere, and wrong clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from ibisagent.actions import click_at, click_pixel
from ibisagent.environment import REPEAT_RADIUS
from ibisagent.masks import iou
from ibisagent.synthesis.clicks import next_click
from ibisagent.types import Click, Mask

_MISSES = 0.08  # a mask is elsewhere where it covers less of the target than this, and vice versa
_MARGIN = 0.03  # of the longest side: how far outside the target a wrong click lies
_TRIES = 12


def good_mask(truth: Mask, stop_at: float, rng: np.random.Generator) -> Mask:
    """A mask as a tool might draw it, with an IoU of at least `stop_at` and at least 0.8."""
    radius = max(1.0, float(np.sqrt(truth.sum() / np.pi)))
    for attempt in range(_TRIES):
        sigma = max(0.3, radius * float(rng.uniform(0.05, 0.3)) / (attempt + 1))
        soft = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        mask = np.asarray(soft > rng.uniform(0.35, 0.65))
        if iou(mask, truth) >= max(stop_at, 0.8):
            return mask
    return truth.copy()


def wrong_mask(truth: Mask, others: Sequence[Mask], rng: np.random.Generator) -> Mask | None:
    """Another object's mask, else the target's own shape somewhere else; None where neither fits."""
    elsewhere = [mask for mask in others if mask.any() and misses(mask, truth)]
    if elsewhere:
        return elsewhere[int(rng.integers(len(elsewhere)))]
    rows, columns = np.nonzero(truth)
    height, width = truth.shape
    for _ in range(_TRIES):
        down = rows - rows.min() + int(rng.integers(-(np.ptp(rows) // 2), height))
        right = columns - columns.min() + int(rng.integers(-(np.ptp(columns) // 2), width))
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        mask = np.zeros_like(truth)
        mask[down[inside], right[inside]] = True
        if 2 * inside.sum() >= len(rows) and misses(mask, truth):
            return mask
    return None


def wrong_click(
    truth: Mask,
    others: Sequence[Mask],
    mask: Mask | None,
    clicks: Sequence[Click],
    rng: np.random.Generator,
) -> Click | None:
    """A click that makes things worse: positive well outside the target, or negative within what is right.

    Positive ones prefer `others`, the masks of other objects. None where the picture has no room for one.
    """
    shape = (truth.shape[0], truth.shape[1])
    right = np.zeros_like(truth) if mask is None else truth & mask
    if right.any() and rng.random() < 0.4:
        click = next_click(right, None, blocked(clicks, shape))
        return None if click is None else replace(click, positive=False)
    size = 2 * max(1, round(_MARGIN * max(shape))) + 1
    covered = truth if mask is None else truth | mask
    outside = cv2.dilate(covered.astype(np.uint8), np.ones((size, size), np.uint8)) == 0
    other = np.logical_or.reduce([*others, np.zeros_like(truth)]) & outside
    region = other if other.any() and rng.random() < 0.6 else outside
    for click in blocked(clicks, shape):
        region[click_pixel(click, *shape)] = False
    rows, columns = np.nonzero(region)
    if not len(rows):
        return None
    pick = int(rng.integers(len(rows)))
    return click_at(int(rows[pick]), int(columns[pick]), *shape, True)


def misses(mask: Mask, truth: Mask) -> bool:
    """Whether a mask is elsewhere: it covers next to nothing of the target, and is next to nothing of it."""
    both = int((mask & truth).sum())
    return both < _MISSES * truth.sum() and both < _MISSES * max(int(mask.sum()), 1)


def blocked(clicks: Sequence[Click], shape: tuple[int, int]) -> list[Click]:
    """Clicks on every pixel that the environment would call a repetition of an earlier one."""
    height, width = shape
    found = []
    for click in clicks:
        row, column = click_pixel(click, height, width)
        down, right = int(REPEAT_RADIUS * height) + 1, int(REPEAT_RADIUS * width) + 1
        for y in range(max(0, row - down), min(height, row + down + 1)):
            for x in range(max(0, column - right), min(width, column + right + 1)):
                found.append(click_at(y, x, height, width, click.positive))
    return found
