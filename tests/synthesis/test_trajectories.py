"""Every kind of trajectory does what its name says, in the real environment with the classical tool."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import disc
from test_episodes import same

from ibisagent.actions import parse
from ibisagent.environment import Settings
from ibisagent.errors import InputError
from ibisagent.masks import iou
from ibisagent.replay import replay
from ibisagent.synthesis.mistakes import good_mask, wrong_click, wrong_mask
from ibisagent.synthesis.trajectories import (
    Mix,
    Plan,
    Teaching,
    plan,
    reached,
    trajectories,
    wrong_turns,
)
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import BASE_VERBS, Click, EpisodeStatus, Outcome, Picture, Sample, Undo, Verb

UNDO = Settings(verbs=BASE_VERBS | {Verb.UNDO}, seed=5)
OTHER = disc(96, 128, 66, 98, 14)
TOOL = ClassicalTool()


def only(kind, stop_at=0.8, clicks="centre"):
    shares = dict.fromkeys(("plain", "self_correction", "wrong_start", "stop", "absent"), 0.0)
    return Teaching(stop_at, clicks, Mix(**(shares | {kind: 1.0})))


def make(sample, teaching, settings=UNDO, others=(OTHER,), count=1, **options):
    named = [
        replace(sample, sample_id=f"{sample.sample_id}/{index}", target="bright disc")
        for index in range(count)
    ]
    planned = [plan(one, others, teaching, settings.seed) for one in named]
    return list(trajectories(planned, TOOL, teaching, settings, **options))


def actions(episode):
    return [type(turn.action).__name__ for turn in episode.turns]


def test_plain(sample):
    [episode] = make(sample, only("plain"))
    assert episode.kind == "plain" and episode.start == "none" and actions(episode)[-1] == "Terminate"
    assert iou(episode.mask, sample.truth) >= 0.8 and reached(episode, 0.8)
    assert wrong_turns(episode) == ()
    earlier = [turn.mask for turn in episode.turns[:-2]]
    assert all(iou(mask, sample.truth) < 0.8 for mask in earlier), "it stops as soon as it may"


def test_self_correction_takes_the_wrong_click_back(sample):
    episodes = make(sample, only("self_correction"), count=12)
    assert {episode.kind for episode in episodes} == {"self_correction"}
    first = set()
    for episode in episodes:
        [wrong] = wrong_turns(episode)
        first.add(wrong)
        turn, answer = episode.turns[wrong - 1], episode.turns[wrong]
        assert isinstance(turn.action, Click) and isinstance(answer.action, Undo)
        before = episode.turns[wrong - 2].mask if wrong > 1 else None
        assert (answer.mask is None and before is None) or np.array_equal(answer.mask, before)
        assert iou(episode.mask, sample.truth) >= 0.8 and actions(episode)[-1] == "Terminate"
    assert first == {1, 2}, "wrong clicks come first and later"
    assert len({turn.think for episode in episodes for turn in episode.turns}) > 12, "wording varies"


def test_self_correction_without_undo_answers_with_an_opposite_click(sample):
    episodes = make(sample, only("self_correction"), Settings(seed=5), count=8)
    kept = [episode for episode in episodes if episode.kind == "self_correction"]
    assert len(kept) >= 4, "most of them come to the IoU"
    for episode in kept:
        assert "Undo" not in actions(episode)
        wrong = wrong_turns(episode)[0]
        turn, answer = episode.turns[wrong - 1], episode.turns[wrong]
        assert isinstance(answer.action, Click) and answer.action.positive != turn.action.positive


def test_wrong_start_is_undone_or_corrected(sample):
    [episode] = make(sample, only("wrong_start"))
    assert episode.kind == "wrong_start" and episode.start == "file"
    np.testing.assert_array_equal(episode.start_mask, OTHER)
    assert isinstance(episode.turns[0].action, Undo) and episode.turns[0].mask is None
    assert wrong_turns(episode) == () and reached(episode, 0.8)
    [episode] = make(sample, only("wrong_start"), Settings(seed=5))
    assert isinstance(episode.turns[0].action, Click) and wrong_turns(episode) == ()
    moved = make(sample, only("wrong_start"), others=(), count=4)
    assert {episode.kind for episode in moved} == {"wrong_start"}
    assert all((episode.start_mask & sample.truth).sum() < 0.08 * sample.truth.sum() for episode in moved)


def test_stop_terminates_at_once(sample):
    for episode in make(sample, only("stop"), count=4):
        assert episode.kind == "stop" and actions(episode) == ["Terminate"]
        assert iou(episode.start_mask, sample.truth) >= 0.8
        np.testing.assert_array_equal(episode.mask, episode.start_mask)


def test_absent_says_so(sample):
    gone = replace(sample, truth=np.zeros_like(sample.truth))
    [episode] = make(gone, Teaching())
    assert (
        episode.kind == "absent" and episode.outcome is Outcome.ABSENT and actions(episode) == ["Terminate"]
    )
    assert "not" in episode.answer.lower() or "no " in episode.answer.lower()


def test_thoughts_are_well_formed_and_hold_no_coordinates_or_scores(sample):
    for kind in ("plain", "self_correction", "wrong_start", "stop"):
        for episode in make(sample, only(kind), count=3):
            for turn in episode.turns:
                parsed = parse(turn.attempts[-1].text, UNDO.verbs)
                assert parsed.format_ok and len(turn.attempts) == 1
                assert not any(character.isdigit() for character in turn.think)
                assert turn.think and "{" not in turn.think


def test_what_never_reaches_the_iou_is_marked(sample):
    blank = replace(sample, picture=Picture(np.full((96, 128, 3), 90, np.uint8)))
    [episode] = make(blank, only("plain", stop_at=0.999), Settings(max_turns=3))
    assert episode.kind == "unreached" and episode.status is EpisodeStatus.TURN_LIMIT


def test_the_teacher_never_repeats_itself(sample):
    """A target of a few pixels in a large picture: clicks nearer than the repetition radius are not made."""
    truth = disc(400, 400, 200, 200, 2)
    picture = Picture(np.full((400, 400, 3), 128, np.uint8))
    small = Sample("small", picture, "Find it.", target="dot", truth=truth)
    [episode] = trajectories([plan(small, (), only("plain"), 0)], TOOL, only("plain"), Settings(max_turns=12))
    assert episode.status is not EpisodeStatus.REPEATED_CLICK


@pytest.mark.parametrize("clicks", ["centre", "people"])
def test_the_same_seed_gives_the_same_trajectories_in_any_batch(sample, clicks):
    teaching = Teaching(clicks=clicks)
    one = {episode.sample_id: episode for episode in make(sample, teaching, count=6)}
    many = {episode.sample_id: episode for episode in make(sample, teaching, count=6, batch_size=4)}
    assert one.keys() == many.keys() and all(same(one[key], many[key]) for key in one)


def test_every_trajectory_replays_to_its_masks(sample):
    for kind in ("plain", "self_correction", "wrong_start", "stop"):
        for episode in make(sample, only(kind), count=2):
            assert replay(episode, TOOL).verified


def test_shares_are_kept_and_checked(sample):
    mix = Mix(plain=0.6, self_correction=0.2, wrong_start=0.1, stop=0.1, absent=0.25)
    rng = np.random.default_rng(0)
    drawn = [mix.draw(rng) for _ in range(4000)]
    assert drawn.count("plain") / 4000 == pytest.approx(0.6, abs=0.03)
    assert drawn.count("stop") / 4000 == pytest.approx(0.1, abs=0.02)
    assert mix.absent_odds == pytest.approx(0.25)
    for wrong in (
        {"plain": -1.0},
        dict.fromkeys(("plain", "self_correction", "wrong_start", "stop", "absent"), 0),
    ):
        with pytest.raises(InputError, match="shares"):
            Mix(**wrong)


@pytest.mark.parametrize("seed", range(10))
def test_masks_and_clicks_on_random_shapes(seed):
    rng = np.random.default_rng(seed)
    truth = disc(60, 80, *rng.uniform(15, 45, 2), rng.uniform(3, 14))
    assert iou(good_mask(truth, 0.85, rng), truth) >= 0.85
    wrong = wrong_mask(truth, [], rng)
    assert wrong is not None and (wrong & truth).sum() < 0.08 * truth.sum()
    click = wrong_click(truth, (), None, (), rng)
    assert click.positive and not truth[int(click.y * 60), int(click.x * 80)]


def test_a_picture_that_is_all_target_has_no_room_for_mistakes():
    full = np.ones((20, 20), bool)
    rng = np.random.default_rng(0)
    assert wrong_mask(full, [], rng) is None
    assert wrong_click(full, (), None, (), rng) is None
    sample = Sample("full", Picture(np.zeros((20, 20, 3), np.uint8)), "Find it.", target="x", truth=full)
    planned = [
        plan(sample, (), only("wrong_start"), 0),
        (replace(sample, sample_id="b"), Plan("self_correction", "x", full, wrong_turn=1)),
    ]
    for episode in trajectories(planned, TOOL, only("plain"), Settings(max_turns=4)):
        assert (
            episode.kind in ("plain", "unreached") and episode.start_mask is None and not wrong_turns(episode)
        )
