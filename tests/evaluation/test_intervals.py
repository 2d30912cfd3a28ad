import numpy as np
import pytest
from scipy import stats

from ibisagent.evaluation.intervals import (
    Resampler,
    grouped_columns,
    mean,
    mean_columns,
    mean_of_groups,
)
from ibisagent.metrics import Floats


def test_one_case_a_patient_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(2).beta(4, 2, 60)
    names = [f"p{index}" for index in range(60)]
    found = Resampler(["s"] * 60, names, replicates=8000).interval(mean_columns(list(values)), mean)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=8000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(expected.low, abs=0.004)
    assert found.high == pytest.approx(expected.high, abs=0.004)


def test_patients_are_drawn_whole_and_within_their_set() -> None:
    """Three alike cases of each patient widen the interval to that of patients; sets never mix."""
    values = np.random.default_rng(5).random(20)
    patients = [f"p{index}" for index in range(20)]
    one = Resampler(["s"] * 20, patients).interval(mean_columns(list(values)), mean)
    three = Resampler(["s"] * 60, patients * 3).interval(mean_columns(list(values) * 3), mean)
    assert (one.low, one.high) == pytest.approx((three.low, three.high), abs=1e-12)
    as_cases = Resampler(["s"] * 60, [f"c{index}" for index in range(60)]).interval(
        mean_columns(list(values) * 3), mean
    )
    assert as_cases.high - as_cases.low < 0.7 * (three.high - three.low)
    sets = ["easy"] * 10 + ["hard"] * 10
    split = Resampler(sets, patients).interval(mean_columns([1.0] * 10 + [0.0] * 10), mean)
    assert (split.value, split.low, split.high) == (0.5, 0.5, 0.5)


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(200):
        level = rng.normal(0.6, 0.1, 40)
        values = (level[:, None] + rng.normal(0, 0.05, (40, 3))).ravel()
        patients = np.repeat([f"p{index}" for index in range(40)], 3)
        found = Resampler(["s"] * 120, list(patients), replicates=400, seed=trial).interval(
            mean_columns(list(values)), mean
        )
        held += found.low <= 0.6 <= found.high
    assert 0.89 <= held / 200 <= 0.98


def test_the_order_of_cases_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    values, order = rng.random(30), rng.permutation(30)
    sets = [f"s{index % 3}" for index in range(30)]
    patients = [f"p{index // 2}" for index in range(30)]

    def found(rows: Floats) -> tuple[float | None, ...]:
        resampler = Resampler([sets[row] for row in rows], [patients[row] for row in rows])
        columns = grouped_columns([values[row] for row in rows], [sets[row] for row in rows])
        interval = resampler.interval(columns, mean_of_groups)
        return interval.value, interval.low, interval.high

    assert found(np.arange(30)) == pytest.approx(found(order), abs=1e-12)


def test_groups_weigh_alike_and_empty_ones_do_not_count() -> None:
    values: list[float | None] = [1.0, 1.0, 1.0, 0.0, None]
    columns = grouped_columns(values, ["a", "a", "a", "b", "c"])
    assert float(mean_of_groups(columns.sum(0))) == 0.5
    assert np.isnan(float(mean_of_groups(np.zeros(6))))


def test_one_patient_has_no_interval_and_nothing_has_no_value() -> None:
    resampler = Resampler(["s"] * 3, ["p", "p", "q"])
    alone = resampler.interval(mean_columns([0.2, 0.4, None]), mean)
    assert alone.value == pytest.approx(0.3) and alone.low is None and alone.high is None
    nothing = resampler.interval(mean_columns([None, None, None]), mean)
    assert nothing.value is None and nothing.low is None
