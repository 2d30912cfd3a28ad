"""95 % bootstrap intervals over patients, drawn within each set, for any metric that is a function
of sums over cases.

A case gives a row of columns; a metric is a function of the columns' sums. The value takes the
sums over all cases, a replicate those over patients drawn with replacement within each set
(percentile bootstrap). Where no patient is known, the picture takes its place. All metrics of a
run are drawn with the same patients, and a comparison draws both runs together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibisagent.metrics import Floats, ratio
from ibisagent.seeding import generator_for

Statistic = Callable[[Floats], Floats]  # [..., K] sums -> [...] values

REPLICATES = 2000
LEVEL = 95.0  # per cent
_BLOCK = 250  # replicates at a time, which bounds memory


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class Resampler:
    """Draws the patients of one list of cases, the same ones for every metric."""

    def __init__(
        self,
        sets: Sequence[str],
        patients: Sequence[str],
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        """`sets[i]` and `patients[i]` belong to case i. The draws depend on names, not on order."""
        keys = sorted(set(zip(sets, patients, strict=True)))
        rank = {key: index for index, key in enumerate(keys)}
        self._row = np.array([rank[key] for key in zip(sets, patients, strict=True)], int)
        self._weights = np.zeros((replicates, len(keys)), np.uint16)
        for name in sorted(set(sets)):
            own = [rank[key] for key in keys if key[0] == name]
            draw = generator_for(seed, "bootstrap", name)
            self._weights[:, own] = draw.multinomial(len(own), np.full(len(own), 1 / len(own)), replicates)
        self.patients = len(keys)

    def interval(self, columns: Floats, statistic: Statistic) -> Interval:
        """The statistic of the sums of `columns` (cases x K) with its interval.

        There is none with fewer than two patients that count. Replicates for which it is not
        defined (NaN) are left out of the percentiles.
        """
        per_patient = self._per_patient(columns)
        drawn = self._replicates(per_patient, statistic)
        return _interval(float(statistic(per_patient.sum(0))), drawn, per_patient)

    def difference(self, first: Floats, second: Floats, statistic: Statistic) -> Interval:
        """As `interval`, for the statistic of `second` minus that of `first`, drawn together.

        Both are computed alike, so equal columns differ by exactly 0 in every replicate.
        """
        one, other = self._per_patient(first), self._per_patient(second)
        value = float(statistic(other.sum(0)) - statistic(one.sum(0)))
        drawn = self._replicates(other, statistic) - self._replicates(one, statistic)
        return _interval(value, drawn, np.hstack([one, other]))

    def _per_patient(self, columns: Floats) -> Floats:
        sums = np.zeros((self.patients, columns.shape[1]))
        np.add.at(sums, self._row, columns)
        return sums

    def _replicates(self, per_patient: Floats, statistic: Statistic) -> Floats:
        blocks = (self._weights[first : first + _BLOCK] for first in range(0, len(self._weights), _BLOCK))
        return np.concatenate([statistic(block.astype(float) @ per_patient) for block in blocks])


def _interval(value: float, drawn: Floats, per_patient: Floats) -> Interval:
    defined = value if math.isfinite(value) else None
    drawn = drawn[np.isfinite(drawn)]
    if defined is None or not drawn.size or np.count_nonzero(per_patient.any(axis=1)) < 2:
        return Interval(defined, None, None)
    low, high = np.percentile(drawn, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return Interval(defined, float(low), float(high))


# --- columns and statistics of means ----------------------------------------------------------


def mean_columns(values: Sequence[float | None]) -> Floats:
    """N x 2: value and 1; zeros for cases that are left out (None)."""
    return np.array([(0.0, 0.0) if value is None else (value, 1.0) for value in values], float).reshape(-1, 2)


def mean(sums: Floats) -> Floats:
    """Mean over cases from summed `mean_columns`."""
    return ratio(sums[..., 0], sums[..., 1])


def grouped_columns(values: Sequence[float | None], groups: Sequence[str]) -> Floats:
    """N x 2G: value and 1 in the columns of the case's own group."""
    names = sorted(set(groups))
    columns = np.zeros((len(values), 2, len(names)))
    for row, (value, group) in enumerate(zip(values, groups, strict=True)):
        if value is not None:
            columns[row, :, names.index(group)] = value, 1.0
    return columns.reshape(len(values), 2 * len(names))


def mean_of_groups(sums: Floats) -> Floats:
    """Mean over groups of their means, from summed `grouped_columns`; empty groups do not count."""
    totals, counts = np.moveaxis(sums.reshape(*sums.shape[:-1], 2, -1), -2, 0)
    means = ratio(totals, counts)
    return ratio(np.nansum(means, axis=-1), np.count_nonzero(counts, axis=-1))
