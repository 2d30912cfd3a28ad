"""Our metrics against independent references, on seeded random and adversarial mask pairs, and their speed.

    pip install monai && python benchmarks/metrics.py

The reference for every metric is brute force in double precision, written here from the formulas:
sets of pixels, all pairs of surface points (SciPy's cdist), maximum bipartite matching (SciPy's
Hopcroft-Karp), loops over cases. MONAI is a second reference where it is installed; ibisagent does
not need it. Exit code 1 where a metric differs from brute force by more than 1e-6. Pairs with an
empty mask have no surface and are compared for the other metrics alone.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_metrics import PAIRS

from ibisagent import metrics
from ibisagent.evaluation.intervals import mean, mean_columns

BOUND = 1e-6
TOLERANCES = (0.77, 2.03)

Pixels = set[tuple[int, int]]


def pixels(mask: np.ndarray) -> Pixels:
    return {(int(row), int(column)) for row, column in np.argwhere(mask)}


def surface(found: Pixels) -> list[tuple[int, int]]:
    """Pixels with a neighbour outside across a side; what is beyond the array is outside."""
    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return [p for p in sorted(found) if any((p[0] + r, p[1] + c) not in found for r, c in around)]


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def components(found: Pixels) -> list[Pixels]:
    """8-connected parts, by flood fill."""
    left, parts = set(found), []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            near = {(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)} & left
            left -= near
            edge += near
        parts.append(part)
    return parts


def brute_force(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, float]) -> dict[str, float]:
    """Every metric of one pair from its formula."""
    a, b = pixels(truth), pixels(predicted)
    found = {
        "IoU": len(a & b) / len(a | b) if a | b else 1.0,
        "Dice": 2 * len(a & b) / (len(a) + len(b)) if a | b else 1.0,
    }
    ours, theirs = components(a), components(b)
    pairs = np.array([[len(p & q) / len(p | q) >= 0.5 for q in theirs] for p in ours], bool)
    matched = 0
    if pairs.size:
        matched = int((maximum_bipartite_matching(csr_matrix(pairs), perm_type="column") >= 0).sum())
    total = len(ours) + len(theirs)
    if total:
        found["F1 of objects"] = 2 * matched / total
    if a and b:
        points = [np.array(surface(one), float) * spacing for one in (a, b)]
        distances = cdist(points[0], points[1])
        to_predicted, to_truth = distances.min(1).tolist(), distances.min(0).tolist()
        found["HD95"] = max(percentile(to_predicted, 0.95), percentile(to_truth, 0.95))
        found["ASSD"] = sum(to_predicted + to_truth) / len(to_predicted + to_truth)
        for tolerance in TOLERANCES:
            near = sum(value <= tolerance for value in to_predicted + to_truth)
            found[f"NSD at {tolerance}"] = near / len(to_predicted + to_truth)
    return found


def ours(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, float]) -> dict[str, float]:
    """The same names from ibisagent.metrics."""
    found = {
        "IoU": metrics.iou(truth, predicted),
        "Dice": metrics.dice(truth, predicted),
    }
    objects = astuple(metrics.match_objects(truth, predicted))
    if any(objects):
        found["F1 of objects"] = float(metrics.f1_score(*objects))
    distances = metrics.surface_distances(truth, predicted, spacing)
    if distances is not None:
        found["HD95"], found["ASSD"] = distances.hd95(), distances.assd()
        found |= {f"NSD at {tolerance}": distances.nsd(tolerance) for tolerance in TOLERANCES}
    return {name: float(value) for name, value in found.items() if value is not None}


def monai(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, float]) -> dict[str, float]:
    """What MONAI has of them; its IoU and Dice leave out pairs without truth."""
    import torch
    from monai import metrics as theirs

    true, guess = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (truth, predicted))
    found = {}
    if truth.any():
        found["IoU"] = float(theirs.compute_iou(guess, true))
        found["Dice"] = float(theirs.compute_dice(guess, true))
    if truth.any() and predicted.any():
        options = {"include_background": True, "spacing": spacing}
        found["HD95"] = float(theirs.compute_hausdorff_distance(guess, true, percentile=95, **options))
        found["ASSD"] = float(theirs.compute_average_surface_distance(guess, true, symmetric=True, **options))
        for tolerance in TOLERANCES:
            found[f"NSD at {tolerance}"] = float(
                theirs.compute_surface_dice(guess, true, [tolerance], **options)
            )
    return found


def lists() -> dict[str, float]:
    """Largest difference of each metric over many cases from a plain loop over the same pairs."""
    rng = np.random.default_rng(8)
    counts = [metrics.overlap(truth, predicted) for truth, predicted, _ in PAIRS]
    ious = [float(one.iou() or 0.0) for one in counts]
    worst: dict[str, float] = {}

    def note(name: str, mine: float, reference: float) -> None:
        worst[name] = max(worst.get(name, 0.0), abs(mine - reference))

    sums = [sum(getattr(one, key) for one in counts) for key in ("intersection", "truth", "predicted")]
    a, b = (np.concatenate([pair[k].ravel() for pair in PAIRS]) for k in (0, 1))
    note("cIoU", float(metrics.ratio(sums[0], sums[1] + sums[2] - sums[0])), (a & b).sum() / (a | b).sum())
    note(
        "cDice", float(metrics.ratio(2 * sums[0], sums[1] + sums[2])), 2 * (a & b).sum() / (a.sum() + b.sum())
    )
    for goal in (0.5, 0.7, 0.9):
        reached = [float(value >= goal) for value in ious]
        note(
            "precision@t",
            float(mean(mean_columns(reached).sum(0))),
            sum(value >= goal for value in ious) / len(ious),
        )
    for _ in range(1000):
        steps = np.clip(np.cumsum(rng.normal(0.08, 0.1, int(rng.integers(1, 26)))), 0, 1).tolist()
        for goal in (0.8, 0.85, 0.9):
            reached = [k for k, value in enumerate(steps) if value >= goal and k <= 20]
            number, success = metrics.number_of_clicks(steps, goal)
            note("NoC and failures", number, reached[0] if reached else 20)
            note("NoC and failures", float(success), float(bool(reached)))
        kept = [steps[min(k, len(steps) - 1)] for k in range(21)]
        note("area under IoU", metrics.click_area(steps), float(np.trapezoid(kept)) / 20)
        said, there = rng.random((2, 30)) < 0.5
        tp, fp, fn, tn = (
            int((s & t).sum()) for s, t in ((said, there), (said, ~there), (~said, there), (~said, ~there))
        )
        if there.any() and not there.all() and said.any() and not said.all():
            note("sensitivity", float(metrics.sensitivity(tp, fn)), float(said[there].mean()))
            note("specificity", float(metrics.specificity(tn, fp)), float((~said)[~there].mean()))
            note("MCC", float(metrics.mcc(tp, fp, fn, tn)), float(np.corrcoef(said, there)[0, 1]))
        estimate, quality = rng.random((2, 40))
        gaps = []
        for low in range(10):
            own = [k for k in range(40) if low <= estimate[k] * 10 < low + 1]
            gaps.append(abs(sum(estimate[own]) - sum(quality[own])) / 40 if own else 0.0)
        mine = metrics.calibration_error(metrics.calibration_columns(estimate, quality).sum(0))
        note("ECE", float(mine), sum(gaps))
    return worst


def compare() -> bool:
    """Print the largest differences; True where every metric meets brute force within the bound."""
    try:
        import monai as _  # noqa: F401

        with_monai = True
    except ImportError:
        with_monai = False
        print("MONAI is not installed: brute force is the only reference")
    warnings.simplefilter("ignore")
    worst: dict[str, list[float]] = {}
    counted: dict[str, int] = {}
    for pair in PAIRS:
        mine, exact = ours(*pair), brute_force(*pair)
        assert mine.keys() == exact.keys()
        theirs = monai(*pair) if with_monai else {}
        for name, value in mine.items():
            row = worst.setdefault(name, [0.0, 0.0, 0.0])
            counted[name] = counted.get(name, 0) + 1
            row[0] = max(row[0], abs(value - exact[name]))
            if name in theirs:
                row[1] = max(row[1], abs(value - theirs[name]))
                row[2] = max(row[2], abs(theirs[name] - exact[name]))
    print(f"{'largest difference':18} {'pairs':>6} {'ours-brute':>11} {'ours-MONAI':>11} {'MONAI-brute':>12}")
    for name, row in worst.items():
        cells = [
            f"{row[0]:11.1e}",
            *(f"{value:11.1e}" if with_monai and "F1" not in name else f"{'-':>11}" for value in row[1:]),
        ]
        print(f"{name:18} {counted[name]:6} {' '.join(cells)}")
    over_lists = lists()
    for name, value in over_lists.items():
        print(f"{name:18} {'lists':>6} {value:11.1e}")
    largest = max(*(row[0] for row in worst.values()), *over_lists.values())
    print(f"every metric meets brute force within {BOUND:g}: {largest <= BOUND} (largest {largest:.1e})")
    return largest <= BOUND


def speed() -> None:
    """Print milliseconds for one pair of 320 x 320 masks."""
    rows, columns = np.mgrid[:320, :320]
    truth = (rows - 150) ** 2 + (columns - 160) ** 2 < 80**2
    predicted = (rows - 160) ** 2 + (columns - 150) ** 2 < 75**2
    for function in (metrics.overlap, metrics.surface_distances, metrics.match_objects):
        began = time.perf_counter()
        for _ in range(20):
            function(truth, predicted)
        print(f"{function.__name__:18} {50 * (time.perf_counter() - began):.2f} ms")


if __name__ == "__main__":
    met = compare()
    speed()
    sys.exit(0 if met else 1)
