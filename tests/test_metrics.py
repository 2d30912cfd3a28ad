"""Every metric against an independent implementation, on 1,000 random and 30 adversarial mask pairs."""

import math
from dataclasses import astuple
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy.spatial.distance import cdist
from skimage.measure import label
from skimage.segmentation import find_boundaries

from ibisagent import metrics
from ibisagent.errors import InputError

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, float]]


def blobs(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(count):
        row, column = rng.uniform(-2, height + 2), rng.uniform(-2, width + 2)
        a, b = rng.uniform(0.8, 6, 2)
        mask |= ((rows - row) / a) ** 2 + ((columns - column) / b) ** 2 <= 1
    return mask


def random_pairs() -> list[Pair]:
    rng = np.random.default_rng(3)
    pairs = []
    for index in range(1000):
        height, width = rng.integers(5, 27, 2)
        if index % 4 == 0:
            truth, predicted = (rng.random((2, height, width)) < rng.uniform(0.02, 0.6)).astype(bool)
        else:
            truth = blobs(rng, height, width, int(rng.integers(1, 5)))
            predicted = truth ^ blobs(rng, height, width, int(rng.integers(0, 3)))
        pairs.append((truth, predicted, (float(rng.uniform(0.3, 3)), float(rng.uniform(0.3, 3)))))
    return pairs


def adversarial_pairs() -> list[Pair]:
    """Empty, full, one pixel, touching, thin, anisotropic; each both ways round."""

    def at(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
        mask = np.zeros((12, 15), bool)
        for top, left, bottom, right in boxes:
            mask[top:bottom, left:right] = True
        return mask

    empty, full, one = at(), at((0, 0, 12, 15)), at((5, 7, 6, 8))
    corner, edge = at((0, 0, 1, 1)), at((0, 3, 1, 9))
    touching, apart = at((2, 2, 6, 6), (6, 6, 10, 10)), at((2, 2, 6, 6), (7, 7, 10, 10))
    row, column = at((6, 0, 7, 15)), at((0, 7, 12, 8))
    frame = at((0, 0, 12, 15)) & ~at((1, 1, 11, 14))
    checker = np.indices((12, 15)).sum(0) % 2 == 0
    iso, flat, tall = (1.0, 1.0), (0.1, 5.0), (4.0, 0.2)
    halves = [
        (empty, empty, iso), (full, full, iso), (one, one, flat), (empty, full, iso), (empty, one, iso),
        (full, one, flat), (one, corner, tall), (corner, full, iso), (touching, apart, iso), (touching, full, flat),
        (row, column, tall), (row, frame, flat), (frame, full, iso), (checker, ~checker, flat), (edge, row, tall),
    ]  # fmt: skip
    return [pair for a, b, spacing in halves for pair in ((a, b, spacing), (b, a, spacing))]


PAIRS = random_pairs() + adversarial_pairs()


def test_there_are_enough_pairs() -> None:
    assert len(random_pairs()) == 1000 and len(adversarial_pairs()) == 30
    assert sum(not a.any() or not b.any() for a, b, _ in PAIRS) > 5


def test_iou_equals_pycocotools_and_dice_equals_brute_force() -> None:
    for truth, predicted, _ in PAIRS:
        a, b = (coco.encode(np.asfortranarray(mask, np.uint8)) for mask in (truth, predicted))
        if truth.any() or predicted.any():
            [[expected]] = coco.iou([b], [a], [0])
            assert metrics.iou(truth, predicted) == pytest.approx(expected, abs=1e-9)
        pixels = [(bool(t), bool(p)) for t, p in zip(truth.flat, predicted.flat)]
        both, either = sum(t and p for t, p in pixels), sum(t + p for t, p in pixels)
        if either:
            assert metrics.dice(truth, predicted) == pytest.approx(2 * both / either, abs=1e-9)


@pytest.mark.parametrize(("policy", "value"), [("one", 1.0), ("zero", 0.0), ("skip", None)])
def test_both_empty_is_what_the_policy_says(policy: metrics.Empty, value: float | None) -> None:
    empty = np.zeros((4, 5), bool)
    assert metrics.iou(empty, empty, policy) == value == metrics.dice(empty, empty, policy)
    assert metrics.iou(empty, ~empty, policy) == 0.0 == metrics.dice(~empty, empty, policy)


def surface_points(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Inner boundary by scikit-image; the border of the picture counts as outside."""
    inner = find_boundaries(np.pad(mask, 1), connectivity=1, mode="inner")[1:-1, 1:-1]
    return np.argwhere(inner) * np.array(spacing)


def test_surface_metrics_equal_all_pairs_of_points() -> None:
    measured = 0
    for truth, predicted, spacing in PAIRS:
        found = metrics.surface_distances(truth, predicted, spacing)
        if not truth.any() or not predicted.any():
            assert found is None
            continue
        measured += 1
        assert found is not None
        distances = cdist(surface_points(predicted, spacing), surface_points(truth, spacing))
        to_truth, to_prediction = distances.min(1), distances.min(0)
        everything = np.concatenate([to_truth, to_prediction])
        assert found.assd() == pytest.approx(everything.mean(), abs=1e-6)
        expected = max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))
        assert found.hd95() == pytest.approx(expected, abs=1e-6)
        for tolerance in (0.0, 0.77, 2.03):
            assert found.nsd(tolerance) == pytest.approx(np.mean(everything <= tolerance), abs=1e-6)
    assert measured > 990


def test_surfaces_work_in_three_axes() -> None:
    truth, predicted = np.zeros((2, 6, 7, 8), bool)
    truth[1:4, 2:5, 2:6] = True
    predicted[2:5, 2:5, 2:6] = True
    found = metrics.surface_distances(truth, predicted, (5.0, 1.0, 1.0))
    assert found is not None and found.hd95() == 5.0
    assert metrics.surface_distances(truth, truth, (5.0, 1.0, 1.0)).nsd(0.0) == 1.0


def best_matching(ious: NDArray[np.float64], threshold: float) -> int:
    """Most pairs with IoU >= threshold, by trying every assignment."""
    rows, columns = ious.shape
    if rows > columns:
        ious, rows, columns = ious.T, columns, rows
    orders = permutations(range(columns), rows)
    return max(sum(ious[row, column] >= threshold for row, column in enumerate(order)) for order in orders)


def test_object_matching_equals_trying_every_assignment() -> None:
    measured = 0
    for truth, predicted, _ in PAIRS:
        true_labels, found_labels = label(truth, connectivity=2), label(predicted, connectivity=2)
        true_count, found_count = true_labels.max(), found_labels.max()
        if min(true_count, found_count) > 4 or max(true_count, found_count) > 6:
            continue
        measured += 1
        ious = np.array(
            [
                [
                    np.sum((true_labels == i) & (found_labels == j))
                    / np.sum((true_labels == i) | (found_labels == j))
                    for j in range(1, found_count + 1)
                ]
                for i in range(1, true_count + 1)
            ]
        ).reshape(true_count, found_count)
        for threshold in (0.1, 0.5):
            matched = best_matching(ious, threshold) if ious.size else 0
            counts = metrics.match_objects(truth, predicted, threshold)
            expected = metrics.ObjectCounts(matched, found_count - matched, true_count - matched)
            assert counts == expected
            if true_count + found_count:
                f1 = metrics.f1_score(*astuple(counts))
                assert float(f1) == pytest.approx(2 * matched / (true_count + found_count))
    assert measured > 700


def test_presence_metrics_equal_the_correlation_of_the_answers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        truth, said = rng.random((2, 12)) < rng.uniform(0.1, 0.9)
        tp, fp = int(sum(truth & said)), int(sum(~truth & said))
        fn, tn = int(sum(truth & ~said)), int(sum(~truth & ~said))
        found = float(metrics.mcc(tp, fp, fn, tn))
        if truth.std() and said.std():
            assert found == pytest.approx(np.corrcoef(truth, said)[0, 1], abs=1e-9)
        else:
            assert math.isnan(found)
        if truth.any():
            assert float(metrics.sensitivity(tp, fn)) == pytest.approx(said[truth].mean())
        if not truth.all():
            assert float(metrics.specificity(tn, fp)) == pytest.approx(1 - said[~truth].mean())


def test_counts_are_taken_element_by_element() -> None:
    values = metrics.f1_score(np.array([1, 0, 0]), np.array([0, 2, 0]), np.array([1, 0, 0]))
    assert values[0] == pytest.approx(2 / 3) and values[1] == 0 and math.isnan(values[2])


def test_clicks_are_counted_from_the_mask_before_the_first() -> None:
    ious = (0.0, 0.5, 0.84, 0.85, 0.7)
    assert metrics.number_of_clicks(ious, 0.85) == (3, True)
    assert metrics.number_of_clicks(ious, 0.9) == (20, False)
    assert metrics.number_of_clicks(ious, 0.85, limit=2) == (2, False)
    assert metrics.number_of_clicks((0.9,), 0.85) == (0, True)
    assert metrics.click_area((0.0, 1.0), limit=4) == pytest.approx(3.5 / 4)
    assert metrics.click_area((0.6,), limit=20) == pytest.approx(0.6)


def test_calibration_error_equals_bins_by_hand() -> None:
    rng = np.random.default_rng(1)
    estimates, qualities = rng.random(500), rng.random(500)
    estimates[:3] = 0.0, 1.0, 0.1
    expected, edges = 0.0, np.arange(11) / 10
    for index in range(10):
        last = index == 9
        inside = (estimates >= edges[index]) & ((estimates < edges[index + 1]) | (last & (estimates <= 1)))
        if inside.any():
            expected += inside.mean() * abs(estimates[inside].mean() - qualities[inside].mean())
    columns = metrics.calibration_columns(estimates, qualities)
    assert float(metrics.calibration_error(columns.sum(0))) == pytest.approx(expected, abs=1e-9)
    assert float(metrics.calibration_error(metrics.calibration_columns([0.7], [0.7]).sum(0))) == 0.0


def test_sizes_must_agree() -> None:
    small, large = np.zeros((4, 4), bool), np.zeros((8, 12), bool)
    small[:2] = True
    large[:4] = True
    for function in (metrics.iou, metrics.surface_distances, metrics.match_objects):
        with pytest.raises(InputError, match="one shape"):
            function(small, large)
