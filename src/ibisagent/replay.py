"""Replay a recorded episode: render every picture again and have the tool make every mask again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ibisagent import render
from ibisagent.episodes import check_actions
from ibisagent.errors import EpisodeFormatError
from ibisagent.fingerprint import differences
from ibisagent.masks import iou
from ibisagent.policies.scripted import fixed
from ibisagent.rollout import collect, host_record, rollout
from ibisagent.settings import Settings
from ibisagent.types import Episode, EpisodeStatus, Mask, Pixels, Sample, Tool, Verb, View

SAME_MACHINE = ("python", "platform", "numpy", "torch", "threads")
ELSEWHERE = 0.999  # IoU asked for at each step where build or threads differ (STYLE: equal runs)


@dataclass(frozen=True)
class ReplayedMask:
    """One mask of the record against the same one made again."""

    turn: int  # 0 is the start, -1 the result
    recorded: Mask | None
    made: Mask | None
    same_kind: bool = True  # False: the replay came to another end, or never to this turn

    @property
    def exact(self) -> bool:
        if self.recorded is None or self.made is None:
            return self.same_kind and self.recorded is self.made
        return self.same_kind and bool(np.array_equal(self.recorded, self.made))

    @property
    def iou(self) -> float:
        if not self.same_kind:
            return 0.0
        if self.recorded is None or self.made is None:
            return float(self.recorded is self.made)
        return iou(self.recorded, self.made)


@dataclass(frozen=True)
class Replay:
    """What replaying an episode found."""

    masks: tuple[ReplayedMask, ...]
    bit_exact_expected: bool  # same build and thread count as the recording
    tool_differences: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Every mask is the recorded one: bit by bit where that can be asked for, else IoU >= 0.999."""
        if self.bit_exact_expected:
            return all(mask.exact for mask in self.masks)
        return all(mask.iou >= ELSEWHERE for mask in self.masks)


def settings_of(episode: Episode) -> Settings:
    """The settings that the episode ran under, without its time limit. Raises EpisodeFormatError."""
    start: Literal["none", "proposal"] = "proposal" if episode.start == "proposal" else "none"
    known = dict(episode.settings) | {"time_limit": None}
    try:
        known["verbs"] = frozenset(Verb(verb) for verb in known["verbs"])
        return Settings(**known | {"start": start, "seed": episode.seed})
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeFormatError("an episode holds the settings that it ran under", str(error)) from None


def view_of(episode: Episode) -> View:
    """The size at which the policy saw the pictures. Raises EpisodeFormatError."""
    try:
        return View(**episode.fingerprint["view"])
    except (KeyError, TypeError, ValueError) as error:
        raise EpisodeFormatError("an episode holds the view of its policy", str(error)) from None


def observed_pictures(episode: Episode) -> list[Pixels]:
    """What the policy saw in each turn, rendered again; one more for the final mask."""
    masks = [episode.start_mask, *(turn.mask for turn in episode.turns)]
    style, view = settings_of(episode).style, view_of(episode)
    return [render.view_image(episode.picture, mask, view, style) for mask in masks]


def replay(episode: Episode, tool: Tool) -> Replay:
    """Run the recorded texts through the same loop with `tool`; compare every mask and the result.

    Raises EpisodeFormatError for a record that contradicts itself.
    """
    check_actions(episode)
    policy = fixed([attempt.text for turn in episode.turns for attempt in turn.attempts])
    policy.view = view_of(episode)
    sample = Sample(
        episode.sample_id,
        episode.picture,
        episode.instruction,
        start_mask=episode.start_mask if episode.start == "file" else None,
    )
    settings = settings_of(episode)
    if episode.status is EpisodeStatus.UNSUPPORTED_TARGET and not episode.turns:
        return Replay((), True, ())  # it never began
    [made] = collect(rollout([sample], policy, tool, settings))
    masks = [ReplayedMask(0, episode.start_mask, made.start_mask)]
    for index, turn in enumerate(episode.turns):
        there = index < len(made.turns)
        masks.append(ReplayedMask(turn.number, turn.mask, made.turns[index].mask if there else None, there))
    if episode.status is EpisodeStatus.TOOL_ERROR:
        masks.pop()  # what failed in the recording is not expected to fail again
    masks.append(_result(episode, made))
    here = host_record()
    changed = differences(dict(tool.fingerprint()), episode.fingerprint.get("tool", {}))
    same = all(here.get(key) == episode.host.get(key) for key in SAME_MACHINE)
    return Replay(tuple(masks), same and not changed, tuple(changed))


def _result(episode: Episode, made: Episode) -> ReplayedMask:
    """The recorded result against the one made again.

    Where the recording was ended from outside (an error, a limit, a person), the replay's own end
    is another, and the result is compared with the turn that it was taken from.
    """
    if not episode.status.is_outside_fault():
        ends = [(e.status, e.outcome, e.selected_turn) for e in (episode, made)]
        return ReplayedMask(-1, episode.mask, made.mask, ends[0] == ends[1])
    chosen = episode.selected_turn
    if chosen is None:
        return ReplayedMask(-1, episode.mask, None)
    source = (
        made.start_mask if chosen == 0 else made.turns[chosen - 1].mask if chosen <= len(made.turns) else None
    )
    return ReplayedMask(-1, episode.mask, source)
