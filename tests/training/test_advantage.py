import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibisagent.training.advantage import group_advantages, spread, text_advantages

numbers = st.floats(-2, 2).map(lambda value: round(value, 3))
groups = st.lists(st.none() | numbers, min_size=1, max_size=8)
text_groups = st.lists(st.none() | st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=6)


def test_the_formula_on_a_small_group() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [1.0, -1.0, -1.0, 1.0]
    assert group_advantages([3.0, None, 1.0]) == [1.0, None, -1.0]


def test_unscaled_advantages_keep_what_is_at_stake() -> None:
    assert group_advantages([1.0, 0.0, None, 0.5], scaled=False) == [0.5, -0.5, None, 0.0]
    assert group_advantages([0.98, 0.96], scaled=False) == pytest.approx([0.01, -0.01])
    [click, wait], [stop] = text_advantages([[0.3, 0.1], [0.2]], scaled=False)
    assert (click, wait, stop) == pytest.approx((0.1, 0.0, -0.1))


@pytest.mark.parametrize("rewards", [[0.7], [0.1 + 0.2, 0.3], [0.5] * 7, [None, 0.4, None]])
def test_without_spread_nothing_is_learned(rewards: list[float | None]) -> None:
    assert spread(rewards) == 0
    assert group_advantages(rewards) == [None if reward is None else 0.0 for reward in rewards]
    texts = [None if reward is None else [reward / 2, reward / 2] for reward in rewards]
    assert text_advantages(texts) == [None if reward is None else [0.0, 0.0] for reward in rewards]


@pytest.mark.parametrize("rewards", [[], [None], [None, None]])
def test_groups_that_nobody_is_left_in(rewards: list[None]) -> None:
    assert spread(rewards) == 0
    assert group_advantages(rewards) == rewards == text_advantages(rewards)


@settings(deadline=None)
@given(groups)
def test_advantages_are_standardised_over_those_that_count(rewards: list[float | None]) -> None:
    advantages = group_advantages(rewards)
    assert [advantage is None for advantage in advantages] == [reward is None for reward in rewards]
    counted = [advantage for advantage in advantages if advantage is not None]
    if spread(rewards) > 0:
        assert np.mean(counted) == pytest.approx(0, abs=1e-9)
        assert np.std(counted) == pytest.approx(1)


@settings(deadline=None)
@given(groups, st.floats(0.1, 10), st.floats(-5, 5))
def test_shift_and_scale_of_the_rewards_do_not_matter(
    rewards: list[float | None], scale: float, shift: float
) -> None:
    changed = [None if reward is None else scale * reward + shift for reward in rewards]
    expected = group_advantages(rewards)
    for ours, theirs in zip(group_advantages(changed), expected, strict=True):
        assert ours is theirs is None or ours == pytest.approx(theirs, abs=1e-6)


def test_a_rollout_that_left_changes_nothing_for_the_others() -> None:
    rest = group_advantages([0.2, 0.9, 0.4])
    assert group_advantages([0.2, None, 0.9, 0.4]) == [rest[0], None, rest[1], rest[2]]
    texts = text_advantages([[0.1, 0.1], [0.9], [0.4]])
    assert text_advantages([[0.1, 0.1], None, [0.9], [0.4]]) == [texts[0], None, texts[1], texts[2]]


@settings(deadline=None)
@given(text_groups)
def test_credit_per_text_equals_the_formula_written_as_loops(texts: list[list[float] | None]) -> None:
    counted = [rewards for rewards in texts if rewards is not None]
    advantages = text_advantages(texts)
    for rewards, ours in zip(texts, advantages, strict=True):
        if rewards is None or ours is None:
            assert rewards is ours is None
            continue
        assert len(ours) == len(rewards)
        for k in range(len(rewards)):
            there = [sum(other[k:]) for other in counted if len(other) > k]
            mean = sum(there) / len(there)
            deviation = (sum((value - mean) ** 2 for value in there) / len(there)) ** 0.5
            expected = (sum(rewards[k:]) - mean) / deviation if deviation > 1e-9 else 0.0
            assert ours[k] == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(text_groups)
def test_the_first_text_has_the_advantage_of_its_episode(texts: list[list[float] | None]) -> None:
    whole = group_advantages([None if rewards is None else float(sum(rewards)) for rewards in texts])
    first = [None if advantages is None else advantages[0] for advantages in text_advantages(texts)]
    for ours, theirs in zip(first, whole, strict=True):
        assert ours is theirs is None or ours == pytest.approx(theirs, abs=1e-9)


def test_a_wasted_turn_is_not_praised_for_the_gain_before_it() -> None:
    gained_then_wasted, nothing = [0.8, -0.02], [-0.02, -0.02]
    [[good, wasted], [bad, _]] = text_advantages([gained_then_wasted, nothing])
    assert good == pytest.approx(1) and bad == pytest.approx(-1) and wasted == pytest.approx(0)


def test_ended_rollouts_say_nothing_about_later_texts() -> None:
    # equal totals but for a turn's cost: the later text must not get a huge advantage
    short, long, other = [0.9], [0.0, 0.88], [0.0, 0.6]
    [[_], [_, late], [_, worse]] = text_advantages([short, long, other])
    assert late == pytest.approx(1) and worse == pytest.approx(-1)
    assert text_advantages([[0.9], [0.0, 0.88]])[1] == [pytest.approx(-1), 0.0]
