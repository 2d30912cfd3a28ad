"""What several test modules share: synthetic pictures, a sample, the place of the real data."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ibisagent.types import Mask, Picture, Sample

torch.set_num_threads(1)
cv2.setNumThreads(1)


def disc(height: int, width: int, row: float, column: float, radius: float) -> Mask:
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@pytest.fixture
def sample() -> Sample:
    """A bright disc and a darker one on a dim, slightly noisy ground, 96x128; the target is the first."""
    truth, other = disc(96, 128, 40, 50, 18), disc(96, 128, 66, 98, 14)
    noise = np.random.default_rng(7).normal(0, 4, (96, 128))
    grey = np.clip(50 + 110 * truth + 60 * other + noise, 0, 255).astype(np.uint8)
    picture = Picture(np.repeat(grey[..., None], 3, axis=2))
    return Sample("two-discs", picture, "Find the bright disc in this image.", truth=truth)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets; tests that need them skip where they are missing."""
    root = Path(os.environ.get("IBISAGENT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "BTCV").is_dir():
        pytest.skip("real data not found: set IBISAGENT_DATA to the folder that holds BTCV/")
    return root
