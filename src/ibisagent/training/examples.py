"""From episodes to training examples: what the policy saw at each of its texts.

The one environment is driven again with the recorded texts and masks, so that pictures, prompts
and history are what a rollout would show, at the size that the policy to be trained wants. No tool
runs. Rollouts of reinforcement learning come with their observations, and skip this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ibisagent.environment import Environment
from ibisagent.errors import EpisodeFormatError
from ibisagent.replay import settings_of
from ibisagent.synthesis.trajectories import wrong_turns
from ibisagent.training.trainable import Example, Written
from ibisagent.types import Episode, Observation, PolicyReply, Sample, ToolReply, View

Step = tuple[Observation, Written]


def observed_steps(episode: Episode, view: View, history: str | None = None) -> list[Step]:
    """Every text of an episode in order, failed attempts included, with what it answers.

    Texts that could not be executed and injected wrong clicks (`wrong_turns`) get weight None: they
    are there to be read and mended, not learned. `history` replaces the recorded mode. Raises
    EpisodeFormatError for a record whose texts do not lead to its turns.
    """
    settings = settings_of(episode)
    if history is not None:
        settings = replace(settings, history=history)
    sample = Sample(
        episode.sample_id,
        episode.picture,
        episode.instruction,
        start_mask=episode.start_mask if episode.start == "file" else None,
    )
    env = Environment(sample, settings, view, rollout=episode.rollout)
    env.begin()
    if episode.start == "proposal":
        env.receive_start(ToolReply(episode.start_mask))
    wrong = set(wrong_turns(episode)) if episode.truth is not None else set()
    nothing = np.zeros((episode.picture.height, episode.picture.width), bool)
    steps: list[Step] = []
    for turn in episode.turns:
        for attempt in turn.attempts:
            if env.done:
                raise EpisodeFormatError(
                    "the texts of an episode lead to its turns", f"an end before turn {turn.number}"
                )
            learned = attempt.failure is None and turn.number not in wrong
            observation = env.observe()
            steps.append((observation, Written(attempt.text, weight=1.0 if learned else None)))
            asked = env.submit(PolicyReply(attempt.text))
            mask = nothing if turn.mask is None else turn.mask
            env.receive(None if asked is None else ToolReply(mask, turn.score))
    return steps


def examples_of(steps: Sequence[Step], history: str) -> list[Example]:
    """One example a text or, where the conversation only grows (`all`), one for the whole episode.

    Texts of weight None are read where a later one is trained; where none is, nothing comes out.
    """
    texts = tuple(written for _, written in steps)
    if history == "all":
        trained = [index for index, written in enumerate(texts) if written.weight is not None]
        return [Example(steps[trained[-1]][0], texts[: trained[-1] + 1])] if trained else []
    return [
        Example(observation, (*_earlier(observation), written))
        for observation, written in steps
        if written.weight is not None
    ]


def _earlier(observation: Observation) -> tuple[Written, ...]:
    """The texts that the conversation already holds, to be read only."""
    return tuple(
        Written(message.text, weight=None) for message in observation.messages if message.role == "assistant"
    )
