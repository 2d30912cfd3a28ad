"""Our metrics against MONAI's and their speed, on seeded random and adversarial mask pairs.

    pip install monai && python benchmarks/metrics.py

MONAI is not needed by ibisagent; where it is missing, only the speed is printed. Adversarial pairs
where a mask is empty have no surface and are compared for IoU and Dice alone.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_metrics import PAIRS

from ibisagent import metrics


def against_monai() -> None:
    """Print the largest difference of every metric that both have."""
    try:
        import torch
        from monai.metrics import (
            compute_average_surface_distance,
            compute_dice,
            compute_hausdorff_distance,
            compute_iou,
            compute_surface_dice,
        )
    except ImportError:
        print("MONAI is not installed: nothing to compare with")
        return
    warnings.simplefilter("ignore")
    worst: dict[str, float] = {}

    def note(name: str, ours: float, theirs: float) -> None:
        worst[name] = max(worst.get(name, 0.0), abs(ours - theirs))

    measured = 0
    for truth, predicted, spacing in PAIRS:
        true, found = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (truth, predicted))
        if truth.any():
            note("IoU", metrics.iou(truth, predicted) or 0.0, float(compute_iou(found, true)))
            note("Dice", metrics.dice(truth, predicted) or 0.0, float(compute_dice(found, true)))
        ours = metrics.surface_distances(truth, predicted, spacing)
        if ours is None:
            continue
        measured += 1
        options = {"include_background": True, "spacing": spacing}
        note("HD95", ours.hd95(), float(compute_hausdorff_distance(found, true, percentile=95, **options)))
        note(
            "ASSD",
            ours.assd(),
            float(compute_average_surface_distance(found, true, symmetric=True, **options)),
        )
        for tolerance in (0.77, 2.03):
            theirs = float(compute_surface_dice(found, true, [tolerance], **options))
            note("NSD", ours.nsd(tolerance), theirs)
    print(f"{len(PAIRS)} pairs, {measured} with two surfaces; largest difference from MONAI:")
    for name, difference in worst.items():
        print(f"  {name:5} {difference:.1e}")


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
    against_monai()
    speed()
