"""Pictures that nobody took: a lesson's target moved elsewhere, or covered by healthy tissue.

For sets of few patients (BrainTumor: 28 training pictures of neighbouring slices), where a network
otherwise learns the patients by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]  # H x W
COMPOSED = {"BrainTumor": "brain tumor"}  # sets whose pictures are composed, and what is moved


def compose(
    pixels: Grey, mask: Grey, donors: Sequence[tuple[Grey, Grey]], rng: np.random.Generator
) -> tuple[Grey, Grey]:
    """A picture with its target as it is, covered, moved in from a donor, or both of these.

    `pixels` and `mask` (0 or 255) have one shape; donors are such pairs. Returns new arrays; the mask
    is empty where the target was covered and none came in.
    """
    draw = rng.random()
    if draw < 0.35:
        return pixels, mask
    if draw < 0.85:
        pixels, mask = _cover(pixels, mask, rng)
    if draw < 0.70 or draw >= 0.85:
        donor = donors[int(rng.integers(len(donors)))]
        pixels, mask = _move_in(pixels, mask, *donor, rng)
    return pixels, mask


def _cover(pixels: Grey, mask: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
    """Healthy tissue over the target: the other side's where that is free, else grown in from around."""
    size = int(rng.integers(3, 8)) * 2 + 1
    wide = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    other = np.ascontiguousarray(pixels[:, ::-1])
    if rng.random() < 0.5 and not (wide & np.ascontiguousarray(mask[:, ::-1])).any():
        healed = other
    else:
        healed = cv2.inpaint(pixels, wide, 5, cv2.INPAINT_TELEA)
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * float(rng.uniform(2, 9))
        healed = np.clip(healed + cv2.GaussianBlur(grain, (0, 0), 0.8), 0, 255).astype(np.uint8)
    return _blend(pixels, healed, wide, 2.0), np.zeros_like(mask)


def _move_in(
    pixels: Grey, mask: Grey, donor: Grey, shape: Grey, rng: np.random.Generator
) -> tuple[Grey, Grey]:
    """The donor's target, turned, scaled and set at a random place inside the head."""
    height, width = pixels.shape
    ys, xs = np.nonzero(shape)
    if not len(ys):
        return pixels, mask
    head = _inside(pixels)
    rows, columns = np.nonzero(head)
    if not len(rows):
        return pixels, mask
    k = int(rng.integers(len(rows)))
    scale = float(np.exp(rng.uniform(-0.7, 0.4))) * max(height, width) / max(donor.shape)
    centre, angle = (float(xs.mean()), float(ys.mean())), float(rng.uniform(-180, 180))
    matrix = cv2.getRotationMatrix2D(centre, angle, scale)
    matrix[:, 2] += (columns[k] - xs.mean(), rows[k] - ys.mean())
    moved = cv2.warpAffine(shape, matrix, (width, height), flags=cv2.INTER_LINEAR)
    moved = np.where((moved > 127) & (cv2.dilate(head, np.ones((9, 9), np.uint8)) > 0), 255, 0).astype(
        np.uint8
    )
    if (moved > 0).sum() < 30:
        return pixels, mask
    looks = cv2.warpAffine(donor, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32)
    # the same step against its surroundings as in the donor, a little stronger or weaker
    around_there = _level_around(donor, shape)
    around_here = _level_around(pixels, moved)
    looks = (looks - around_there) * float(np.exp(rng.uniform(-0.4, 0.25))) + around_here
    looks = np.clip(looks, 0, 255).astype(np.uint8)
    rim = cv2.dilate(moved, np.ones((3, 3), np.uint8))
    return _blend(pixels, looks, rim, float(rng.uniform(0.7, 1.8))), np.maximum(mask, moved)


def _inside(pixels: Grey) -> Grey:
    """The head without its rim: 0 or 255."""
    bright = (cv2.GaussianBlur(pixels, (0, 0), 2) > 25).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
    if count < 2:
        return np.zeros_like(pixels)
    head = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    head = cv2.morphologyEx(head, cv2.MORPH_CLOSE, np.ones((25, 25), np.uint8))
    deep = cv2.distanceTransform(cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5)
    deep = deep[1:-1, 1:-1]
    return np.where(deep > 0.3 * deep.max(), 255, 0).astype(np.uint8)


def _level_around(pixels: Grey, mask: Grey) -> float:
    ring = (cv2.dilate(mask, np.ones((15, 15), np.uint8)) > 0) & (mask == 0)
    return float(np.median(pixels[ring])) if ring.any() else float(pixels.mean())


def _blend(under: Grey, over: Grey, mask: Grey, sigma: float) -> Grey:
    alpha = cv2.GaussianBlur(mask, (0, 0), sigma).astype(np.float32) / 255
    return np.clip(under * (1 - alpha) + over * alpha, 0, 255).astype(np.uint8)
