"""The click rule against a brute-force oracle with integer squared distances."""

import time

import numpy as np
import pytest

from ibisagent.actions import click_at, click_pixel
from ibisagent.synthesis.clicks import ClickSimulator, next_click


def oracle(truth, mask, clicked=()):
    """METHOD section 5, pixel by pixel: (row, column, positive) or None."""
    height, width = truth.shape
    best = None
    for region, positive in ((truth & ~mask, True), (mask & ~truth, False)):
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        for row, column in np.argwhere(padded):
            if any(click_pixel(c, height, width) == (row - 1, column - 1) for c in clicked):
                continue
            squared = int(((outside - (row, column)) ** 2).sum(axis=1).min())
            if best is None or squared > best[0]:
                best = (squared, int(row) - 1, int(column) - 1, positive)
    return None if best is None else best[1:]


def found(truth, mask, clicked=()):
    click = next_click(truth, mask, clicked)
    return None if click is None else (*click_pixel(click, *truth.shape), click.positive)


def shapes(rng, height, width):
    """Noise, blobs, thin lines, full and empty masks, borders."""
    kind = rng.integers(6)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    if kind == 1:
        return np.full((height, width), bool(rng.integers(2)))
    if kind == 2:
        mask = np.zeros((height, width), bool)
        mask[rng.integers(height)] = True
        mask[:, rng.integers(width)] = True
        return mask
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        cy, cx, radius = rng.integers(height), rng.integers(width), rng.uniform(1, 7)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
    if kind == 3:
        mask[: rng.integers(1, height + 1), : rng.integers(1, width + 1)] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_oracle_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    for _ in range(400):
        height, width = rng.integers(1, 18, 2)
        truth, mask = shapes(rng, height, width), shapes(rng, height, width)
        if rng.random() < 0.3:
            mask = np.zeros_like(truth)
        clicked = [
            click_at(int(rng.integers(height)), int(rng.integers(width)), height, width, True)
            for _ in range(rng.integers(0, 4))
        ]
        assert found(truth, mask, clicked) == oracle(truth, mask, clicked)


def test_no_mask_counts_as_empty_and_truth_reached_is_the_end():
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    assert next_click(truth, None) == click_at(4, 4, 9, 9, True)
    assert next_click(truth, truth) is None
    assert next_click(np.zeros((4, 4), bool), None) is None


def test_clicked_pixels_run_out():
    truth = np.zeros((5, 5), bool)
    truth[1, 1:3] = True
    clicks = []
    while (click := next_click(truth, None, clicks)) is not None:
        clicks.append(click)
    assert [click_pixel(c, 5, 5) for c in clicks] == [(1, 1), (1, 2)]


def test_a_full_picture_is_clicked_in_its_middle_because_the_border_is_outside():
    assert found(np.ones((7, 7), bool), np.zeros((7, 7), bool)) == (3, 3, True)
    assert found(np.zeros((7, 7), bool), np.ones((7, 7), bool)) == (3, 3, False)


def test_missed_wins_a_tie():
    truth, mask = np.zeros((3, 9), bool), np.zeros((3, 9), bool)
    truth[1, 7], mask[1, 1] = True, True
    assert found(truth, mask) == (1, 7, True)


def test_large_regions_stay_exact():
    """Beyond single precision: the two maxima differ by one in the squared distance."""
    truth = np.zeros((2401, 5200), bool)
    truth[:2399, :2399] = True  # squared distance 1200^2 in the middle
    truth[:, 2450:5200] = True  # 1201^2
    click = next_click(truth, None)
    assert click_pixel(click, *truth.shape)[0] == 1200
    assert click_pixel(click, *truth.shape)[1] >= 2450 + 1200


@pytest.mark.parametrize("kind", ["centre", "component", "uniform", "jittered", "people"])
def test_simulators_click_in_the_error_and_repeat_with_their_seed(kind):
    rng = np.random.default_rng(5)
    for _ in range(100):
        truth, mask = shapes(rng, 16, 20), shapes(rng, 16, 20)
        clicks = [
            ClickSimulator(kind).next_click(truth, mask, (), np.random.default_rng(3)) for _ in range(2)
        ]
        assert clicks[0] == clicks[1]
        if clicks[0] is None:
            assert (truth == mask).all()
            continue
        row, column = click_pixel(clicks[0], 16, 20)
        assert (truth & ~mask if clicks[0].positive else mask & ~truth)[row, column]


def test_component_prefers_the_larger_area_over_the_larger_depth():
    truth = np.zeros((40, 40), bool)
    truth[2:9, 2:9] = True  # deep
    truth[20:24, 2:38] = True  # large
    assert found(truth, np.zeros_like(truth))[0] == 5
    click = ClickSimulator("component").next_click(truth, None, (), np.random.default_rng(0))
    assert 20 <= click_pixel(click, 40, 40)[0] < 24


def test_fast_at_512():
    y, x = np.mgrid[:512, :512]
    truth = (y - 200) ** 2 + (x - 300) ** 2 < 41**2  # 2 % of the picture
    mask = (y - 205) ** 2 + (x - 303) ** 2 < 40**2
    times = []
    for _ in range(30):
        start = time.perf_counter()
        next_click(truth, mask)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 3e-3  # 0.3 ms on an idle core; ten times that still finds a slow path
    print(f"median {np.median(times) * 1e3:.3f} ms")
