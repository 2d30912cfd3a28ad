"""From scored cases to the summary: named aggregates, tables per set, target and modality, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ibisagent.evaluation.by_turn import by_turn
from ibisagent.evaluation.collector import Measure, Policies
from ibisagent.evaluation.intervals import LEVEL, REPLICATES, Resampler
from ibisagent.evaluation.measures import Builder, measures
from ibisagent.evaluation.scoring import CaseScore

SCHEMA = "ibisagent.evaluation/1"


def summarize(scores: Iterable[CaseScore], policies: Policies | None = None) -> dict[str, Any]:
    """Plain JSON values for `scores`; their order does not matter. Raises no error for few cases."""
    policies = policies or Policies()
    cases = sorted(scores, key=lambda score: score.case)
    resampler = resampler_of(cases)
    return {
        "policies": asdict(policies),
        "intervals": {
            "level": LEVEL,
            "method": "percentile bootstrap over patients (pictures where unknown) within sets",
            "replicates": REPLICATES,
            "patients": resampler.patients,
        },
        "cases": {
            "all": len(cases),
            "present": sum(case.present and not case.unreadable for case in cases),
            "absent": sum(not case.present for case in cases),
            "unreadable": sum(bool(case.unreadable) for case in cases),
        },
        "statuses": _count(case.status for case in cases),
        "outcomes": _count(case.outcome for case in cases),
        "metrics": [asdict(measure.evaluate(resampler)) for measure in measures(cases, policies)],
        "by_set": _groups(cases, policies, resampler, lambda case: case.dataset),
        "by_target": _groups(cases, policies, resampler, lambda case: case.target),
        "by_modality": _groups(cases, policies, resampler, lambda case: case.modality or "unknown"),
        "by_turn": by_turn(cases, resampler),
        "iou_by_turn": _curve(cases, lambda case: case.ious),
        "iou_by_click": _curve(cases, lambda case: case.ious_by_click()),
    }


def resampler_of(cases: Sequence[CaseScore]) -> Resampler:
    """The draws for these cases; the same for equal cases in any order."""
    return Resampler([case.dataset for case in cases], [case.patient for case in cases])


def equal_part(summary: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs agree in: all but times and host, and metrics that hold times."""
    rest = {key: value for key, value in summary.items() if key not in ("times", "host")}
    if "metrics" in rest:
        rest["metrics"] = [metric for metric in rest["metrics"] if metric["unit"] != "s"]
    return rest


# --- tables and curves ------------------------------------------------------------------------


def _groups(
    cases: Sequence[CaseScore],
    policies: Policies,
    resampler: Resampler,
    key: Callable[[CaseScore], str],
) -> dict[str, dict[str, Any]]:
    """Per group the metrics that fit in a table row, over its own cases."""
    builder = Builder(cases, policies)
    ious, dices = builder.overlaps("iou"), builder.overlaps("dice")
    builder.means("mean IoU", ious)
    builder.means("mean Dice", dices)
    builder.clicks()
    builder.means("turns", [float(case.turns) for case in cases], "turns", "lower")
    if not all(case.present for case in cases):
        builder.presence()
    table: dict[str, dict[str, Any]] = {}
    for group in sorted({key(case) for case in cases}):
        own = np.array([key(case) == group for case in cases])
        table[group] = {}
        for measure in builder.measures:
            kept = [reason for reason, mine in zip(measure.reasons, own, strict=True) if mine]
            part = Measure(
                measure.name,
                measure.columns * own[:, None],
                measure.statistic,
                kept,
                measure.unit,
                measure.better,
            )
            table[group][measure.name] = asdict(part.evaluate(resampler))
    return table


def _curve(cases: Sequence[CaseScore], ious: Callable[[CaseScore], Sequence[float]]) -> list[float]:
    """Mean IoU over present cases after 0, 1, 2, ... steps; a finished episode keeps its last."""
    rows = [list(ious(case)) for case in cases if case.present and not case.unreadable]
    rows = [row for row in rows if row]
    longest = max((len(row) for row in rows), default=0)
    return [float(np.mean([row[min(step, len(row) - 1)] for row in rows])) for step in range(longest)]


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(value or "unreadable" for value in values).items()))
