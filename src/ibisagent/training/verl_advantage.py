"""The advantage of `train rl` for verl: `algorithm.adv_estimator=ibisagent`.

verl's own `grpo` divides by the estimate with n - 1, and where one rollout is left of a group it takes
the bare reward for an advantage; here a group without spread, a single rollout among them, teaches
nothing. VERL_USE_EXTERNAL_MODULES=ibisagent.training.verl_advantage makes verl import this module.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ibisagent.training.advantage import group_advantages


def grouped(rewards: list[float], groups: list[Any]) -> list[float]:
    """The advantage of every rollout among those of the same group."""
    advantages = [0.0] * len(rewards)
    for group in dict.fromkeys(groups):
        places = [place for place, other in enumerate(groups) if other == group]
        made = group_advantages([rewards[place] for place in places])
        for place, advantage in zip(places, made, strict=True):
            assert advantage is not None
            advantages[place] = advantage
    return advantages


def estimate(token_level_rewards: Any, response_mask: Any, index: Any, **_: Any) -> tuple[Any, Any]:
    """Advantages and returns (float BxT) as verl asks for them: one number a rollout on its own tokens."""
    rewards = token_level_rewards.sum(dim=-1).tolist()
    made = token_level_rewards.new_tensor(grouped(rewards, list(index)))
    advantages = made.unsqueeze(-1) * response_mask
    return advantages, advantages


def _register() -> None:
    from verl.trainer.ppo.core_algos import register_adv_est

    register_adv_est("ibisagent")(estimate)


with contextlib.suppress(ImportError):  # it can be read without verl
    _register()
