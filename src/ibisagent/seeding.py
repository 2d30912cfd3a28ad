"""Seeds keyed by what is drawn for, never by order of arrival (STYLE: equal runs)."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(*key: object) -> int:
    """A 63-bit seed from (run seed, sample id, rollout, turn, ...)."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*key: object) -> np.random.Generator:
    """A NumPy generator seeded by `seed_for(*key)`."""
    return np.random.default_rng(seed_for(*key))
