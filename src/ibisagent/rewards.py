"""Rewards: pure named functions of one policy text and of the masks around it (METHOD section 6).

`score_episode` applies a profile, which is a weight per function and a way to pool over turns, to
any episode with a true mask: fresh from the loop or read from a log. Weight 0 makes a metric: the
breakdown always holds every function. docs/rewards.md has the formulas and the reasons.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

import numpy as np

from ibisagent.actions import click_pixel
from ibisagent.errors import InputError
from ibisagent.masks import error_regions, iou
from ibisagent.types import Action, Click, Episode, EpisodeStatus, Mask, Terminate

# --- what a reward sees -----------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """Where the reference's rewards step."""

    answer_iou: tuple[float, float, float] = (0.80, 0.70, 0.50)  # an IoU above the first that it passes
    answer_reward: tuple[float, float, float] = (3.0, 2.0, 1.0)  # earns this
    free_turns: int = 5  # so many turns are short
    late_cost: float = 0.2  # for each turn beyond

    def __post_init__(self) -> None:
        high, middle, low = self.answer_iou
        if not 1 >= high > middle > low >= 0:
            raise InputError("IoU thresholds fall from at most 1 to at least 0", self.answer_iou)

    def scaled(self, ceiling: float) -> Thresholds:
        """The same steps for a target on which an IoU of `ceiling` (0 to 1] is as good as it gets."""
        high, middle, low = self.answer_iou
        return replace(self, answer_iou=(high * ceiling, middle * ceiling, low * ceiling))


@dataclass(frozen=True)
class TextState:
    """One policy text and the state around it. Masks are bool HxW; where none stands, all False."""

    turn: int  # from 1
    attempt: int  # from 0, within the turn
    retried: bool  # it failed and another attempt followed: no turn of its own
    action: Action | None  # None: the text could not be executed
    format_ok: bool  # tags, action and answer are well formed
    fault: bool  # it ended the episode by the policy's own fault, or could not be executed
    before: Mask  # before the action
    after: Mask  # after the action; that before where the text is a fault
    truth: Mask
    iou_start: float  # of the mask before turn 1
    iou_before: float
    iou_after: float


def text_states(episode: Episode) -> Iterator[TextState]:
    """Every policy text of an episode in order, failed attempts included.

    Raises InputError where the episode has no true mask.
    """
    if episode.truth is None:
        raise InputError(
            "rewards need the true mask", f"none in {episode.sample_id}", "record it with the episode"
        )
    truth = episode.truth
    before = _standing(episode.start_mask, truth)
    iou_start = iou_before = iou(before, truth)
    for turn in episode.turns:
        ended = turn.number == len(episode.turns)
        fault = turn.action is None or (ended and episode.status.is_policy_fault())
        made = _standing(turn.mask, truth)
        iou_made = iou(made, truth)
        for index, attempt in enumerate(turn.attempts):
            retried = index + 1 < len(turn.attempts)
            kept = retried or fault
            yield TextState(
                turn=turn.number,
                attempt=index,
                retried=retried,
                action=None if retried else turn.action,
                format_ok=attempt.format_fault is None and not kept,
                fault=kept,
                before=before,
                after=before if kept else made,
                truth=truth,
                iou_start=iou_start,
                iou_before=iou_before,
                iou_after=iou_before if kept else iou_made,
            )
        before, iou_before = made, iou_made


def _standing(mask: Mask | None, truth: Mask) -> Mask:
    return np.zeros_like(truth) if mask is None else mask


# --- the five rewards of the reference ----------------------------------------------------------


def s_format(state: TextState, thresholds: Thresholds) -> float:
    """1 where tags, action and answer are well formed, else 0."""
    return float(state.format_ok)


def s_ans(state: TextState, thresholds: Thresholds) -> float:
    """3, 2, 1 or 0 by the IoU of the mask after the action."""
    for above, reward in zip(thresholds.answer_iou, thresholds.answer_reward, strict=True):
        if state.iou_after > above:
            return reward
    return 0.0


def s_click(state: TextState, thresholds: Thresholds) -> float:
    """1 for a click inside its error before it, -1 elsewhere; Undo and Box by the IoU; Terminate 0."""
    if state.fault:
        return -1.0
    match state.action:
        case Terminate():
            return 0.0
        case Click() as click:
            missed, added = error_regions(state.truth, state.before)
            pixel = click_pixel(click, *state.truth.shape)
            return 1.0 if (missed if click.positive else added)[pixel] else -1.0
        case _:
            return 1.0 if state.iou_after > state.iou_before else -1.0


def s_pseg(state: TextState, thresholds: Thresholds) -> float:
    """1 where the action raised the IoU, else 0; Terminate 0, since it leaves the mask as it is."""
    return float(state.iou_after > state.iou_before)


def s_len(state: TextState, thresholds: Thresholds) -> float:
    """1 in a short episode's turns, then falling by `late_cost` a turn from 0."""
    late = state.turn - thresholds.free_turns
    return 1.0 if late <= 0 else -thresholds.late_cost * late


# --- the terms of the shaped profile ------------------------------------------------------------


def potential(state: TextState, thresholds: Thresholds) -> float:
    """Gain in IoU; over an episode these add up to the last IoU minus the first."""
    return state.iou_after - state.iou_before


def terminal(state: TextState, thresholds: Thresholds) -> float:
    """On Terminate the IoU of the result plus that of the start, else 0.

    The start is paid back so that keeping a good starting mask, or the empty one of an absent
    target, is worth as much as making a good mask from nothing.
    """
    stopped = isinstance(state.action, Terminate) and not state.fault
    return state.iou_start + state.iou_after if stopped else 0.0


def turn_cost(state: TextState, thresholds: Thresholds) -> float:
    """-1 for every turn."""
    return 0.0 if state.retried else -1.0


def malformed(state: TextState, thresholds: Thresholds) -> float:
    """-1 for every text that is not well formed or is a fault."""
    return s_format(state, thresholds) - 1.0


Term = Callable[[TextState, Thresholds], float]

TERMS: dict[str, Term] = {
    "S_format": s_format,
    "S_ans": s_ans,
    "S_click": s_click,
    "S_pseg": s_pseg,
    "S_len": s_len,
    "potential": potential,
    "terminal": terminal,
    "turn_cost": turn_cost,
    "malformed": malformed,
}


# --- profiles -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Which terms count how much, and how turns make an episode."""

    name: str
    weights: Mapping[str, float]  # by name of a term; the others are metrics
    pool: Literal["mean", "sum"]  # over turns; a sum also counts failed attempts
    thresholds: Thresholds = Thresholds()
    by_target: Mapping[str, Thresholds] = field(default_factory=dict)  # instead, for these targets

    def __post_init__(self) -> None:
        unknown = self.weights.keys() - TERMS.keys()
        if unknown:
            raise InputError("a profile weighs known terms", ", ".join(sorted(unknown)), _CHOICES)

    def thresholds_for(self, target: str | None) -> Thresholds:
        """Those of the target where it has its own, else the profile's."""
        return self.by_target.get(target or "", self.thresholds)

    def without(self, *terms: str) -> Profile:
        """The same profile with these terms as mere metrics, for ablations."""
        unknown = set(terms) - self.weights.keys()
        if unknown:
            raise InputError(f"{self.name} does not weigh this", ", ".join(sorted(unknown)))
        left = {name: weight for name, weight in self.weights.items() if name not in terms}
        return replace(self, name="-".join((self.name, *terms)), weights=left)


_CHOICES = f"choose from: {', '.join(TERMS)}"

PAPER = Profile("paper", dict.fromkeys(("S_format", "S_ans", "S_click", "S_pseg", "S_len"), 1 / 5), "mean")

SHAPED = Profile("shaped", {"potential": 0.5, "terminal": 0.5, "turn_cost": 0.02, "malformed": 0.1}, "sum")

PROFILES = {profile.name: profile for profile in (SHAPED, PAPER)}


def adapted(profile: Profile, episodes: Iterable[Episode], *, fewest: int = 5) -> Profile:
    """The profile with thresholds of its own for every target.

    `episodes` are a reference's, such as the oracle's with the same tool on training data. The
    median over a target's episodes of the best IoU on the way is taken for what can be reached
    there, and the thresholds are scaled by it. Targets with under `fewest` episodes, or whose
    median is 0, keep the profile's. Raises InputError where an episode has no true mask.
    """
    best: dict[str, list[float]] = {}
    for episode in episodes:
        reached = [state.iou_after for state in text_states(episode)]
        if episode.target is not None and reached:
            best.setdefault(episode.target, []).append(max(reached))
    ceilings = {target: statistics.median(all_) for target, all_ in best.items() if len(all_) >= fewest}
    own = {target: profile.thresholds.scaled(top) for target, top in ceilings.items() if top > 0}
    return replace(profile, by_target=own)


# --- scoring ------------------------------------------------------------------------------------


class Exclusion(StrEnum):
    """Why an episode has no reward and leaves its group."""

    OUTSIDE_FAULT = "outside_fault"  # tool, server, data, time-out, cancelled
    NO_TURN = "no_turn"  # it ended before the policy wrote anything (`unsupported_target`)


@dataclass(frozen=True)
class TextReward:
    """The breakdown of one policy text."""

    turn: int  # from 1
    attempt: int  # from 0
    retried: bool  # a failed attempt, which in RL is a sample of its own
    terms: Mapping[str, float]  # every term, unweighted
    reward: float  # their weighted sum


@dataclass(frozen=True)
class EpisodeReward:
    """The breakdown of an episode. `total` is None exactly where it is `excluded`."""

    profile: str
    texts: tuple[TextReward, ...]  # every policy text in order
    terms: Mapping[str, float]  # every term, unweighted, pooled as the profile says
    total: float | None
    excluded: Exclusion | None = None


def score_episode(episode: Episode, profile: Profile = SHAPED) -> EpisodeReward:
    """The reward of a finished episode and its breakdown.

    Faults that the policy did not cause are never a reward of 0: the episode is excluded. Raises
    InputError where the episode has no true mask.
    """
    if episode.status.is_outside_fault():
        return EpisodeReward(profile.name, (), {}, None, Exclusion.OUTSIDE_FAULT)
    thresholds = profile.thresholds_for(episode.target)
    texts = tuple(_score(state, profile, thresholds) for state in text_states(episode))
    if not texts:
        assert episode.status is EpisodeStatus.UNSUPPORTED_TARGET, f"no turn, but {episode.status}"
        return EpisodeReward(profile.name, (), {}, None, Exclusion.NO_TURN)
    pooled = texts if profile.pool == "sum" else [text for text in texts if not text.retried]
    share = 1.0 if profile.pool == "sum" else 1 / len(pooled)
    terms = {name: share * sum(text.terms[name] for text in pooled) for name in TERMS}
    return EpisodeReward(profile.name, texts, terms, share * sum(text.reward for text in pooled))


def _score(state: TextState, profile: Profile, thresholds: Thresholds) -> TextReward:
    terms = {name: term(state, thresholds) for name, term in TERMS.items()}
    reward = sum(weight * terms[name] for name, weight in profile.weights.items())
    return TextReward(state.turn, state.attempt, state.retried, terms, reward)


def with_rewards(episode: Episode, reward: EpisodeReward) -> Episode:
    """The episode with the breakdown in its turns, as the log keeps it.

    Each turn holds the terms and the `reward` of the text that counts and, where attempts failed
    before it, the sum of their rewards as `failed_attempts`.
    """
    kept: dict[int, dict[str, float]] = {}
    for text in reward.texts:
        turn = kept.setdefault(text.turn, {})
        if text.retried:
            turn["failed_attempts"] = turn.get("failed_attempts", 0.0) + text.reward
        else:
            turn |= {**text.terms, "reward": text.reward}
    turns = tuple(replace(turn, rewards=kept.get(turn.number, {})) for turn in episode.turns)
    return replace(episode, turns=turns)
