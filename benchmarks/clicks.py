"""How long one simulated click takes, and whether it is the right one.

    OMP_NUM_THREADS=1 python benchmarks/clicks.py [--masks 10000]

Prints the median time of `next_click` at 512x512 for targets of 2 % of the area and masks as tools
make them, beside exact distance transforms of both full error regions in the same run, and how
many of so many random pairs of masks get the point of a brute-force oracle (every pixel against
every pixel outside, integer squared distances). Exit code 0 where the median is at most 0.3 ms,
at least 10x faster than SciPy's transforms, and all points agree.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import tyro
from scipy.ndimage import distance_transform_edt

from ibisagent.actions import click_at, click_pixel
from ibisagent.synthesis.clicks import next_click
from ibisagent.types import Click, Mask

SIDE, SHARE = 512, 0.02
GOAL, FACTOR = 0.3e-3, 10.0


@dataclass(frozen=True)
class Config:
    """Settings of one measurement."""

    masks: int = 10_000  # random pairs of at most 24 pixels a side
    large: int = 100  # further pairs of at most 64 pixels a side
    targets: int = 100  # of 2 % of the area, each timed
    seed: int = 0


# --- the oracle -------------------------------------------------------------------------------


def oracle(truth: Mask, mask: Mask, clicked: list[Click]) -> tuple[int, int, bool] | None:
    """METHOD section 5, every pixel of an error against every pixel outside of it."""
    height, width = truth.shape
    taken = {click_pixel(click, height, width) for click in clicked}
    best: tuple[int, int, int, bool] | None = None
    for region, positive in ((truth & ~mask, True), (mask & ~truth, False)):
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        inside = np.argwhere(region)
        for start in range(0, len(inside), 256):
            some = inside[start : start + 256]
            offsets = (some + 1)[:, None, :] - outside[None, :, :]
            squared = (offsets * offsets).sum(axis=2).min(axis=1)
            for (row, column), value in zip(some.tolist(), squared.tolist()):
                if (row, column) not in taken and (best is None or value > best[0]):
                    best = (value, row, column, positive)
    return None if best is None else best[1:]


def shape(rng: np.random.Generator, height: int, width: int) -> Mask:
    """Noise, full and empty masks, thin lines, discs, half pictures, chequers with many ties."""
    rows, columns = np.mgrid[:height, :width]
    kind = rng.integers(7)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    if kind == 1:
        return np.full((height, width), bool(rng.integers(2)))
    if kind == 2:  # lines of one pixel: upright, flat, slanting
        return (rows == rng.integers(height)) | (columns == rng.integers(width)) | (rows == columns)
    if kind == 3:  # equal squares: every maximum occurs several times
        side = int(rng.integers(2, 6))
        return (rows % (side + 1) < side) & (columns % (side + 1) < side)
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.5, max(height, width) / 2)
        mask |= (rows - rng.integers(height)) ** 2 + (columns - rng.integers(width)) ** 2 <= radius**2
    if kind == 4:  # touches the border
        mask[: rng.integers(1, height + 1)] = True
    return mask if kind < 6 else ~mask


def pair(rng: np.random.Generator, most: int) -> tuple[Mask, Mask, list[Click]]:
    """Truth, mask, and clicks that stand: also on the very pixels that the rule would choose."""
    height, width = (int(side) for side in rng.integers(1, most + 1, 2))
    truth = shape(rng, height, width)
    kind = rng.integers(4)
    mask = np.zeros_like(truth) if kind == 0 else shape(rng, height, width)
    if kind == 1:  # a shifted truth: rings and slivers
        mask = np.roll(truth, tuple(rng.integers(-3, 4, 2)), (0, 1))
    clicked: list[Click] = []
    for _ in range(rng.integers(0, 4)):
        chosen = oracle(truth, mask, clicked) if rng.random() < 0.5 and most < 32 else None
        place = chosen[:2] if chosen else (int(rng.integers(height)), int(rng.integers(width)))
        clicked.append(click_at(*place, height, width, bool(rng.integers(2))))
    return truth, mask, clicked


def wrong_points(config: Config, count: int, most: int) -> int:
    """How many of `count` pairs of masks get another point than the oracle's."""
    rng = np.random.default_rng([config.seed, most])
    wrong = 0
    for _ in range(count):
        truth, mask, clicked = pair(rng, most)
        click = next_click(truth, mask, clicked)
        found = None if click is None else (*click_pixel(click, *truth.shape), click.positive)
        wrong += found != oracle(truth, mask, clicked)
    return wrong


# --- times ------------------------------------------------------------------------------------


def target(rng: np.random.Generator) -> tuple[Mask, Mask]:
    """An ellipse of 2 % of the picture and a tool's idea of it: moved, of another size, part missing."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    stretch, angle = rng.uniform(1, 2.5), rng.uniform(0, np.pi)
    major = np.sqrt(SHARE * SIDE**2 / np.pi * stretch)
    centre = rng.uniform(major, SIDE - major, 2)

    def ellipse(at: np.ndarray, factor: float) -> Mask:
        down, right = rows - at[0], columns - at[1]
        along = down * np.cos(angle) + right * np.sin(angle)
        across = right * np.cos(angle) - down * np.sin(angle)
        return np.asarray((along / major) ** 2 + (across * stretch / major) ** 2 <= factor**2)

    truth = ellipse(centre, 1.0)
    return truth, ellipse(centre + rng.normal(0, 6, 2), rng.uniform(0.7, 1.25))


def median(call: Callable[[Mask, Mask], object], pairs: list[tuple[Mask, Mask]], repeats: int) -> float:
    """Seconds of one call: the median over pairs and repeats."""
    times = []
    for truth, mask in pairs:
        for _ in range(repeats):
            began = time.perf_counter()
            call(truth, mask)
            times.append(time.perf_counter() - began)
    return float(np.median(times))


def scipy_transforms(truth: Mask, mask: Mask) -> None:
    for region in (truth & ~mask, mask & ~truth):
        distance_transform_edt(np.pad(region, 1))


def cv2_transforms(truth: Mask, mask: Mask) -> None:
    for region in (truth & ~mask, mask & ~truth):
        cv2.distanceTransform(np.pad(region, 1).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def main(config: Config) -> int:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(config.seed)
    pairs = [target(rng) for _ in range(config.targets)]
    share = float(np.mean([truth.mean() for truth, _ in pairs]))
    ours = median(next_click, pairs, 5)
    scipys, cv2s = median(scipy_transforms, pairs, 1), median(cv2_transforms, pairs, 1)
    print(f"{SIDE}x{SIDE}, {len(pairs)} targets of {100 * share:.1f} %: one click {1e3 * ours:.3f} ms")
    print(f"two full exact transforms: SciPy {1e3 * scipys:.1f} ms ({scipys / ours:.0f}x), ", end="")
    print(f"OpenCV {1e3 * cv2s:.1f} ms ({cv2s / ours:.0f}x)")
    speckled = [(truth, mask ^ (rng.random(mask.shape) < 0.02)) for truth, mask in pairs[:10]]
    spread = median(next_click, speckled, 3)
    print(f"with errors all over the picture (2 % of the pixels wrong): {1e3 * spread:.2f} ms")
    began = time.perf_counter()
    wrong = wrong_points(config, config.masks, 24) + wrong_points(config, config.large, 64)
    pairs_done = config.masks + config.large
    print(
        f"{pairs_done - wrong} of {pairs_done} points are the oracle's ({time.perf_counter() - began:.0f} s)"
    )
    return 0 if ours <= GOAL and scipys >= FACTOR * ours and not wrong else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
