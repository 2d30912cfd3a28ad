"""Policies that show what a figure is worth: each is put around the policy that is measured.

first click only: the policy's first click, then stop. first click, then oracle: the rest by the
click rule from the true mask. constant click: for each target the place that lies within most
training masks, whatever the picture shows. single pass: the tool's proposal as it is. oracle
clicks: what the tool makes of the click rule alone, an upper bound for clicks; also with clicks
that are not perfect, from other simulators. Best of n sampled episodes is in `best_of`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ibisagent.actions import click_at, format_text
from ibisagent.datasets.cases import hashed
from ibisagent.evaluation.cases import Plan, samples
from ibisagent.policies.scripted import ScriptedPolicy, oracle
from ibisagent.synthesis.clicks import ClickSimulator, Kind
from ibisagent.types import Click, Mask, Observation, Policy, PolicyReply, Support, Terminate

GRID = 64  # cells a side in which the constant click is sought
MASKS = 60  # training cases of a set that it is sought in, drawn by hash

_STOP = format_text("Nothing more is done.", Terminate(), "The mask is kept as it is.")


class Wrapped(ABC):
    """A policy that acts first, and a rule for all that follows its first click."""

    def __init__(self, inner: Policy, name: str) -> None:
        self.name = f"{name} ({inner.name})"
        self.view = inner.view
        self.verbs = inner.verbs
        self._inner = inner

    def supports(self, instruction: str) -> Support:
        return self._inner.supports(instruction)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """Texts of the inner policy where no click stands, else of the rule."""
        first = [index for index, observation in enumerate(observations) if not observation.clicks]
        asked = self._inner.act([observations[index] for index in first]) if first else []
        replies = dict(zip(first, asked, strict=True))
        return [
            replies[index] if index in replies else PolicyReply(self.follow(observation))
            for index, observation in enumerate(observations)
        ]

    @abstractmethod
    def follow(self, observation: Observation) -> str:
        """The text for an observation in which a click stands."""

    def fingerprint(self) -> Mapping[str, Any]:
        return {"name": self.name, "inner": dict(self._inner.fingerprint())}


class FirstClickOnly(Wrapped):
    """Stops after the policy's first click. `truths` is not used."""

    def __init__(self, inner: Policy, truths: Mapping[str, Mask]) -> None:
        super().__init__(inner, "first click only")

    def follow(self, observation: Observation) -> str:
        return _STOP


class FirstClickThenOracle(Wrapped):
    """The policy's first click, then the oracle's until it is content."""

    def __init__(self, inner: Policy, truths: Mapping[str, Mask]) -> None:
        super().__init__(inner, "first click, then oracle")
        self._truths = truths

    def follow(self, observation: Observation) -> str:
        truth = self._truths.get(observation.sample_id)
        return oracle(observation, truth, np.random.default_rng(observation.seed))


@dataclass(frozen=True)
class SimulatedOracle:
    """Makes the oracle that clicks by another simulator; it stops as the oracle stops."""

    kind: Kind

    def __call__(self, inner: Policy, truths: Mapping[str, Mask]) -> Policy:
        return ScriptedPolicy(f"oracle, {self.kind} clicks", self._rule, truths)

    def _rule(self, observation: Observation, truth: Mask | None, rng: np.random.Generator) -> str:
        text = oracle(observation, truth, rng)
        if truth is None or "Point" not in text:
            return text
        click = ClickSimulator(self.kind).next_click(truth, observation.mask, observation.clicks, rng)
        return text if click is None else format_text("A part of the picture is wrong here.", click)


@dataclass(frozen=True)
class ConstantClick:
    """Makes the policy that clicks one place for each instruction, then stops."""

    places: tuple[tuple[str, Click], ...]  # instruction -> click

    def __call__(self, inner: Policy, truths: Mapping[str, Mask]) -> Policy:
        return _ConstantPolicy(inner, dict(self.places))


class _ConstantPolicy:
    name = "constant click"

    def __init__(self, inner: Policy, places: dict[str, Click]) -> None:
        self.view = inner.view
        self.verbs = inner.verbs
        self._places = places

    def supports(self, instruction: str) -> Support:
        known = instruction in self._places
        return Support(known, reason="" if known else "No training mask shows this target.")

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        return [
            PolicyReply(
                _STOP if item.clicks else format_text("It is mostly here.", self._places[item.instruction])
            )
            for item in observations
        ]

    def fingerprint(self) -> Mapping[str, Any]:
        places = sorted((text, click.x, click.y) for text, click in self._places.items())
        return {"name": self.name, "places": hashed(*places)}


def constant_clicks(plan: Plan) -> ConstantClick:
    """For each instruction in `plan` the cell that lies within most masks; training data only.

    Every set gives at most `MASKS` cases, drawn by hash. Of equal cells the first in row-major
    order is taken.
    """
    sums: dict[str, np.ndarray] = {}
    for instruction, mask in _masks(plan):
        small = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
        sums[instruction] = sums.get(instruction, np.zeros((GRID, GRID))) + small
    places = []
    for instruction, total in sorted(sums.items()):
        row, column = divmod(int(total.argmax()), GRID)
        places.append((instruction, click_at(row, column, GRID, GRID, True)))
    return ConstantClick(tuple(places))


def _masks(plan: Plan) -> Iterable[tuple[str, Mask]]:
    for task in plan.tasks:
        for sample in samples(task, plan.options):
            if sample.truth is not None and sample.truth.any():
                yield sample.instruction, sample.truth
