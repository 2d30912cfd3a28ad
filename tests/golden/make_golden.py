"""Writes tests/golden/episode-v1.jsonl. Run it only together with a change of the schema version."""

from pathlib import Path

import numpy as np

from ibisagent.episodes import write_episodes
from ibisagent.policies.scripted import fixed
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import BASE_VERBS, Episode, Picture, Sample, Verb

TEXTS = [
    "I think it is in the middle.",
    "<think> The bright disc lies left of the centre. </think> <action> Positive Point (0.4000, 0.4000) </action>",
    "<think> That is beside it. </think> <action> Negative Point (0.9000, 0.9000) </action>",
    "<think> Not needed. </think> <action> Undo </action>",
    "<think> It fits. </think> <action> Terminate </action> <answer> One bright disc “left” of the centre. </answer>",
]


def golden_episode() -> Episode:
    """A tiny episode with a retry, every base verb and an Undo."""
    rows, columns = np.mgrid[:40, :50]
    truth = (rows - 16) ** 2 + (columns - 20) ** 2 <= 81
    pixels = np.where(truth[..., None], np.uint8([200, 180, 160]), np.uint8([30, 40, 50])).astype(np.uint8)
    picture = Picture(pixels, (1.0, 0.5), "known", ("The window was 0 to 255.",), "MR")
    sample = Sample("golden", picture, "Find the bright disc.", target="disc", truth=truth)
    settings = Settings(verbs=BASE_VERBS | {Verb.UNDO}, seed=3)
    [episode] = collect(rollout([sample], fixed(TEXTS), ClassicalTool(), settings))
    return episode


if __name__ == "__main__":
    write_episodes(Path(__file__).with_name("episode-v1.jsonl"), [golden_episode()])
