"""Named metrics for pairs of masks and for lists of cases, each with its policy for empty masks.

Masks are bool arrays of one shape (HxW, or any number of axes), truth first. Where both masks are
empty, `empty` says what an overlap metric is: "one", "zero", or "skip" (None: the case is left out).
Functions that take counts work element by element on arrays, so that the same line of code gives
a value and all its bootstrap replicates (evaluation/intervals.py). docs/evaluation.md lists the
formulas beside those of other evaluators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from ibisagent.errors import InputError
from ibisagent.types import Mask

Empty = Literal["one", "zero", "skip"]
Floats = NDArray[np.float64]

CLICK_LIMIT = 20  # of NoC: clicks at most
OBJECT_IOU = 0.5  # two objects match from this IoU on


# --- overlap ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one pair of masks; every overlap metric follows from them."""

    intersection: int
    truth: int
    predicted: int

    @property
    def union(self) -> int:
        return self.truth + self.predicted - self.intersection

    def iou(self, empty: Empty = "one") -> float | None:
        """Intersection over union, [0, 1]; None where both are empty and the policy is "skip"."""
        return self.intersection / self.union if self.union else _both_empty(empty)

    def dice(self, empty: Empty = "one") -> float | None:
        """Twice the intersection over the sum of both sizes, [0, 1]; None as for `iou`."""
        total = self.truth + self.predicted
        return 2 * self.intersection / total if total else _both_empty(empty)


def overlap(truth: Mask, predicted: Mask) -> Overlap:
    """Count the pixels of two masks. Raises InputError where their shapes differ."""
    truth, predicted = _pair(truth, predicted)
    return Overlap(
        int(np.count_nonzero(truth & predicted)),
        int(np.count_nonzero(truth)),
        int(np.count_nonzero(predicted)),
    )


def iou(truth: Mask, predicted: Mask, empty: Empty = "one") -> float | None:
    """Intersection over union of one pair; see `Overlap.iou`."""
    return overlap(truth, predicted).iou(empty)


def dice(truth: Mask, predicted: Mask, empty: Empty = "one") -> float | None:
    """Dice coefficient (DSC, F1 over pixels) of one pair; see `Overlap.dice`."""
    return overlap(truth, predicted).dice(empty)


def _both_empty(empty: Empty) -> float | None:
    return {"one": 1.0, "zero": 0.0, "skip": None}[empty]


def _pair(truth: Mask, predicted: Mask) -> tuple[Mask, Mask]:
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    if truth.shape != predicted.shape:
        raise InputError("both masks have one shape", f"{truth.shape} and {predicted.shape}")
    return truth, predicted


# --- surfaces ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing that was given.

    The surface of a mask is its pixels with a neighbour outside, across faces; the array's border
    counts as outside.
    """

    to_truth: Floats  # one for each surface pixel of the prediction
    to_prediction: Floats  # one for each surface pixel of the truth

    def nsd(self, tolerance: float) -> float:
        """Normalised surface Dice, [0, 1]: the share of both surfaces within `tolerance`."""
        near = np.count_nonzero(self.to_truth <= tolerance) + np.count_nonzero(
            self.to_prediction <= tolerance
        )
        return near / (self.to_truth.size + self.to_prediction.size)

    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles (linear interpolation)."""
        return float(max(np.percentile(self.to_truth, 95), np.percentile(self.to_prediction, 95)))

    def assd(self) -> float:
        """Mean distance over the pixels of both surfaces."""
        total = self.to_truth.sum() + self.to_prediction.sum()
        return float(total / (self.to_truth.size + self.to_prediction.size))


def surface_distances(
    truth: Mask, predicted: Mask, spacing: Sequence[float] | None = None
) -> SurfaceDistances | None:
    """Exact distances between the surfaces (scipy's Euclidean distance transform).

    `spacing`: size of a pixel along each axis, such as millimetres; None: 1, so pixels. None is
    returned where a mask is empty: no surface, no distance.
    """
    truth, predicted = _pair(truth, predicted)
    if not truth.any() or not predicted.any():
        return None
    box = ndimage.find_objects((truth | predicted).astype(np.uint8))[0]
    steps = tuple(spacing) if spacing is not None else (1.0,) * truth.ndim
    true_surface, predicted_surface = _surface(truth[box]), _surface(predicted[box])
    return SurfaceDistances(
        to_truth=ndimage.distance_transform_edt(~true_surface, sampling=steps)[predicted_surface],
        to_prediction=ndimage.distance_transform_edt(~predicted_surface, sampling=steps)[true_surface],
    )


def _surface(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask)


# --- objects ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectCounts:
    """Objects found, invented and missed in one picture."""

    true_positives: int
    false_positives: int
    false_negatives: int


def match_objects(truth: Mask, predicted: Mask, threshold: float = OBJECT_IOU) -> ObjectCounts:
    """Match the connected components (8-connected, HxW) of both masks one to one.

    Hungarian matching: as many pairs with IoU >= `threshold` as possible, then the highest IoU.
    """
    truth, predicted = _pair(truth, predicted)
    true_count, true_labels = cv2.connectedComponents(np.ascontiguousarray(truth, np.uint8))
    found_count, found_labels = cv2.connectedComponents(np.ascontiguousarray(predicted, np.uint8))
    true_count, found_count = true_count - 1, found_count - 1
    if not true_count or not found_count:
        return ObjectCounts(0, found_count, true_count)
    joint = np.bincount(
        true_labels.ravel().astype(np.int64) * (found_count + 1) + found_labels.ravel(),
        minlength=(true_count + 1) * (found_count + 1),
    ).reshape(true_count + 1, found_count + 1)
    shared = joint[1:, 1:]
    sizes = joint.sum(1)[1:, None] + joint.sum(0)[None, 1:]
    ious = shared / (sizes - shared)
    # a matched pair is worth more than any gain in IoU over all pairs together
    worth = (ious >= threshold) + ious / (2 * min(true_count, found_count))
    rows, columns = linear_sum_assignment(worth, maximize=True)
    matched = int(np.count_nonzero(ious[rows, columns] >= threshold))
    return ObjectCounts(matched, found_count - matched, true_count - matched)


# --- from counts; element by element on arrays ------------------------------------------------


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Quotient; NaN where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def f1_score(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Floats:
    """2 TP / (2 TP + FP + FN); NaN where all are 0."""
    tp, fp, fn = (np.asarray(value, float) for value in (tp, fp, fn))
    return ratio(2 * tp, 2 * tp + fp + fn)


def sensitivity(tp: ArrayLike, fn: ArrayLike) -> Floats:
    """TP / (TP + FN), where positive means: the target is present."""
    return ratio(tp, np.asarray(tp, float) + np.asarray(fn, float))


def specificity(tn: ArrayLike, fp: ArrayLike) -> Floats:
    """TN / (TN + FP), where negative means: the target is absent."""
    return ratio(tn, np.asarray(tn, float) + np.asarray(fp, float))


def mcc(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> Floats:
    """Matthews' correlation, [-1, 1]; NaN where only one class occurs or is ever said."""
    tp, fp, fn, tn = (np.asarray(value, float) for value in (tp, fp, fn, tn))
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


# --- lists of cases ---------------------------------------------------------------------------


def number_of_clicks(ious: Sequence[float], goal: float, limit: int = CLICK_LIMIT) -> tuple[int, bool]:
    """NoC of one case: the first n with IoU >= `goal` after n clicks, and whether there is one.

    `ious[0]` is the IoU before the first click. Where the goal is not reached within `limit`
    clicks, the number is `limit` and the case a failure.
    """
    for clicks, value in enumerate(ious[: limit + 1]):
        if value >= goal:
            return clicks, True
    return limit, False


def click_area(ious: Sequence[float], limit: int = CLICK_LIMIT) -> float:
    """Area under IoU over clicks 0 to `limit` by the trapezoid rule, divided by `limit`: [0, 1].

    `ious[0]` is the IoU before the first click; after the last one its value stays.
    """
    values = np.asarray([*ious, *[ious[-1]] * limit][: limit + 1], float)
    return float((values[1:] + values[:-1]).sum() / (2 * limit))


def calibration_columns(estimates: ArrayLike, qualities: ArrayLike, bins: int = 10) -> Floats:
    """N x 3*bins columns whose sums over cases `calibration_error` takes.

    `estimates` and `qualities` are N values in [0, 1]; equal-width bins of the estimate, the last
    one closed. The columns hold estimate, quality and 1 in the case's own bin.
    """
    estimate, quality = np.asarray(estimates, float), np.asarray(qualities, float)
    columns = np.zeros((estimate.size, 3, bins))
    own = np.clip((estimate * bins).astype(int), 0, bins - 1)
    rows = np.arange(estimate.size)
    columns[rows, 0, own], columns[rows, 1, own], columns[rows, 2, own] = estimate, quality, 1.0
    return columns.reshape(estimate.size, 3 * bins)


def calibration_error(sums: ArrayLike) -> Floats:
    """Expected calibration error from summed `calibration_columns`, [..., 3*bins] -> [...].

    The mean over cases of |mean estimate - mean quality| in the case's bin.
    """
    array = np.asarray(sums, float)
    estimate, quality, count = np.moveaxis(array.reshape(*array.shape[:-1], 3, -1), -2, 0)
    return ratio(np.abs(estimate - quality).sum(-1), count.sum(-1))
