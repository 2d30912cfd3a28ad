"""The embedded pair on slices of whole NIfTI volumes, which a reader turns as a radiologist sees them.

    python benchmarks/volumes.py --data DATA

DATA/volumes holds images/ and labels/ (MSD hippocampus, all patients of the test split). Of every volume
the axial slices with the largest masks are read as `ibisagent segment` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
import tyro

from ibisagent import Agent
from ibisagent.evaluation.intervals import Resampler, mean, mean_columns
from ibisagent.images import load_mask, load_picture
from ibisagent.masks import iou


@dataclass
class Config:
    """Settings of the measurement."""

    data: Path
    """folder with volumes/"""
    slices: int = 3
    """of each volume"""
    instruction: str = "Find the hippocampus"
    """what is asked"""
    policy: str = "embedded"
    """the policy"""
    tool: str = "embedded"
    """the tool"""


def main(config: Config) -> None:
    """Print the mean IoU with its interval, and what was called absent."""
    torch.set_num_threads(1)
    agent = Agent.load(config.policy, config.tool)
    ious, patients, absent = [], [], 0
    for image in sorted((config.data / "volumes" / "images").glob("*.nii.gz")):
        label = config.data / "volumes" / "labels" / image.name
        areas = (np.asarray(nibabel.load(label).dataobj) > 0).sum((0, 1))
        for index in np.argsort(areas)[-config.slices :]:
            picture = load_picture(image, axis="axial", index=int(index))
            truth = load_mask(label, (picture.height, picture.width), axis="axial", index=int(index))
            result = agent.segment(picture, config.instruction)
            ious.append(0.0 if result.mask is None else iou(result.mask, truth))
            patients.append(image.name)
            absent += result.outcome == "absent"
    found = Resampler(["volumes"] * len(ious), patients).interval(mean_columns(ious), mean)
    print(
        f"{len(ious)} slices of {len(set(patients))} volumes: mean IoU {found.value:.3f} "
        f"[{found.low:.3f}, {found.high:.3f}], lowest {min(ious):.3f}, {absent} called absent"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
