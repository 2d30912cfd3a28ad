"""How a metric is put together: columns per case, a statistic of their sums, and why cases are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ibisagent.evaluation.intervals import (
    Resampler,
    Statistic,
    grouped_columns,
    mean,
    mean_columns,
    mean_of_groups,
)
from ibisagent.evaluation.scoring import CaseScore
from ibisagent.metrics import Empty, Floats

Missing = Literal["zero", "skip"]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Policies:
    """What the metrics do where their formulas leave it open; written into every summary."""

    empty: Empty = "one"
    missing: Missing = "zero"
    resize: Literal["refuse"] = "refuse"  # masks are made on the truth's grid


@dataclass(frozen=True)
class Metric:
    """One aggregate."""

    name: str
    value: float | None  # None: not defined for these cases
    low: float | None  # 95 % interval
    high: float | None
    n: int  # cases that count
    left_out: dict[str, int]  # reason -> cases
    unit: str = ""
    better: Better = "higher"


@dataclass(frozen=True)
class Measure:
    """A metric before it is aggregated: columns per case, and a statistic of their sums."""

    name: str
    columns: Floats  # cases x K; zeros where a case is left out
    statistic: Statistic
    reasons: list[str]  # per case: "" counts, else why it is left out
    unit: str = ""
    better: Better = "higher"

    def evaluate(self, resampler: Resampler) -> Metric:
        interval = resampler.interval(self.columns, self.statistic)
        out = Counter(reason for reason in self.reasons if reason)
        return Metric(
            self.name,
            interval.value,
            interval.low,
            interval.high,
            self.reasons.count(""),
            dict(sorted(out.items())),
            self.unit,
            self.better,
        )


class Collector:
    """Collects measures over one list of cases under one set of policies; what is measured is added to it."""

    def __init__(self, cases: Sequence[CaseScore], policies: Policies) -> None:
        self.measures: list[Measure] = []
        self.cases = cases
        self._policies = policies
        self.reasons = [self._reason(case) for case in cases]

    def _reason(self, case: CaseScore) -> str:
        """Why a case counts in no metric of present targets."""
        return case.unreadable or ("" if case.present else "target absent")

    def missing(self, case: CaseScore) -> str:
        skips = self._policies.missing == "skip" and case.predicted_pixels is None
        return f"no prediction: {case.status}" if skips and not case.unreadable else ""

    def overlaps(self, name: Literal["iou", "dice"]) -> list[float | None]:
        """Per case the value of IoU or Dice under both policies; None: left out."""
        values: list[float | None] = []
        for case in self.cases:
            counts = case.overlap()
            if counts is None:
                values.append(None if self.missing(case) else 0.0)
            else:
                how = counts.iou if name == "iou" else counts.dice
                values.append(how(self._policies.empty))
        return values

    def add(
        self,
        name: str,
        columns: Floats,
        statistic: Statistic,
        reasons: Sequence[str],
        unit: str = "",
        better: Better = "higher",
    ) -> None:
        """Add a measure; rows with a reason are set to 0."""
        counts = np.array([not reason for reason in reasons])
        self.measures.append(
            Measure(name, np.where(counts[:, None], columns, 0.0), statistic, list(reasons), unit, better)
        )

    def why(self, values: Sequence[float | None], otherwise: str = "not defined") -> list[str]:
        """Reasons where some cases have no value."""
        return [
            reason or ("" if value is not None else self.missing(case) or otherwise)
            for case, reason, value in zip(self.cases, self.reasons, values, strict=True)
        ]

    def means(
        self,
        name: str,
        values: Sequence[float | None],
        unit: str = "",
        better: Better = "higher",
        otherwise: str = "not defined",
    ) -> None:
        """Mean over cases."""
        self.add(name, mean_columns(values), mean, self.why(values, otherwise), unit, better)

    def grouped(self, name: str, values: Sequence[float | None], groups: Sequence[str]) -> None:
        """Mean over groups of their means."""
        self.add(name, grouped_columns(values, groups), mean_of_groups, self.why(values))

    def pooled(self, name: str, counts: Callable[[CaseScore], tuple[int, int]]) -> None:
        """Sum over sum."""
        columns = np.array([counts(case) for case in self.cases], float).reshape(-1, 2)
        pairs = zip(self.cases, self.reasons, strict=True)
        self.add(name, columns, mean, [reason or self.missing(case) for case, reason in pairs])
