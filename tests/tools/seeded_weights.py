"""Weights and pictures that both sides of a comparison can make from names alone.

Recording scripts (benchmarks/record_*.py) fill the original implementation with these, the tests
fill ours: nothing but numbers has to be shipped. Built on raw Philox bits, whose stream numpy
guarantees.
"""

import hashlib
from collections.abc import Mapping

import numpy as np


def _uniform(name: str, count: int) -> np.ndarray:
    """`count` float64 in [-1, 1), the same on every machine."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(count)
    return (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def seeded_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights of plausible size: layers keep the variance, norms stay near 1."""
    values = _uniform(f"{name}{shape}", int(np.prod(shape))).reshape(shape)
    if len(shape) < 2:
        return (1 + 0.1 * values if name.endswith("weight") else 0.1 * values).astype(np.float32)
    if any(word in name for word in ("embed", "token", "gaussian", "rel_pos")) and "proj" not in name:
        return (0.7 * values).astype(np.float32)
    # Steep single masks pass SAM 2's stability test in some cases and fail it in others.
    gain = 6 if "output_hypernetworks_mlps.0.layers.2" in name else 1
    return (gain * values * np.sqrt(3 / np.prod(shape[1:]))).astype(np.float32)


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """One array per name."""
    return {name: seeded_array(name, tuple(shape)) for name, shape in shapes.items()}


def seeded_picture(name: str, height: int, width: int) -> np.ndarray:
    """uint8 HxWx3: coarse coloured blocks with fine noise on top."""
    blocks = _uniform(f"{name} blocks", 8 * 8 * 3).reshape(8, 8, 3)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    noise = _uniform(f"{name} noise", height * width * 3).reshape(height, width, 3)
    return np.clip(127 + 100 * blocks[rows][:, columns] + 25 * noise, 0, 255).astype(np.uint8)
