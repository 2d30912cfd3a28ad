"""Policies that follow a rule: a fixed list, the oracle, and cheats for the reward audit.

All but the fixed list may hold true masks, keyed by sample id; the observation never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ibisagent.actions import click_at, format_text
from ibisagent.masks import error_regions, iou
from ibisagent.synthesis.clicks import next_click
from ibisagent.types import (
    BASE_VERBS,
    Action,
    Click,
    Mask,
    Observation,
    PolicyReply,
    Support,
    Terminate,
    Undo,
    Verb,
    View,
)

Rule = Callable[[Observation, Mask | None, np.random.Generator], str]

STOP_AT = 0.80  # IoU; METHOD section 5


class ScriptedPolicy:
    """Texts by a rule from the observation, the true mask where one is given, and a generator."""

    view = View()
    verbs = BASE_VERBS | {Verb.UNDO, Verb.BOX}

    def __init__(self, name: str, rule: Rule, truths: Mapping[str, Mask] | None = None) -> None:
        self.name = f"scripted:{name}"
        self._rule = rule
        self._truths = truths or {}

    def supports(self, instruction: str) -> Support:
        return Support(known=True)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        replies = []
        for observation in observations:
            truth = self._truths.get(observation.sample_id)
            text = self._rule(observation, truth, np.random.default_rng(observation.seed))
            replies.append(PolicyReply(text, tokens=len(text.split())))
        return replies

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}


def fixed(texts: Sequence[str]) -> ScriptedPolicy:
    """Writes `texts` one after the other; past the last one it fails with a policy error."""
    return _FixedPolicy(texts)


class _FixedPolicy(ScriptedPolicy):
    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__("fixed", lambda *_: "")
        self._texts = list(texts)
        self._next = 0

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        replies = []
        for _ in observations:
            if self._next < len(self._texts):
                replies.append(PolicyReply(self._texts[self._next]))
            else:
                replies.append(PolicyReply(error="The list of texts is used up."))
            self._next += 1
        return replies


# --- rules ------------------------------------------------------------------------------------


def oracle(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """The click of METHOD section 5 until the IoU is at least 0.80 or no error is left."""
    truth = _needed(truth)
    mask = observation.mask
    if mask is None and not truth.any():
        return _stop("The target is not in the picture.")
    if mask is not None and iou(mask, truth) >= STOP_AT:
        return _stop("The mask fits the target.")
    click = next_click(truth, mask, observation.clicks)
    if click is None:
        return _stop("No error is left to correct.")
    return _click(click)


def noisy_oracle(probability: float) -> Rule:
    """The oracle, but with `probability` a click anywhere of either sign instead."""

    def rule(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
        if rng.random() < probability:
            return _click(Click(float(rng.random()), float(rng.random()), bool(rng.random() < 0.5)))
        return oracle(observation, truth, rng)

    return rule


def stop_at_once(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Terminates in turn 1, whatever stands."""
    return _stop("The mask fits the target.")


def always_absent(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Removes what stands, then says that the target is not there."""
    if observation.mask is None:
        return _stop("The target is not in the picture.")
    return format_text("This mask is wrong.", Undo())


def never_stop(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Clicks in the error for ever; anywhere once none is left."""
    click = next_click(_needed(truth), observation.mask, observation.clicks)
    return _click(click or Click(float(rng.random()), float(rng.random()), True))


def rim_clicks(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Positive clicks on the outermost pixels of the missed part; stops when none is left."""
    truth = _needed(truth)
    missed, _ = error_regions(truth, observation.mask)
    if not missed.any():
        return _stop("Nothing is missed.")
    padded = np.pad(missed, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(missed & ~inner)
    pick = int(rng.integers(len(rows)))
    height, width = truth.shape
    return _click(click_at(int(rows[pick]), int(columns[pick]), height, width, True))


def repeated_click(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """The oracle's first click again and again."""
    if observation.clicks:
        return _click(observation.clicks[0])
    return oracle(observation, truth, rng)


def alternate_signs(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Positive and negative by turns at the same place."""
    if not observation.clicks:
        return oracle(observation, truth, rng)
    last = observation.clicks[-1]
    return _click(Click(last.x, last.y, not last.positive))


def click_then_undo(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """A good click, Undo, a good click, Undo."""
    if observation.turn % 2 == 0:
        return format_text("That click was wrong.", Undo())
    return oracle(observation, truth, rng)


def format_only(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """Well-formed clicks that look at nothing, five times, then a well-formed end."""
    if observation.turn > 5:
        return _stop("The mask fits the target.")
    return _click(Click(float(rng.random()), float(rng.random()), True))


def nonsense_when_hard(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """The oracle on easy pictures; no readable text where the target is small (under 3 %)."""
    if 0 < _needed(truth).mean() < 0.03:
        return "I would rather not say."
    return oracle(observation, truth, rng)


def image_centre(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """One click in the middle of the picture, then stop."""
    if observation.clicks:
        return _stop("The mask fits the target.")
    return _click(Click(0.5, 0.5, True))


def one_good_then_noise(observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
    """One click of the oracle, then clicks anywhere, five turns in all."""
    if observation.turn == 1:
        return oracle(observation, truth, rng)
    if observation.turn > 5:
        return _stop("The mask fits the target.")
    return _click(Click(float(rng.random()), float(rng.random()), bool(rng.random() < 0.5)))


RULES: dict[str, Rule] = {
    "oracle": oracle,
    "noisy-oracle": noisy_oracle(0.3),
    "stop-at-once": stop_at_once,
    "always-absent": always_absent,
    "never-stop": never_stop,
    "rim-clicks": rim_clicks,
    "repeated-click": repeated_click,
    "alternate-signs": alternate_signs,
    "click-then-undo": click_then_undo,
    "format-only": format_only,
    "nonsense-when-hard": nonsense_when_hard,
    "image-centre": image_centre,
    "one-good-then-noise": one_good_then_noise,
}


BLIND = frozenset({"stop-at-once", "always-absent", "format-only", "image-centre"})  # need no truth


def _needed(truth: Mask | None) -> Mask:
    assert truth is not None, "this rule needs the true mask of every sample"
    return truth


def _click(click: Click) -> str:
    kind = "missed here" if click.positive else "wrongly included here"
    return format_text(f"A part of the picture is {kind}.", click)


def _stop(reason: str) -> str:
    action: Action = Terminate()
    return format_text(reason, action, reason)
