"""Advantages relative to the group, as pure functions of rewards (docs/training.md).

A group holds the rollouts of one sample. A rollout that left its group (`EpisodeReward.excluded`)
is None here and stays None: it neither counts nor trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NO_SPREAD = 1e-9  # a standard deviation below this is rounding, and counts as 0


def spread(rewards: Sequence[float | None]) -> float:
    """Standard deviation (over the group, not an estimate beyond it) of the rewards that count.

    0 where the group has nothing to learn from: all alike, a single one, or none left.
    """
    counted = [reward for reward in rewards if reward is not None]
    deviation = float(np.std(counted)) if counted else 0.0
    return deviation if deviation > NO_SPREAD else 0.0


def group_advantages(rewards: Sequence[float | None], scaled: bool = True) -> list[float | None]:
    """A_i = (r_i - mean) / std over the group, 0 where std is 0; None for those that left.

    DeepSeekMath (Shao et al. 2024), section 4.1.2, outcome supervision. Not `scaled`: r_i - mean, so
    that a group counts by what is at stake in it (Dr. GRPO, Liu et al. 2025).
    """
    counted = [reward for reward in rewards if reward is not None]
    deviation = spread(rewards)
    if deviation == 0:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = float(np.mean(counted))
    deviation = deviation if scaled else 1.0
    return [None if reward is None else (reward - mean) / deviation for reward in rewards]


def text_advantages(
    rewards: Sequence[Sequence[float] | None], scaled: bool = True
) -> list[list[float] | None]:
    """An advantage for every policy text of every rollout: credit per turn.

    `rewards[i]` are rollout i's rewards text by text (failed attempts included), as `shaped` gives
    them, which add up to its total. A text earns what follows from it on: its own reward and all
    later ones. That is centred (and `scaled`) over the rollouts that wrote a text at the same place; so the
    first text has the advantage of `group_advantages`, a text that comes after the gain was made is
    not praised for it, and the only one at its place gets 0.
    """
    counted = [texts for texts in rewards if texts is not None]
    to_go = [np.cumsum(np.asarray(texts, float)[::-1])[::-1] for texts in counted]
    advantages: list[list[float]] = [[] for _ in counted]
    for place in range(max(map(len, counted), default=0)):
        here = [float(own[place]) if place < len(own) else None for own in to_go]
        for own, value in zip(advantages, group_advantages(here, scaled), strict=True):
            own += [] if value is None else [value]
    found = iter(advantages)
    return [None if texts is None else next(found) for texts in rewards]
