from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from test_episodes import same

from ibisagent.errors import InputError, PolicyError, ToolError
from ibisagent.masks import iou
from ibisagent.policies.scripted import RULES, ScriptedPolicy, noisy_oracle
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import (
    BASE_VERBS,
    Episode,
    EpisodeStatus,
    Outcome,
    PolicyReply,
    Sample,
    Support,
    ToolReply,
    ToolRequest,
    Verb,
)

SETTINGS = Settings(verbs=BASE_VERBS | {Verb.UNDO}, max_turns=6)


@pytest.fixture
def samples(sample: Sample) -> list[Sample]:
    """Five different pictures of different sizes with their true masks."""
    made = []
    for index in range(5):
        pixels = np.roll(sample.picture.pixels, 7 * index, axis=1)[: 96 - 4 * index]
        truth = np.roll(sample.truth, 7 * index, axis=1)[: 96 - 4 * index]
        picture = replace(sample.picture, pixels=np.ascontiguousarray(pixels))
        made.append(replace(sample, sample_id=f"s{index}", picture=picture, truth=truth))
    return made


def noisy(samples: list[Sample]) -> ScriptedPolicy:
    return ScriptedPolicy("noisy", noisy_oracle(0.5), {s.sample_id: s.truth for s in samples})


def test_a_batch_gives_the_same_episodes_as_one_after_the_other(samples: list[Sample]) -> None:
    def run(batch_size: int) -> dict[tuple[str, int], Episode]:
        policy, tool = noisy(samples), ClassicalTool()
        events = rollout(samples, policy, tool, SETTINGS, group=3, batch_size=batch_size)
        return {(episode.sample_id, episode.rollout): episode for episode in collect(events)}

    one, many = run(1), run(4)
    assert len(one) == 15 and one.keys() == many.keys()
    assert all(same(one[key], many[key]) for key in one)
    texts = {tuple(turn.attempts[0].text for turn in one["s0", r].turns) for r in range(3)}
    assert len(texts) > 1, "rollouts of a group draw differently"


def test_turns_come_in_order_and_the_episode_last(samples: list[Sample]) -> None:
    seen: dict[int, list[int]] = {}
    finished = set()
    for event in rollout(samples, noisy(samples), ClassicalTool(), SETTINGS, batch_size=3):
        assert event.number not in finished
        if event.turn is not None:
            seen.setdefault(event.number, []).append(event.turn.number)
        if event.episode is not None:
            finished.add(event.number)
            assert seen[event.number] == list(range(1, len(event.episode.turns) + 1))
    assert finished == set(range(5))


def test_the_oracle_succeeds_through_the_loop(samples: list[Sample]) -> None:
    policy = ScriptedPolicy("oracle", RULES["oracle"], {s.sample_id: s.truth for s in samples})
    for episode, sample in zip(
        collect(rollout(samples, policy, ClassicalTool(), SETTINGS)), samples, strict=True
    ):
        assert episode.status is EpisodeStatus.TERMINATED and iou(episode.mask, sample.truth) >= 0.8


class BrokenTool(ClassicalTool):
    """Fails on pictures of one height: per reply, as a whole, or while encoding."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def set_image(self, pictures: Sequence) -> None:
        if self.how == "encode":
            raise ToolError("the encoder has no memory left")
        super().set_image(pictures)

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        if self.how == "raise":
            raise ToolError("the server is gone")
        return [
            ToolReply(error="this one failed") if request.picture.height == 88 else reply
            for request, reply in zip(requests, super().predict(requests), strict=True)
        ]


def test_one_failed_tool_call_does_not_touch_the_other_episodes(samples: list[Sample]) -> None:
    policy = ScriptedPolicy("oracle", RULES["oracle"], {s.sample_id: s.truth for s in samples})
    episodes = {
        e.sample_id: e for e in collect(rollout(samples, policy, BrokenTool("one"), SETTINGS, batch_size=5))
    }
    assert episodes["s2"].status is EpisodeStatus.TOOL_ERROR and episodes["s2"].outcome is Outcome.NONE
    assert [episodes[f"s{i}"].status for i in (0, 1, 3, 4)] == [EpisodeStatus.TERMINATED] * 4


@pytest.mark.parametrize("how", ["raise", "encode"])
def test_a_tool_that_fails_as_a_whole_is_a_status(samples: list[Sample], how: str) -> None:
    policy = ScriptedPolicy("centre", RULES["image-centre"])
    episodes = list(collect(rollout(samples, policy, BrokenTool(how), SETTINGS, batch_size=2)))
    assert [episode.status for episode in episodes] == [EpisodeStatus.TOOL_ERROR] * 5
    assert all(
        (episode.mask is None and "no" in episode.message) or "gone" in episode.message
        for episode in episodes
    )


class MoodyPolicy(ScriptedPolicy):
    """Knows only some instructions and fails as asked."""

    def __init__(self, fails: bool) -> None:
        super().__init__("moody", RULES["stop-at-once"])
        self.fails = fails

    def supports(self, instruction: str) -> Support:
        return Support("disc" in instruction, reason="I know discs.")

    def act(self, observations: Sequence) -> list[PolicyReply]:
        if self.fails:
            raise PolicyError("the endpoint is gone")
        return super().act(observations)


def test_unsupported_targets_end_before_turn_1(samples: list[Sample]) -> None:
    samples[1] = replace(samples[1], instruction="Find the unicorn")
    episodes = list(collect(rollout(samples, MoodyPolicy(False), ClassicalTool(), SETTINGS, batch_size=2)))
    refused = [e for e in episodes if e.status is EpisodeStatus.UNSUPPORTED_TARGET]
    assert len(refused) == 1 and not refused[0].turns and refused[0].mask is None
    assert refused[0].message == "I know discs." and refused[0].outcome is Outcome.NONE


def test_a_policy_that_fails_as_a_whole_is_a_status(samples: list[Sample]) -> None:
    episodes = list(collect(rollout(samples, MoodyPolicy(True), ClassicalTool(), SETTINGS)))
    assert {episode.status for episode in episodes} == {EpisodeStatus.POLICY_ERROR}


def test_what_does_not_fit_is_refused_before_turn_1(samples: list[Sample]) -> None:
    policy = ScriptedPolicy("centre", RULES["image-centre"])
    with pytest.raises(InputError, match="leave Box out"):
        next(rollout(samples, policy, ClassicalTool(), replace(SETTINGS, verbs=frozenset(Verb))))
    with pytest.raises(InputError, match="--start none"):
        next(rollout(samples, policy, ClassicalTool(), replace(SETTINGS, start="proposal")))
    boxes_only = ClassicalTool()
    boxes_only.prompts = frozenset({"box"})
    with pytest.raises(InputError, match="--point-to-box"):
        next(rollout(samples, policy, boxes_only, SETTINGS))
    untaught = ScriptedPolicy("centre", RULES["image-centre"])
    untaught.verbs = BASE_VERBS
    with pytest.raises(InputError, match="taught"):
        next(rollout(samples, untaught, ClassicalTool(), SETTINGS))


def test_our_own_bugs_raise(samples: list[Sample]) -> None:
    class Bug(ScriptedPolicy):
        def act(self, observations: Sequence) -> list[PolicyReply]:
            return []

    with pytest.raises(AssertionError):
        list(rollout(samples, Bug("bug", RULES["oracle"]), ClassicalTool(), SETTINGS))
