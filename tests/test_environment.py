"""The rules of METHOD section 2, one by one, with the classical tool where a tool is asked."""

from dataclasses import replace

import numpy as np
import pytest

from ibisagent import render
from ibisagent.environment import Environment
from ibisagent.errors import InputError
from ibisagent.rollout import collect, rollout
from ibisagent.seeding import seed_for
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import (
    BASE_VERBS,
    Click,
    Episode,
    EpisodeStatus,
    Outcome,
    ParseFailure,
    PolicyReply,
    Sample,
    ToolReply,
    Verb,
    View,
)

UNDO = Settings(verbs=BASE_VERBS | {Verb.UNDO})
ON_DISC = "<think> a </think> <action> Positive Point (0.3906, 0.4167) </action>"
BESIDE = "<think> a </think> <action> Negative Point (0.7656, 0.6875) </action>"
OTHER = "<think> a </think> <action> Positive Point (0.7656, 0.6875) </action>"
TAKE_BACK = "<think> a </think> <action> Undo </action>"
STOP = "<think> a </think> <action> Terminate </action> <answer> found </answer>"


def run(sample: Sample, texts: list[str], settings: Settings = UNDO) -> Episode:
    from ibisagent.policies.scripted import fixed

    [episode] = collect(rollout([sample], fixed(texts), ClassicalTool(), settings))
    return episode


def test_clicks_make_a_mask_and_terminate_keeps_it(sample: Sample) -> None:
    episode = run(sample, [ON_DISC, STOP])
    assert (episode.status, episode.outcome) == (EpisodeStatus.TERMINATED, Outcome.SEGMENTED)
    assert episode.answer == "found" and episode.selected_turn == 2
    intersection = (episode.mask & sample.truth).sum() / (episode.mask | sample.truth).sum()
    assert intersection > 0.9
    assert [turn.number for turn in episode.turns] == [1, 2]
    assert np.array_equal(episode.turns[0].mask, episode.turns[1].mask)


def test_terminate_without_a_mask_means_absent(sample: Sample) -> None:
    episode = run(sample, [STOP])
    assert (episode.status, episode.outcome) == (EpisodeStatus.TERMINATED, Outcome.ABSENT)
    assert episode.mask.shape == (96, 128) and not episode.mask.any() and episode.selected_turn is None


def test_all_undone_and_terminated_means_absent(sample: Sample) -> None:
    episode = run(sample, [ON_DISC, TAKE_BACK, STOP])
    assert episode.outcome is Outcome.ABSENT and episode.turns[1].mask is None


def test_undo_restores_mask_score_and_logits(sample: Sample) -> None:
    tool = ClassicalTool()
    env = Environment(sample, UNDO, View())
    env.begin()
    env.step(ON_DISC, tool)
    before = env.state
    env.step(BESIDE, tool)
    assert env.state.clicks != before.clicks
    env.step(TAKE_BACK, tool)
    assert env.state is before
    env.step(TAKE_BACK, tool)
    assert env.state.mask is None and env.state.clicks == ()
    turn = env.step(TAKE_BACK, tool)
    assert turn is not None and turn.note == "There is nothing to undo."


def test_undo_with_no_click_left_removes_the_starting_mask(sample: Sample) -> None:
    start = np.zeros((96, 128), bool)
    start[:20] = True
    episode = run(replace(sample, start_mask=start), [TAKE_BACK, STOP])
    assert episode.start == "file" and np.array_equal(episode.start_mask, start)
    assert episode.turns[0].mask is None and episode.outcome is Outcome.ABSENT


def test_a_starting_mask_is_the_result_of_an_immediate_stop(sample: Sample) -> None:
    start = np.zeros((96, 128), bool)
    start[10:20, 10:20] = True
    episode = run(replace(sample, start_mask=start), [STOP])
    assert episode.outcome is Outcome.SEGMENTED and np.array_equal(episode.mask, start)


def test_a_negative_click_alone_is_never_sent_to_the_tool(sample: Sample) -> None:
    env = Environment(sample, UNDO, View())
    env.begin()
    assert env.submit(PolicyReply(BESIDE)) is None
    turn = env.receive(None)
    assert turn is not None and turn.mask is None and "no mask yet" in turn.note
    request = env.submit(PolicyReply(ON_DISC))
    assert request is not None and [click.positive for click in request.clicks] == [False, True]


@pytest.mark.parametrize(
    "texts",
    [
        [ON_DISC, ON_DISC],
        [ON_DISC, ON_DISC.replace("0.3906", "0.3940")],
        [ON_DISC, BESIDE, ON_DISC],
        [ON_DISC, TAKE_BACK, ON_DISC, TAKE_BACK],
    ],
    ids=["same", "near-duplicate", "same-later", "A-B-A-B"],
)
def test_repeated_actions_end_the_episode_with_the_mask_unchanged(sample: Sample, texts: list[str]) -> None:
    episode = run(sample, [*texts, STOP])
    assert episode.status is EpisodeStatus.REPEATED_CLICK and len(episode.turns) == len(texts)
    if texts[-1] != TAKE_BACK:
        assert np.array_equal(episode.turns[-1].mask, episode.turns[-2].mask)
        assert episode.outcome is Outcome.SEGMENTED


def test_the_opposite_sign_at_one_place_is_no_repetition(sample: Sample) -> None:
    flipped = ON_DISC.replace("Positive", "Negative")
    assert run(sample, [ON_DISC, flipped, STOP]).status is EpisodeStatus.TERMINATED


def test_a_retry_is_an_attempt_of_the_same_turn(sample: Sample) -> None:
    episode = run(sample, ["nonsense", ON_DISC, STOP])
    first = episode.turns[0]
    assert [attempt.failure for attempt in first.attempts] == [ParseFailure.NO_ACTION, None]
    assert len(episode.turns) == 2 and first.attempts[0].text == "nonsense"
    assert first.attempts[0].seed != first.attempts[1].seed


def test_two_unparsable_texts_end_the_episode_and_keep_the_mask(sample: Sample) -> None:
    episode = run(sample, [ON_DISC, "nonsense", "(0.5, 0.5)"])
    assert episode.status is EpisodeStatus.UNPARSABLE and episode.outcome is Outcome.SEGMENTED
    assert episode.turns[1].action is None and "no_action" in episode.message
    assert np.array_equal(episode.mask, episode.turns[0].mask)
    assert run(sample, ["nonsense"] * 2).outcome is Outcome.NONE
    assert run(sample, ["nonsense"] * 2).mask is None


def test_turn_limit_time_limit_and_policy_error(sample: Sample) -> None:
    episode = run(sample, [ON_DISC, BESIDE], replace(UNDO, max_turns=2))
    assert (episode.status, episode.outcome) == (EpisodeStatus.TURN_LIMIT, Outcome.SEGMENTED)
    assert run(sample, [ON_DISC], replace(UNDO, time_limit=1e-9)).status is EpisodeStatus.TIME_LIMIT
    episode = run(sample, [ON_DISC])
    assert episode.status is EpisodeStatus.POLICY_ERROR and "used up" in episode.message


def test_cancelling_keeps_what_stands(sample: Sample) -> None:
    from ibisagent.policies.scripted import fixed

    seen = []
    events = rollout(
        [sample], fixed([ON_DISC, BESIDE, STOP]), ClassicalTool(), UNDO, cancelled=lambda: len(seen) >= 1
    )
    for event in events:
        if event.start is None:
            seen.append(event)
    assert seen[-1].episode.status is EpisodeStatus.CANCELLED
    assert np.array_equal(seen[-1].episode.mask, seen[0].turn.mask)


def test_a_failed_tool_call_is_a_status_and_never_an_empty_mask(sample: Sample) -> None:
    env = Environment(sample, UNDO, View())
    env.begin()
    env.step(ON_DISC, ClassicalTool())
    standing = env.state.mask
    env.submit(PolicyReply(OTHER))
    env.receive(ToolReply(error="out of memory"))
    episode = env.episode({}, {})
    assert episode.status is EpisodeStatus.TOOL_ERROR and episode.turns[1].note == "out of memory"
    assert np.array_equal(episode.mask, standing)
    first = Environment(sample, UNDO, View())
    first.begin()
    first.submit(PolicyReply(ON_DISC))
    first.receive(ToolReply(error="out of memory"))
    assert first.episode({}, {}).mask is None and first.episode({}, {}).outcome is Outcome.NONE


def test_select_best_takes_the_mask_with_the_highest_score(sample: Sample) -> None:
    env = Environment(sample, replace(UNDO, select="best"), View())
    env.begin()
    for text, score in ((ON_DISC, 0.9), (OTHER, 0.4)):
        env.submit(PolicyReply(text))
        mask = np.full((96, 128), score > 0.5)
        env.receive(ToolReply(mask, score))
    env.submit(PolicyReply(STOP))
    env.receive(None)
    episode = env.episode({}, {})
    assert episode.selected_turn == 1 and episode.mask.all()


def test_the_observation_shows_the_painted_picture_and_nothing_of_the_truth(sample: Sample) -> None:
    env = Environment(sample, UNDO, View())
    env.begin()
    first = env.observe()
    assert np.array_equal(first.image, sample.picture.pixels) and first.mask is None
    assert env.observe().messages == first.messages  # looking twice changes nothing
    env.step(ON_DISC, ClassicalTool())
    second = env.observe()
    assert np.array_equal(second.image, render.paint(sample.picture.pixels, env.state.mask))
    assert second.clicks == (Click(0.3906, 0.4167, True),) and second.turn == 2
    assert [message.role for message in second.messages] == ["system", "user"]
    assert second.seed == seed_for(0, "two-discs", 0, 2, 0) and second.laterality == "assumed"
    sided = Environment(replace(sample, picture=replace(sample.picture, laterality="known")), UNDO, View())
    sided.begin()
    assert sided.observe().laterality == "known"
    assert not any(value is sample.truth for value in vars(second).values())


def test_what_a_proposal_may_be(sample: Sample) -> None:
    settings = replace(UNDO, start="proposal")
    mask = np.zeros((96, 128), bool)
    for reply, status in (
        (ToolReply(), None),
        (ToolReply(mask), None),
        (ToolReply(error="no memory"), EpisodeStatus.TOOL_ERROR),
    ):
        env = Environment(sample, settings, View(), tool_hears_text=True)
        request = env.begin()
        assert request is not None and request.instruction == sample.instruction
        env.receive_start(reply)
        assert env.state.mask is None and env.done == (status is not None)
    env = Environment(sample, settings, View(), tool_hears_text=True)
    env.begin()
    env.receive_start(ToolReply(sample.truth, 0.7, np.zeros((4, 4), np.float32)))
    request = env.submit(PolicyReply(OTHER))
    assert request is not None and request.low_res_logits is env.state.low_res_logits
    assert request.instruction == sample.instruction


def test_the_tool_hears_no_text_without_a_proposal(sample: Sample) -> None:
    env = Environment(sample, UNDO, View(), tool_hears_text=True)
    env.begin()
    request = env.submit(PolicyReply(ON_DISC))
    assert request is not None and request.instruction is None


def test_four_undos_that_each_take_something_back_are_no_repetition(sample: Sample) -> None:
    clicks = [ON_DISC.replace("0.4167", f"0.{y}") for y in (36, 40, 44, 48)]
    episode = run(sample, [*clicks, *[TAKE_BACK] * 4, STOP])
    assert episode.status is EpisodeStatus.TERMINATED and episode.outcome is Outcome.ABSENT
    assert run(sample, [TAKE_BACK] * 5).status is EpisodeStatus.REPEATED_CLICK


def test_select_best_never_takes_what_was_taken_back(sample: Sample) -> None:
    env = Environment(sample, replace(UNDO, select="best"), View())
    env.begin()
    for text, score in ((ON_DISC, 0.9), (TAKE_BACK, None), (OTHER, 0.4), (STOP, None)):
        request = env.submit(PolicyReply(text))
        env.receive(ToolReply(np.full((96, 128), score == 0.4), score) if request is not None else None)
    assert env.episode({}, {}).selected_turn == 3 and env.episode({}, {}).mask.all()


def test_an_empty_starting_mask_is_no_mask(sample: Sample) -> None:
    empty = replace(sample, start_mask=np.zeros((96, 128), bool))
    assert run(empty, [STOP]).outcome is Outcome.ABSENT


def test_attempts_of_a_turn_cut_short_are_kept(sample: Sample) -> None:
    episode = run(sample, [ON_DISC, "nonsense"])  # then the list is used up
    assert episode.status is EpisodeStatus.POLICY_ERROR and episode.turns[1].attempts[0].text == "nonsense"
    assert episode.turns[1].action is None and np.array_equal(episode.mask, episode.turns[0].mask)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_turns": 0}, {"retries": -1}, {"history": "some"}, {"select": "Best"}, {"start": "propsal"},
        {"time_limit": float("nan")}, {"time_limit": float("inf")}, {"style": "x"}, {"verbs": frozenset()},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)
