"""Organs of other brightness, and with lesions: what other sequences, phases and patients look like.

For sets whose pictures show most organs of one modality, where a network otherwise learns brightness.
Each organ gets its own tone (as Billot et al. 2023, SynthSeg, draw one per structure), both of a pair
the same one.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]  # H x W
RETONED = frozenset({"BTCV"})  # sets that are shown so
RETONED_SHARE = 0.5
_SOLID = ("liver", "spleen", "left kidney", "right kidney", "pancreas")  # may have a lesion
_LEAST = 300  # pixels of an organ that gets one


def retone(pixels: Grey, organs: Mapping[str, Grey], rng: np.random.Generator) -> Grey:
    """`pixels` with every organ (mask 0 or 255) in a tone of its own, and perhaps a lesion in one."""
    shown = pixels.astype(np.float32)
    tones = {pair: (np.exp(rng.normal(0, 0.4)), rng.normal(0, 12)) for pair in sorted(map(_pair, organs))}
    for name, mask in organs.items():
        gain, shift = tones[_pair(name)]
        alpha = cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32) / 255
        shown += alpha * (shown * np.float32(gain - 1) + np.float32(shift))
    solid = [name for name in _SOLID if name in organs and (organs[name] > 0).sum() >= _LEAST]
    if solid and rng.random() < 0.3:
        _add_lesion(shown, organs[solid[int(rng.integers(len(solid)))]], rng)
    return np.clip(shown, 0, 255).astype(np.uint8)


def _pair(name: str) -> str:
    return name.removeprefix("left ").removeprefix("right ")


def _add_lesion(shown: NDArray[np.float32], organ: Grey, rng: np.random.Generator) -> None:
    """Paint an ellipse of another tone into the organ, of which it stays a part."""
    ys, xs = np.nonzero(organ)
    k = int(rng.integers(len(ys)))
    size = np.sqrt(len(ys) / np.pi)
    axes = tuple(max(2, int(size * share)) for share in rng.uniform(0.15, 0.6, 2))
    spot = np.zeros_like(organ)
    cv2.ellipse(spot, (int(xs[k]), int(ys[k])), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    alpha = cv2.GaussianBlur(spot & organ, (0, 0), float(rng.uniform(0.6, 2.0))).astype(np.float32) / 255
    alpha *= rng.uniform(0.6, 1.0)
    tone = float(shown[ys, xs].mean()) * float(np.exp(rng.normal(0, 0.5))) + float(rng.normal(0, 15))
    grain = rng.standard_normal(shown.shape, dtype=np.float32) * float(rng.uniform(2, 10))
    shown += alpha * (tone + grain - shown)
