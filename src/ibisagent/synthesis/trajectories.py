"""Trajectories of five kinds: a teacher that sees the true mask plays episodes in the real environment.

plain: clicks by a simulator until the IoU is reached, then Terminate. self_correction: one wrong
click is injected, seen and taken back (or answered by an opposite click). wrong_start: the episode
begins from a mask on something else. stop: it begins from a mask that is already good. absent: the
target is not there. What never reaches the IoU becomes `unreached` and is kept only on request.
Every thought is a template filled with measured facts, or written by a teacher (`teacher`); the loop
is `rollout`, no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ibisagent.actions import click_pixel, format_text
from ibisagent.environment import Settings
from ibisagent.errors import InputError
from ibisagent.masks import error_regions, iou
from ibisagent.rollout import rollout
from ibisagent.seeding import generator_for
from ibisagent.synthesis import reasoning
from ibisagent.synthesis.clicks import ClickSimulator, Kind, next_click
from ibisagent.synthesis.instructions import Instruction
from ibisagent.synthesis.mistakes import blocked, good_mask, misses, wrong_click, wrong_mask
from ibisagent.synthesis.teacher import Ask, ChatTeacher
from ibisagent.types import (
    BASE_VERBS,
    Action,
    Click,
    Episode,
    EpisodeStatus,
    Mask,
    Observation,
    Outcome,
    PolicyReply,
    Sample,
    Support,
    Terminate,
    Tool,
    Undo,
    Verb,
    View,
)

TrajectoryKind = Literal["plain", "self_correction", "wrong_start", "stop", "absent"]
UNREACHED = "unreached"  # kind of a trajectory that did not come to the IoU asked for

_OFF = (
    "The last click was wrong: the mask now covers something at the {place} that is not the {target}. "
    "I take it back.",
    "That click missed the {target} and the mask spread at the {place}. I undo it.",
)
_LOST = (
    "The last click was wrong: the mask lost a part of the {target} at the {place}. I take it back.",
    "After that click a part of the {target} at the {place} is no longer covered. I undo it.",
)
_NO_HELP = ("The last click did not help to cover the {target}. I take it back.",)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds; they need not add up to 1."""

    plain: float = 0.5
    self_correction: float = 0.2
    wrong_start: float = 0.1
    stop: float = 0.1
    absent: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.plain, self.self_correction, self.wrong_start, self.stop, self.absent)
        if min(shares) < 0 or not sum(shares) > 0:
            raise InputError("shares of kinds are at least 0 and not all 0", shares)

    @property
    def absent_odds(self) -> float:
        """Trajectories on absent targets for one on a target that is there; inf where there is no other."""
        present = self.plain + self.self_correction + self.wrong_start + self.stop
        return self.absent / present if present else float("inf")

    def draw(self, rng: np.random.Generator) -> TrajectoryKind:
        """A kind for a target that is there. Asserts that one has a share."""
        kinds: tuple[TrajectoryKind, ...] = ("plain", "self_correction", "wrong_start", "stop")
        shares = np.array([self.plain, self.self_correction, self.wrong_start, self.stop])
        assert shares.sum() > 0, "only absent targets were asked for"
        return kinds[int(rng.choice(4, p=shares / shares.sum()))]


@dataclass(frozen=True)
class Teaching:
    """How trajectories are made; part of their fingerprint."""

    stop_at: float = 0.80  # IoU at which the teacher terminates; METHOD section 5
    clicks: Kind = "centre"
    mix: Mix = Mix()


@dataclass
class Plan:
    """What the teacher does in one episode, and how far it is."""

    kind: TrajectoryKind
    target: str
    truth: Mask
    others: tuple[Mask, ...] = ()  # of other targets in the picture
    wrong_turn: int = 0  # from which turn on a wrong click is due; 0: none is
    answering: bool = False  # the last click was the wrong one
    before: Mask | None = None  # the mask before the wrong click
    instruction: Instruction | None = None  # where it was made for this sample


# --- planning ---------------------------------------------------------------------------------


def plan(sample: Sample, others: Sequence[Mask], teaching: Teaching, seed: int) -> tuple[Sample, Plan]:
    """The sample, with a starting mask where its kind needs one, and the plan for it.

    Drawn from (seed, sample id) alone. A kind that this picture cannot give becomes plain.
    Asserts that the sample has its true mask.
    """
    truth = sample.truth
    assert truth is not None, "a trajectory needs the true mask"
    rng = generator_for(seed, sample.sample_id, "plan")
    target = sample.target or "target"
    if not truth.any():
        return sample, Plan("absent", target, truth)
    kind = teaching.mix.draw(rng)
    start = None
    if kind == "wrong_start":
        start = wrong_mask(truth, others, rng)
    elif kind == "stop":
        start = good_mask(truth, teaching.stop_at, rng)
    if start is None and kind in ("wrong_start", "stop"):
        kind = "plain"
    made = Plan(kind, target, truth, tuple(others))
    if kind == "self_correction":
        made.wrong_turn = 1 if rng.random() < 0.6 else 2
    return (replace(sample, start_mask=start) if start is not None else sample), made


# --- the teacher ------------------------------------------------------------------------------


@dataclass
class _Step:
    """One reply in the making."""

    action: Action
    think: str
    said: str | None  # the answer that goes with Terminate
    ask: Ask | None = None  # for the thought's writer


def _reply(step: _Step | None) -> PolicyReply:
    if step is None:
        return PolicyReply(error="No pixel is left to click (no_error_left).")
    text = format_text(step.think, step.action, step.said)
    return PolicyReply(text, tokens=len(text.split()))


class Teacher:
    """A policy that sees the true masks in its plans, keyed by sample id. Observations never do."""

    name = "scripted:teacher"
    view = View()
    verbs = BASE_VERBS | {Verb.UNDO}

    def __init__(self, teaching: Teaching, writer: ChatTeacher | None = None) -> None:
        """`writer` words the thoughts; without one, and where it has none, templates do."""
        self._teaching, self._writer = teaching, writer
        self._simulator = ClickSimulator(teaching.clicks)
        self.plans: dict[str, Plan] = {}

    def supports(self, instruction: str) -> Support:
        return Support(known=True)

    def fingerprint(self) -> dict[str, Any]:
        known = {"name": self.name, "stop_at": self._teaching.stop_at, "clicks": self._teaching.clicks}
        return known | ({"thoughts": self._writer.name} if self._writer else {})

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        steps = [self._step(observation) for observation in observations]
        asked = [step for step in steps if step is not None and step.ask is not None]
        if self._writer is not None:
            asks = [step.ask for step in asked if step.ask is not None]
            for step, text in zip(asked, self._writer.thoughts(asks), strict=True):
                step.think = text or step.think
        return [_reply(step) for step in steps]

    def _step(self, observation: Observation) -> _Step | None:
        """What to do with a template's thought; None where nothing is left to do."""
        made = self.plans[observation.sample_id]
        rng = np.random.default_rng(observation.seed)
        decided = self._decide(observation, made, rng)
        if decided is None:
            return None
        action, think = decided
        known = reasoning.facts(made.target, made.truth, observation.mask, action)
        said = reasoning.answer(known, rng) if isinstance(action, Terminate) else None
        step = _Step(action, think or reasoning.thought(known, rng), said)
        if self._writer is not None and not made.answering:  # an injected mistake is not to be learnt
            step.ask = Ask(
                instruction=observation.instruction,
                image=observation.image,
                painted=observation.mask is not None,
                action=action,
                target=made.target,
                thought=step.think,
                seed=observation.seed,
            )
        return step

    def _decide(
        self, observation: Observation, made: Plan, rng: np.random.Generator
    ) -> tuple[Action, str | None] | None:
        """The action and, where `reasoning` has no template for it, the thought. None: nothing is left."""
        mask, clicks = observation.mask, observation.clicks
        may_undo = Verb.UNDO in observation.verbs
        if made.wrong_turn and observation.turn >= made.wrong_turn:
            made.wrong_turn = 0
            click = wrong_click(made.truth, made.others, mask, clicks, rng)
            if click is not None:
                made.answering, made.before = True, mask
                return click, None
            made.kind = "plain"
        if made.answering:
            made.answering = False
            if may_undo:
                return Undo(), _second_thought(made, mask, rng)
            opposite = _opposite(made, mask, clicks)
            if opposite is not None:
                return opposite, None
        if made.kind == "wrong_start" and observation.turn == 1 and may_undo:
            return Undo(), None
        if mask is None and not made.truth.any():
            return Terminate(), None
        if mask is not None and iou(mask, made.truth) >= self._teaching.stop_at:
            return Terminate(), None
        shape = (made.truth.shape[0], made.truth.shape[1])
        found = self._simulator.next_click(made.truth, mask, blocked(clicks, shape), rng)
        return None if found is None else (found, None)


def _second_thought(made: Plan, mask: Mask | None, rng: np.random.Generator) -> str | None:
    """What is wrong after a wrong click; None where `reasoning` says it (the mask misses the target)."""
    if mask is None or (mask.any() and misses(mask, made.truth)):
        return None
    before = np.zeros_like(mask) if made.before is None else made.before
    added, lost = mask & ~before & ~made.truth, before & ~mask & made.truth
    templates, region = (_OFF, added) if added.sum() >= lost.sum() else (_LOST, lost)
    if not region.any():
        return _NO_HELP[0].format(target=made.target)
    centre = next_click(region, None)
    assert centre is not None, "a region has a pixel"
    text = templates[int(rng.integers(len(templates)))]
    return text.format(target=made.target, place=reasoning.place_of(centre.x, centre.y))


def _opposite(made: Plan, mask: Mask | None, clicks: Sequence[Click]) -> Click | None:
    """Without Undo: a click of the other sign in the error that the wrong one made."""
    if mask is None or not clicks:
        return None
    missed, included = error_regions(made.truth, mask)
    region = included if clicks[-1].positive else missed
    same = [click for click in clicks if click.positive != clicks[-1].positive]
    found = next_click(region, None, blocked(same, (mask.shape[0], mask.shape[1])))
    return None if found is None else replace(found, positive=not clicks[-1].positive)


# --- playing ----------------------------------------------------------------------------------


def trajectories(
    planned: Iterable[tuple[Sample, Plan]],
    tool: Tool,
    teaching: Teaching,
    settings: Settings,
    batch_size: int = 1,
    writer: ChatTeacher | None = None,
) -> Iterator[Episode]:
    """Play every planned sample and label it with its kind, in the order in which episodes end.

    Raises InputError where the tool cannot take what the plans need.
    """
    teacher = Teacher(teaching, writer)

    def samples() -> Iterator[Sample]:
        for sample, made in planned:
            teacher.plans[sample.sample_id] = made
            yield sample

    for event in rollout(samples(), teacher, tool, settings, batch_size=batch_size):
        if event.episode is not None:
            made = teacher.plans.pop(event.episode.sample_id)
            fits = reached(event.episode, teaching.stop_at)
            yield replace(event.episode, kind=made.kind if fits else UNREACHED)


def reached(episode: Episode, stop_at: float) -> bool:
    """Whether a trajectory ended as it should: terminated, at the IoU, or absent where that is true."""
    if episode.status is not EpisodeStatus.TERMINATED or episode.mask is None or episode.truth is None:
        return False
    if not episode.truth.any():
        return episode.outcome is Outcome.ABSENT
    return iou(episode.mask, episode.truth) >= stop_at


def wrong_turns(episode: Episode) -> tuple[int, ...]:
    """Numbers of the turns whose click lies outside the error it should mend: nothing to learn from.

    Those are the injected clicks of self-corrections; the turns after them, which notice and mend
    the mistake, are what such a trajectory is for. Asserts that the episode has its true mask.
    """
    truth = episode.truth
    assert truth is not None, "a trajectory keeps its true mask"
    wrong, before = [], episode.start_mask
    for turn in episode.turns:
        if isinstance(turn.action, Click):
            missed, included = error_regions(truth, before)
            region = missed if turn.action.positive else included
            if not region[click_pixel(turn.action, *truth.shape)]:
                wrong.append(turn.number)
        before = turn.mask
    return tuple(wrong)
