"""States of the embedded policy from the tool's own masks: proposals, then clicks right and wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from policy_data import decide

from ibisagent.actions import click_at
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Click, Mask, Picture, ToolReply, ToolRequest


class ToolMasks:
    """Calls like `policy_data.Propose`: a mask of the tool for a picture and a target, or None."""

    def __init__(self, weights: Path) -> None:
        self._tool = EmbeddedTool.load(weights)

    def __call__(self, picture: Picture, target: str, truth: Mask, rng: np.random.Generator) -> Mask | None:
        instruction: str | None = f"Find the {target} in this image."
        clicks: tuple[Click, ...] = ()
        reply: ToolReply | None = None
        if rng.random() < 0.7:
            reply = self._tool.propose([ToolRequest(picture, instruction=instruction)])[0]
            rounds = int(rng.choice(3, p=(0.6, 0.25, 0.15)))
        else:
            instruction = None  # as where the episode starts from the bare picture
            rounds = int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))
        for _ in range(rounds):
            mask = reply.mask if reply is not None else None
            click = _click(truth, mask, rng)
            if click is None:
                break
            clicks += (click,)
            logits = reply.low_res_logits if reply is not None else None
            reply = self._tool.predict([ToolRequest(picture, clicks, (), logits, None, instruction)])[0]
        return reply.mask if reply is not None and reply.error is None else None


def _click(truth: Mask, mask: Mask | None, rng: np.random.Generator) -> Click | None:
    """What an imperfect policy does: mostly the right click, moved a little; sometimes any pixel."""
    height, width = truth.shape
    shown = mask if mask is not None and mask.any() else None
    if rng.random() < 0.2 or not truth.any():
        positive = shown is None or rng.random() < 0.6
        return click_at(int(rng.integers(height)), int(rng.integers(width)), height, width, positive)
    action, _ = decide(truth, shown, rng)
    if not isinstance(action, Click):
        return None
    x, y = np.clip(np.array([action.x, action.y]) + rng.normal(0, 0.01, 2), 0, 1)
    return Click(float(x), float(y), action.positive)
