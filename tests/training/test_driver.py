"""An engine's rollout is our rollout: same pictures, messages, masks and rewards, text by text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_episodes import same

from ibisagent.episodes import read_episodes
from ibisagent.errors import InputError, ToolError
from ibisagent.policies.scripted import ScriptedPolicy, noisy_oracle
from ibisagent.replay import settings_of, view_of
from ibisagent.rewards import PAPER, PROFILES, SHAPED, Exclusion, score_episode
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training.driver import Driver, EnginePolicy
from ibisagent.types import (
    BASE_VERBS,
    Episode,
    EpisodeStatus,
    Message,
    Observation,
    Sample,
    ToolRequest,
    Verb,
)

VERBS = BASE_VERBS | {Verb.UNDO}
SETTINGS = Settings(history="all", verbs=VERBS, max_turns=6)
POLICY = EnginePolicy("engine", VERBS)
GOLDEN = Path(__file__).parents[1] / "golden" / "episode-v1.jsonl"


class Watched:
    """A policy of ours that keeps what it was shown."""

    def __init__(self, policy) -> None:
        self.policy, self.seen = policy, []
        self.name, self.view, self.verbs = policy.name, POLICY.view, policy.verbs
        self.supports, self.fingerprint = policy.supports, policy.fingerprint

    def act(self, observations: Sequence[Observation]):
        self.seen += observations
        return self.policy.act(observations)


def ours(sample: Sample, policy, settings: Settings) -> tuple[Episode, list[Observation]]:
    watched = Watched(policy)
    [episode] = collect(rollout([sample], watched, ClassicalTool(), settings))
    return episode, watched.seen


def texts_of(episode: Episode) -> list[str]:
    return [attempt.text for turn in episode.turns for attempt in turn.attempts]


def played(driver: Driver, texts: list[str]) -> list[list[Message]]:
    """The conversation before each text, as an engine that appends would hold it."""
    held, shown = driver.begin(), []
    for text in texts:
        shown.append(held)
        new = driver.reply(text, tokens=len(text.split()))
        held = [*held, Message("assistant", text), *new]
    return shown


def assert_same_messages(mine: Sequence[Message], theirs: Sequence[Message]) -> None:
    assert [(m.role, m.text) for m in mine] == [(m.role, m.text) for m in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert len(one.images) == len(other.images)
        assert all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("started", [False, True])
def test_engine_and_loop_give_the_same_episode(sample: Sample, seed: int, started: bool) -> None:
    if started:
        sample = replace(sample, start_mask=np.roll(sample.truth, 9, axis=1))
    settings = replace(SETTINGS, seed=seed)
    policy = ScriptedPolicy("noisy", noisy_oracle(0.5), {sample.sample_id: sample.truth})
    episode, seen = ours(sample, policy, settings)
    driver = Driver(sample, settings, ClassicalTool(), POLICY)
    conversations = played(driver, texts_of(episode))
    assert len(conversations) == len(seen) > 1
    for held, observation in zip(conversations, seen, strict=True):
        assert_same_messages(held, observation.messages)
    made = driver.episode()
    assert driver.done and same(replace(made, fingerprint=episode.fingerprint), episode)
    for profile in PROFILES.values():
        assert score_episode(made, profile) == score_episode(episode, profile)


def test_golden_episode(sample: Sample) -> None:
    """With a retry, every base verb and an Undo; its masks were recorded without an engine."""
    [golden] = read_episodes(GOLDEN)
    settings = replace(settings_of(golden), history="all")
    recorded = Sample(golden.sample_id, golden.picture, golden.instruction, golden.target, golden.truth)
    driver = Driver(recorded, settings, ClassicalTool(), EnginePolicy("engine", VERBS, view_of(golden)))
    conversations = played(driver, texts_of(golden))
    made = driver.episode()
    assert len(made.turns) == len(golden.turns) == 4 and len(conversations) == 5
    for turn, recorded_turn in zip(made.turns, golden.turns, strict=True):
        assert (turn.mask is None) == (recorded_turn.mask is None)
        assert turn.mask is None or np.array_equal(turn.mask, recorded_turn.mask)
    roles = [message.role for message in conversations[-1]]
    assert roles == ["system", "user", *["assistant", "user"] * 4]
    assert [len(message.images) for message in conversations[-1]] == [0, 1, 0, 0, 0, 1, 0, 1, 0, 1]
    assert driver.reward() == score_episode(golden, SHAPED)


def test_new_messages_are_only_the_new_ones(sample: Sample) -> None:
    driver = Driver(sample, SETTINGS, ClassicalTool(), POLICY)
    first = driver.begin()
    assert [m.role for m in first] == ["system", "user"] and first[1].images[0].shape == (84, 140, 3)
    [retry] = driver.reply("hm")
    assert "no_action" in retry.text and not retry.images
    [second] = driver.reply("<think> a </think> <action> Positive Point (0.4, 0.4) </action>")
    assert "refined" in second.text and len(second.images) == 1
    stop = "<think> b </think> <action> Terminate </action> <answer> c </answer>"
    assert driver.reply(stop) == [] and driver.done
    assert driver.reply(stop) == [], "what comes after the end changes nothing"
    assert len(driver.episode().turns) == 2


class Broken(ClassicalTool):
    """Fails while encoding, with every click, or from the second click on."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def set_image(self, pictures) -> None:
        if self.when == "encode":
            raise ToolError("no memory left")

    def predict(self, requests: Sequence[ToolRequest]):
        if self.when == "click" or len(requests[0].clicks) > 1:
            raise ToolError("the server is gone")
        return super().predict(requests)


@pytest.mark.parametrize(("when", "turns"), [("encode", 0), ("click", 1), ("second", 2)])
def test_a_tool_that_fails_leaves_the_group(sample: Sample, when: str, turns: int) -> None:
    driver = Driver(sample, SETTINGS, Broken(when), POLICY)
    driver.begin()
    for x in (0.4, 0.5):
        driver.reply(f"<think> a </think> <action> Positive Point ({x}, 0.4) </action>")
    assert driver.episode().status is EpisodeStatus.TOOL_ERROR and len(driver.episode().turns) == turns
    assert driver.reward().total is None and driver.reward().excluded is Exclusion.OUTSIDE_FAULT


def test_a_server_that_fails_leaves_the_group(sample: Sample) -> None:
    driver = Driver(sample, SETTINGS, ClassicalTool(), POLICY)
    driver.begin()
    driver.reply("<think> a </think> <action> Positive Point (0.4, 0.4) </action>")
    driver.fail("timed out")
    driver.cut()
    assert driver.episode().status is EpisodeStatus.POLICY_ERROR and driver.reward().total is None


@pytest.mark.parametrize(
    ("texts", "status"),
    [
        ([], EpisodeStatus.UNPARSABLE),
        (["hm"], EpisodeStatus.UNPARSABLE),
        (["<think> a </think> <action> Positive Point (0.4, 0.4) </action>"], EpisodeStatus.TURN_LIMIT),
        (["<think> a </think> <action> Positive Point (0.4, 0.4) </action>", "hm"], EpisodeStatus.UNPARSABLE),
    ],
)
def test_a_rollout_that_the_engine_cuts_stays_and_pays(sample: Sample, texts: list[str], status) -> None:
    driver = Driver(sample, SETTINGS, ClassicalTool(), POLICY, profile=PAPER)
    driver.begin()
    for text in texts:
        driver.reply(text)
    driver.cut()
    assert driver.episode().status is status
    reward = driver.reward()
    assert reward.total is not None and reward.texts[-1].terms["S_format"] == 0
    assert reward.texts[-1].terms["S_click"] == -1


def test_what_does_not_fit_is_refused(sample: Sample) -> None:
    with pytest.raises(InputError, match="only appends"):
        Driver(sample, replace(SETTINGS, history="none"), ClassicalTool(), POLICY)
    with pytest.raises(InputError, match="taught"):
        Driver(sample, SETTINGS, ClassicalTool(), EnginePolicy("engine", BASE_VERBS))
    boxes_only = ClassicalTool()
    boxes_only.prompts = frozenset({"point"})
    with pytest.raises(InputError, match="takes masks"):
        Driver(replace(sample, start_mask=sample.truth), SETTINGS, boxes_only, POLICY)
