"""Replay a recorded episode: render every picture again and have the tool make every mask again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ibisagent import render
from ibisagent.environment import Settings
from ibisagent.fingerprint import differences
from ibisagent.masks import iou
from ibisagent.policies.scripted import fixed
from ibisagent.rollout import collect, host_record, rollout
from ibisagent.types import Episode, EpisodeStatus, Mask, Pixels, Sample, Tool, Verb, View

SAME_MACHINE = ("python", "platform", "numpy", "torch", "threads")
ELSEWHERE = 0.999  # IoU asked for at each step where build or threads differ (STYLE: equal runs)


@dataclass(frozen=True)
class ReplayedMask:
    """One mask of the record against the same one made again."""

    turn: int  # 0 is the start
    recorded: Mask | None
    made: Mask | None

    @property
    def exact(self) -> bool:
        if self.recorded is None or self.made is None:
            return self.recorded is self.made
        return bool(np.array_equal(self.recorded, self.made))

    @property
    def iou(self) -> float:
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
    """The settings that the episode ran under, without its time limit."""
    known = dict(episode.settings)
    known["verbs"] = frozenset(Verb(verb) for verb in known["verbs"])
    known["time_limit"] = None
    start: Literal["none", "proposal"] = "proposal" if episode.start == "proposal" else "none"
    return Settings(start=start, seed=episode.seed, **known)


def view_of(episode: Episode) -> View:
    """The size at which the policy saw the pictures."""
    return View(**episode.fingerprint["view"])


def observed_pictures(episode: Episode) -> list[Pixels]:
    """What the policy saw in each turn, rendered again; one more for the final mask."""
    masks = [episode.start_mask, *(turn.mask for turn in episode.turns)]
    style, view = settings_of(episode).style, view_of(episode)
    return [render.view_image(episode.picture, mask, view, style) for mask in masks]


def replay(episode: Episode, tool: Tool) -> Replay:
    """Run the recorded texts through the same loop with `tool` and compare every mask."""
    texts = [attempt.text for turn in episode.turns for attempt in turn.attempts]
    policy = fixed(texts)
    policy.view = view_of(episode)
    sample = Sample(
        episode.sample_id,
        episode.picture,
        episode.instruction,
        start_mask=episode.start_mask if episode.start == "file" else None,
    )
    settings = settings_of(episode)
    # an episode that never began (unsupported target) has nothing to be made again
    if not episode.turns and episode.status is EpisodeStatus.UNSUPPORTED_TARGET:
        return Replay((), True, ())
    [made] = collect(rollout([sample], policy, tool, settings))
    masks = [ReplayedMask(0, episode.start_mask, made.start_mask)]
    # the reply that failed in the recording is not expected to fail again
    failed = 1 if episode.status is EpisodeStatus.TOOL_ERROR else 0
    for index, turn in enumerate(episode.turns[: len(episode.turns) - failed]):
        again = made.turns[index].mask if index < len(made.turns) else None
        masks.append(ReplayedMask(turn.number, turn.mask, again))
    here = host_record()
    same = all(here.get(key) == episode.host.get(key) for key in SAME_MACHINE)
    changed = differences(dict(tool.fingerprint()), episode.fingerprint.get("tool", {}))
    return Replay(tuple(masks), same, tuple(changed))
