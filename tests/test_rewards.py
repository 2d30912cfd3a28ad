from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibisagent.actions import click_at, format_text
from ibisagent.episodes import read_episodes, write_episodes
from ibisagent.errors import InputError
from ibisagent.policies.scripted import RULES, ScriptedPolicy, fixed
from ibisagent.rewards import (
    PAPER,
    PROFILES,
    SHAPED,
    TERMS,
    EpisodeReward,
    Exclusion,
    Profile,
    Thresholds,
    adapted,
    score_episode,
    with_rewards,
)
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import (
    BASE_VERBS,
    Action,
    Attempt,
    Box,
    Click,
    Episode,
    EpisodeStatus,
    FormatFault,
    Mask,
    Outcome,
    ParseFailure,
    Picture,
    Sample,
    Terminate,
    Turn,
    Undo,
    Verb,
)

HEIGHT, WIDTH = 4, 5
CLEAN = (None, None)
FAILED = (ParseFailure.NO_ACTION, FormatFault.NOT_EXECUTABLE)
Step = tuple[Action | None, Mask | None, Sequence[tuple]]  # action, mask after it, attempts


def episode_of(
    steps: Sequence[Step],
    truth: Mask | None,
    status: EpisodeStatus = EpisodeStatus.TERMINATED,
    start: Mask | None = None,
    target: str | None = None,
) -> Episode:
    turns = tuple(
        Turn(
            number=number,
            attempts=tuple(Attempt("text", failure, fault, 1, 0.0, 0) for failure, fault in attempts),
            think=None,
            action=action,
            answer=None,
            mask=mask,
            score=None,
            tool_seconds=0.0,
        )
        for number, (action, mask, attempts) in enumerate(steps, start=1)
    )
    shape = (HEIGHT, WIDTH) if truth is None else truth.shape
    return Episode(
        "s", 0, 0, "Find it.", target, Picture(np.zeros((*shape, 3), np.uint8)), "none", start, None, turns,
        status, Outcome.NONE, None, None, None, "", {}, {}, truth,
    )  # fmt: skip


def mask(*rows: str) -> Mask:
    return np.array([[letter == "#" for letter in row] for row in rows])


TRUTH = mask(".....", ".###.", ".###.", ".....")
HALF = mask(".....", ".###.", ".....", ".....")  # IoU 0.5
WIDE = mask(".....", ".####", ".####", ".....")  # IoU 0.75
NOTHING = np.zeros((HEIGHT, WIDTH), bool)
POSITIVE = click_at(2, 2, HEIGHT, WIDTH, True)  # in the target, missed by HALF
NEGATIVE = click_at(1, 4, HEIGHT, WIDTH, False)  # beside the target, included by WIDE


def terms(reward: EpisodeReward, turn: int, *names: str) -> list[float]:
    [text] = [text for text in reward.texts if text.turn == turn and not text.retried]
    return [text.terms[name] for name in names]


def test_the_five_rewards_of_a_plain_episode() -> None:
    steps = [
        (POSITIVE, WIDE, [CLEAN]),
        (NEGATIVE, TRUTH, [CLEAN]),
        (Terminate(), TRUTH, [(None, FormatFault.MISSING_ANSWER)]),
    ]
    reward = score_episode(episode_of(steps, TRUTH), PAPER)
    names = ("S_format", "S_ans", "S_click", "S_pseg", "S_len")
    assert terms(reward, 1, *names) == [1, 2, 1, 1, 1]
    assert terms(reward, 2, *names) == [1, 3, 1, 1, 1]
    assert terms(reward, 3, *names) == [0, 3, 0, 0, 1]
    assert reward.total == pytest.approx((6 / 5 + 7 / 5 + 4 / 5) / 3)


def test_a_perfect_mask_in_two_turns_earns_its_iou_less_the_cost_of_two_turns() -> None:
    reward = score_episode(episode_of([(POSITIVE, TRUTH, [CLEAN]), (Terminate(), TRUTH, [CLEAN])], TRUTH))
    assert reward.profile == "shaped"
    assert [text.reward for text in reward.texts] == pytest.approx([0.5 - 0.02, 0.5 - 0.02])
    assert reward.total == pytest.approx(0.96)


def test_an_honest_absent_is_worth_as_much_as_a_perfect_mask_in_as_many_turns() -> None:
    absent = score_episode(episode_of([(Terminate(), None, [CLEAN])], NOTHING))
    kept = score_episode(episode_of([(Terminate(), TRUTH, [CLEAN])], TRUTH, start=TRUTH))
    assert absent.total == kept.total == pytest.approx(0.98)
    wrong = score_episode(episode_of([(Terminate(), None, [CLEAN])], TRUTH))
    assert wrong.total == pytest.approx(-0.02)
    removed = [(Undo(), None, [CLEAN]), (Terminate(), None, [CLEAN])]
    assert score_episode(episode_of(removed, NOTHING, start=HALF)).total == pytest.approx(0.96)


@pytest.mark.parametrize(
    ("click", "before", "expected"),
    [
        (POSITIVE, None, 1),
        (POSITIVE, HALF, 1),
        (POSITIVE, WIDE, -1),  # already in the mask
        (NEGATIVE, WIDE, 1),
        (NEGATIVE, HALF, -1),  # not in the mask
        (NEGATIVE, None, -1),  # a lone negative click
        (replace(POSITIVE, positive=False), WIDE, -1),  # excludes the target
    ],
)
def test_clicks_are_judged_by_the_mask_before_them(click: Click, before: Mask | None, expected: int) -> None:
    # the mask after it is worse in any case: that is the tool's doing, not the click's
    steps = [(click, NOTHING, [CLEAN]), (Terminate(), NOTHING, [CLEAN])]
    assert terms(score_episode(episode_of(steps, TRUTH, start=before), PAPER), 1, "S_click") == [expected]


@pytest.mark.parametrize("action", [Undo(), Box(0.1, 0.1, 0.9, 0.9)])
@pytest.mark.parametrize(("after", "expected"), [(WIDE, 1), (HALF, -1), (None, -1)])
def test_undo_and_box_are_judged_by_the_iou(action: Action, after: Mask | None, expected: int) -> None:
    steps = [(action, after, [CLEAN]), (Terminate(), after, [CLEAN])]
    assert terms(score_episode(episode_of(steps, TRUTH, start=HALF), PAPER), 1, "S_click") == [expected]


def test_answer_thresholds_are_strict_and_length_falls_after_five_turns() -> None:
    clicks = [click_at(row, column, HEIGHT, WIDTH, True) for row in range(2) for column in range(4)]
    steps = [(click, HALF, [CLEAN]) for click in clicks] + [(Terminate(), HALF, [CLEAN])]
    reward = score_episode(episode_of(steps, TRUTH), PAPER)
    assert {text.terms["S_ans"] for text in reward.texts} == {0.0}  # 0.5 is not above 0.50
    lengths = [text.terms["S_len"] for text in reward.texts]
    assert lengths == pytest.approx([1, 1, 1, 1, 1, -0.2, -0.4, -0.6, -0.8])


@pytest.mark.parametrize(
    ("status", "action", "attempts"),
    [
        (EpisodeStatus.UNPARSABLE, None, [FAILED, FAILED]),
        (EpisodeStatus.REPEATED_CLICK, POSITIVE, [CLEAN]),
        (EpisodeStatus.TURN_LIMIT, POSITIVE, [CLEAN]),
    ],
)
def test_the_policys_own_faults_stay_and_cost(
    status: EpisodeStatus, action: Action | None, attempts: list
) -> None:
    steps = [(POSITIVE, HALF, [CLEAN]), (action, HALF, attempts)]
    for profile in PROFILES.values():
        reward = score_episode(episode_of(steps, TRUTH, status), profile)
        assert reward.excluded is None
        assert terms(reward, 2, "S_format", "S_click", "S_pseg", "S_ans") == [0, -1, 0, 0]
        assert terms(reward, 1, "S_format", "S_click") == [1, 1]
    texts = 1 if len(attempts) == 1 else 2
    assert reward.texts[-1].attempt == texts - 1
    shaped = score_episode(episode_of(steps, TRUTH, status))
    assert shaped.total == pytest.approx(0.5 * 0.5 - 2 * 0.02 - texts * 0.1)


@pytest.mark.parametrize("status", [s for s in EpisodeStatus if s.is_outside_fault()])
def test_outside_faults_are_a_named_value_and_never_a_number(status: EpisodeStatus) -> None:
    for steps in ([], [(POSITIVE, HALF, [CLEAN])]):
        reward = score_episode(episode_of(steps, TRUTH, status))
        assert reward.total is None and reward.excluded is Exclusion.OUTSIDE_FAULT
    refused = score_episode(episode_of([], TRUTH, EpisodeStatus.UNSUPPORTED_TARGET))
    assert refused.total is None and refused.excluded is Exclusion.NO_TURN


def test_a_failed_attempt_costs_but_is_no_turn() -> None:
    steps = [(POSITIVE, TRUTH, [FAILED, FAILED, CLEAN]), (Terminate(), TRUTH, [CLEAN])]
    clean = [(POSITIVE, TRUTH, [CLEAN]), (Terminate(), TRUTH, [CLEAN])]
    shaped, paper = (score_episode(episode_of(steps, TRUTH), profile) for profile in (SHAPED, PAPER))
    assert shaped.total == pytest.approx(score_episode(episode_of(clean, TRUTH)).total - 0.2)
    assert paper.total == score_episode(episode_of(clean, TRUTH), PAPER).total
    assert [(t.turn, t.attempt, t.retried) for t in shaped.texts] == [
        (1, 0, True), (1, 1, True), (1, 2, False), (2, 0, False),
    ]  # fmt: skip
    failed = shaped.texts[0]
    assert failed.reward == pytest.approx(-0.1) and failed.terms["S_click"] == -1
    kept = with_rewards(episode_of(steps, TRUTH), shaped)
    assert kept.turns[0].rewards["failed_attempts"] == pytest.approx(-0.2)
    assert kept.turns[0].rewards["reward"] == pytest.approx(0.48) and kept.turns[0].rewards["S_click"] == 1
    assert "failed_attempts" not in kept.turns[1].rewards


def test_without_a_true_mask_there_is_no_reward() -> None:
    with pytest.raises(InputError, match="true mask"):
        score_episode(episode_of([(Terminate(), None, [CLEAN])], None))


def test_profiles_name_what_they_cannot_weigh() -> None:
    with pytest.raises(InputError, match="S_speed"):
        Profile("mine", {"S_speed": 1.0}, "mean")
    with pytest.raises(InputError, match="S_ans"):
        SHAPED.without("S_ans")
    with pytest.raises(InputError, match="fall"):
        Thresholds(answer_iou=(0.5, 0.7, 0.8))
    ablated = PAPER.without("S_len")
    assert ablated.name == "paper-S_len" and "S_len" not in ablated.weights
    steps = [(POSITIVE, WIDE, [CLEAN]), (Terminate(), WIDE, [CLEAN])]
    reward = score_episode(episode_of(steps, TRUTH), ablated)
    assert reward.terms["S_len"] == 1, "weight 0 is a metric"
    assert reward.total == pytest.approx((5 / 5 + 3 / 5) / 2)


def test_thresholds_can_follow_what_is_reachable_for_a_target() -> None:
    def reference(target: str, best: Mask) -> Episode:
        steps = [(POSITIVE, best, [CLEAN]), (NEGATIVE, HALF, [CLEAN]), (Terminate(), HALF, [CLEAN])]
        return episode_of(steps, TRUTH, target=target)

    easy, hard = [reference("easy", TRUTH)] * 5, [reference("hard", WIDE)] * 5
    profile = adapted(PAPER, [*easy, *hard, *[reference("rare", HALF)] * 4])
    assert set(profile.by_target) == {"easy", "hard"}
    assert profile.thresholds_for("hard").answer_iou == pytest.approx((0.60, 0.525, 0.375))
    for target, expected in (("easy", 2), ("hard", 3), ("rare", 2), (None, 2)):
        steps = [(POSITIVE, WIDE, [CLEAN]), (Terminate(), WIDE, [CLEAN])]
        reward = score_episode(episode_of(steps, TRUTH, target=target), profile)
        assert terms(reward, 2, "S_ans") == [expected]


def test_padding_with_small_gains_pays_under_paper_and_costs_under_shaped() -> None:
    """The reference's fault: one more good click earns more than the right stop."""
    truth = np.ones((10, 10), bool)

    def grown(pixels: int) -> Mask:
        return (np.arange(100) < pixels).reshape(10, 10)

    def ending(*sizes: int) -> Episode:
        stood = [70, *sizes]
        steps: list[Step] = [
            (click_at(*divmod(before, 10), 10, 10, True), grown(after), [CLEAN])
            for before, after in zip(stood, sizes)
        ]
        steps.append((Terminate(), grown(sizes[-1]), [CLEAN]))
        return episode_of(steps, truth, start=grown(70))

    short, padded = ending(90), ending(90, 91, 92, 93)
    assert score_episode(short, PAPER).total == pytest.approx((7 / 5 + 5 / 5) / 2)
    assert score_episode(padded, PAPER).total == pytest.approx((4 * 7 / 5 + 5 / 5) / 5)
    assert score_episode(short).total == pytest.approx(0.90 - 2 * 0.02)
    assert score_episode(padded).total == pytest.approx(0.93 - 5 * 0.02)


# --- properties ---------------------------------------------------------------------------------

masks = st.integers(0, 2 ** (HEIGHT * WIDTH) - 1).map(
    lambda bits: np.array([bits >> k & 1 for k in range(HEIGHT * WIDTH)], bool).reshape(HEIGHT, WIDTH)
)
maybe_masks = st.none() | masks
clicks = st.builds(Click, st.floats(0, 1), st.floats(0, 1), st.booleans())
moves = clicks | st.just(Undo()) | st.just(Box(0.2, 0.2, 0.7, 0.9))
faults = st.sampled_from([CLEAN, (None, FormatFault.MISSING_THINK)])
attempt_lists = st.builds(lambda failed, last: [FAILED] * failed + [last], st.integers(0, 2), faults)
truths = masks | st.just(NOTHING)


@st.composite
def episodes(draw: st.DrawFn, statuses: Sequence[EpisodeStatus] = tuple(EpisodeStatus)[:4]) -> Episode:
    """Any masks and actions, but the endings that the environment makes."""
    steps = draw(st.lists(st.tuples(moves, maybe_masks, attempt_lists), max_size=8))
    start, status = draw(maybe_masks), draw(st.sampled_from(statuses))
    stands = steps[-1][1] if steps else start
    if status is EpisodeStatus.TERMINATED:
        steps.append((Terminate(), stands, draw(attempt_lists)))
    elif status is EpisodeStatus.UNPARSABLE:
        steps.append((None, stands, [FAILED, FAILED]))
    elif not steps:
        steps.append((draw(clicks), draw(maybe_masks), [CLEAN]))
    return episode_of(steps, draw(truths), status, start)


def naive_iou(a: Mask | None, truth: Mask) -> float:
    ours = set() if a is None else {(r, c) for r in range(HEIGHT) for c in range(WIDTH) if a[r, c]}
    true = {(r, c) for r in range(HEIGHT) for c in range(WIDTH) if truth[r, c]}
    return len(ours & true) / len(ours | true) if ours | true else 1.0


def naive_paper(episode: Episode) -> float:
    """METHOD section 6, line by line."""
    total, before = 0.0, episode.start_mask
    for turn in episode.turns:
        last = turn is episode.turns[-1]
        fault = last and episode.status is not EpisodeStatus.TERMINATED
        after = before if fault else turn.mask
        old, new = naive_iou(before, episode.truth), naive_iou(after, episode.truth)
        form = 1 if turn.attempts[-1].format_fault is None and not fault else 0
        answer = 3 if new > 0.8 else 2 if new > 0.7 else 1 if new > 0.5 else 0
        if fault:
            click = -1
        elif isinstance(turn.action, Terminate):
            click = 0
        elif isinstance(turn.action, Click):
            row = min(int(turn.action.y * HEIGHT), HEIGHT - 1)
            column = min(int(turn.action.x * WIDTH), WIDTH - 1)
            covered = before is not None and bool(before[row, column])
            true = bool(episode.truth[row, column])
            right = true and not covered if turn.action.positive else covered and not true
            click = 1 if right else -1
        else:
            click = 1 if new > old else -1
        progress = 1 if new > old and not isinstance(turn.action, Terminate) else 0
        length = 1 if turn.number <= 5 else -0.2 * (turn.number - 5)
        total += (form + answer + click + progress + length) / 5
        before = turn.mask
    return total / len(episode.turns)


@settings(max_examples=50, deadline=None)
@given(episodes())
def test_paper_equals_the_table_of_the_method(episode: Episode) -> None:
    assert score_episode(episode, PAPER).total == pytest.approx(naive_paper(episode))


@settings(max_examples=50, deadline=None)
@given(episodes())
def test_totals_are_the_weighted_terms(episode: Episode) -> None:
    for profile in PROFILES.values():
        reward = score_episode(episode, profile)
        assert set(reward.terms) == set(TERMS)
        weighted = sum(weight * reward.terms[name] for name, weight in profile.weights.items())
        assert reward.total == pytest.approx(weighted)
    assert score_episode(episode).total == pytest.approx(
        sum(text.reward for text in score_episode(episode).texts)
    )


@settings(max_examples=50, deadline=None)
@given(episodes())
def test_turn_differences_telescope(episode: Episode) -> None:
    faulty = episode.status is not EpisodeStatus.TERMINATED
    counted = [episode.start_mask, *[turn.mask for turn in episode.turns]][: -1 if faulty else None]
    gain = naive_iou(counted[-1], episode.truth) - naive_iou(episode.start_mask, episode.truth)
    assert score_episode(episode).terms["potential"] == pytest.approx(gain)


@settings(max_examples=50, deadline=None)
@given(episodes(statuses=(EpisodeStatus.TERMINATED,)))
def test_a_terminated_episode_earns_the_iou_of_its_result_less_its_costs(episode: Episode) -> None:
    texts = [attempt for turn in episode.turns for attempt in turn.attempts]
    bad = sum(attempt.format_fault is not None for attempt in texts)
    final = naive_iou(episode.turns[-1].mask, episode.truth)
    assert score_episode(episode).total == pytest.approx(final - 0.02 * len(episode.turns) - 0.1 * bad)


@settings(max_examples=50, deadline=None)
@given(episodes(statuses=tuple(s for s in EpisodeStatus if s.is_policy_fault())))
def test_to_terminate_instead_of_the_last_fault_is_always_better(episode: Episode) -> None:
    stands = ([episode.start_mask] + [turn.mask for turn in episode.turns])[-2]
    honest = replace(
        episode.turns[-1], action=Terminate(), mask=stands,
        attempts=(replace(episode.turns[-1].attempts[-1], failure=None, format_fault=None),),
    )  # fmt: skip
    stopped = replace(
        episode, turns=(*episode.turns[:-1], honest), status=EpisodeStatus.TERMINATED
    )  # fmt: skip
    assert score_episode(stopped).total > score_episode(episode).total + 0.09


# --- through the real loop ----------------------------------------------------------------------


def play(sample: Sample, policy: ScriptedPolicy, **options: object) -> Episode:
    settings = Settings(verbs=BASE_VERBS | {Verb.UNDO}, **options)
    [episode] = collect(rollout([sample], policy, ClassicalTool(), settings))
    return episode


def test_a_recorded_episode_is_scored_as_the_fresh_one(sample: Sample, tmp_path: Path) -> None:
    rule = ScriptedPolicy("noisy", RULES["noisy-oracle"], {sample.sample_id: sample.truth})
    episode = play(sample, rule)
    rewards = [score_episode(episode, profile) for profile in PROFILES.values()]
    write_episodes(tmp_path / "log.jsonl", [with_rewards(episode, rewards[0])])
    [again] = read_episodes(tmp_path / "log.jsonl")
    assert [score_episode(again, profile) for profile in PROFILES.values()] == rewards
    assert sum(turn.rewards["reward"] for turn in again.turns) == pytest.approx(rewards[0].total)


def test_noise_is_no_way_out_of_a_hard_picture(sample: Sample) -> None:
    honest = play(sample, fixed([format_text("I cannot see it.", Terminate(), "It is not there.")]))
    nonsense = play(sample, fixed(["No.", "No."]))
    assert nonsense.status is EpisodeStatus.UNPARSABLE
    assert score_episode(honest).total > score_episode(nonsense).total + 0.1
