"""What each turn is worth: clicks in the error, gain, and the masks that the policy stops on.

Only cases whose target is present count. A click is in the error where it is positive in a missed
pixel or negative in a wrongly included one, by the mask before it. A gain is IoU after minus before
the turn, over turns that may change the mask. A stop is a Terminate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ibisagent.evaluation.intervals import Resampler, mean, mean_columns
from ibisagent.evaluation.scoring import CaseScore
from ibisagent.types import Verb

GOOD = 0.80  # IoU from which a mask is good enough to stop on (METHOD section 5)

_CLICKS = (str(Verb.POSITIVE), str(Verb.NEGATIVE))
_FIGURES = ("clicks in the error", "gain", "IoU rose", "IoU it stops on", f"stops with IoU >= {GOOD:.2f}")


@dataclass(frozen=True)
class TurnFacts:
    """What one turn of one case did; None where it does not apply."""

    in_error: float | None = None  # 1 or 0, of a click
    gain: float | None = None  # of a turn that may change the mask
    stopped_on: float | None = None  # IoU of the mask that it ended with

    def values(self) -> tuple[float | None, ...]:
        """In the order of the table's figures."""
        rose = None if self.gain is None else float(self.gain > 0)
        good = None if self.stopped_on is None else float(self.stopped_on >= GOOD)
        return self.in_error, self.gain, rose, self.stopped_on, good


def turns_of(case: CaseScore) -> list[TurnFacts]:
    """The facts of each turn of a case."""
    rows = []
    clicks = iter(case.clicks_in_error)
    for verb, before, after in zip(case.turn_verbs, case.ious, case.ious[1:], strict=False):
        if verb == "Terminate":
            rows.append(TurnFacts(stopped_on=before))
        elif verb == "":
            rows.append(TurnFacts())
        else:
            hit = float(next(clicks)) if verb in _CLICKS else None
            rows.append(TurnFacts(hit, after - before))
    return rows


def by_turn(cases: Sequence[CaseScore], resampler: Resampler) -> list[dict[str, Any]]:
    """One row a turn, as plain JSON values: how many cases took it, and each figure with n and interval.

    `resampler` belongs to `cases`, in their order.
    """
    rows = [turns_of(case) if case.present and not case.unreadable else [] for case in cases]
    table = []
    for turn in range(max((len(row) for row in rows), default=0)):
        taken = [row[turn].values() if turn < len(row) else (None,) * len(_FIGURES) for row in rows]
        record: dict[str, Any] = {"turn": turn + 1, "cases": sum(turn < len(row) for row in rows)}
        for name, values in zip(_FIGURES, zip(*taken, strict=True), strict=True):
            n = sum(value is not None for value in values)
            interval = resampler.interval(mean_columns(values), mean)
            record[name] = {**asdict(interval), "n": n, "unit": ""}
        table.append(record)
    return table


def verdict_columns(cases: Sequence[CaseScore]) -> tuple[np.ndarray, np.ndarray]:
    """Per case (stops, turns) at masks that are good enough, and the same at those that are not.

    Summed they give how often the policy stops where it should, and where it should not.
    """
    good, poor = np.zeros((len(cases), 2)), np.zeros((len(cases), 2))
    for row, case in enumerate(cases):
        if not case.present or case.unreadable:
            continue
        for verb, before in zip(case.turn_verbs, case.ious, strict=False):
            side = good if before >= GOOD else poor
            side[row] += (verb == "Terminate", 1.0)
    return good, poor
