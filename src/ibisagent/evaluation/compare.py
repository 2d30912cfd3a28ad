"""`ibisagent compare A B`: two runs on the same cases, pair by pair.

A difference is B minus A. Intervals draw the same patients for both runs, so what makes a patient
hard cancels out. A difference counts as significant where its 95 % interval leaves out 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.errors import InputError
from ibisagent.files import out_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ibisagent.evaluation.scoring import CaseScore

SCHEMA = "ibisagent.comparison/1"
TIE = 0.01  # IoU; closer than this is neither a win nor a loss
CHANGED = 20  # cases listed that changed most


@dataclass(frozen=True)
class Compare:
    """Compare two runs on the same cases: paired differences, wins and losses, what changed most."""

    a: Annotated[Path, tyro.conf.Positional]
    """result folder of the first run"""
    b: Annotated[Path, tyro.conf.Positional]
    """result folder of the second run; differences are B minus A"""
    out: Path | None = None
    """folder for comparison.json and comparison.html"""
    empty: Literal["one", "zero", "skip"] = "one"
    """what IoU and Dice are where both masks are empty"""
    missing: Literal["zero", "skip"] = "zero"
    """what a case without a prediction counts"""


@dataclass(frozen=True)
class Difference:
    """One metric in both runs, over the cases that count in both."""

    name: str
    a: float | None
    b: float | None
    difference: float | None  # B minus A
    low: float | None  # 95 % interval of the difference
    high: float | None
    n: int
    unit: str
    better: Literal["higher", "lower", ""]

    @property
    def significant(self) -> bool:
        """The interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def run(command: Compare) -> int:
    """Print the comparison and, with --out, write it. Returns the exit code, 0."""
    from ibisagent.evaluation.compare_report import comparison_html
    from ibisagent.progress import open_screen

    comparison = compare(command)
    show(comparison, open_screen())
    if command.out is not None:
        write_json(out_folder(command.out) / "comparison.json", comparison)
        (command.out / "comparison.html").write_text(comparison_html(comparison), encoding="utf-8")
        print(f"comparison: {command.out / 'comparison.json'}\nreport: {command.out / 'comparison.html'}")
    return 0


def compare(command: Compare) -> dict[str, Any]:
    """The comparison as plain JSON values.

    Raises InputError where the runs share no case, or have another true mask for one.
    """
    from ibisagent.evaluation.collector import Policies
    from ibisagent.evaluation.samples import read_run, read_scores
    from ibisagent.fingerprint import differences

    sides = [{case.case: case for case in read_scores(folder)} for folder in (command.a, command.b)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if not shared:
        raise InputError(
            "two runs that are compared share cases", "none", "run both on the same data and split"
        )
    first, second = ([side[name] for name in shared] for side in sides)
    runs = [read_run(folder) or {} for folder in (command.a, command.b)]
    changes = [run.get("data", {}).get("perturbation") for run in runs]
    for one, other in zip(first, second, strict=True):
        if changes[0] != changes[1]:
            break  # a perturbation changes picture and true mask alike
        if not (one.unreadable or other.unreadable) and one.truth_pixels != other.truth_pixels:
            raise InputError("both runs saw the same true masks", one.case, "run both on the same data")
    pairs = [run.get("pair", {}) for run in runs]
    return {
        "schema": SCHEMA,
        "runs": {"a": pairs[0], "b": pairs[1]},
        "settings_that_differ": [
            *differences(pairs[0], pairs[1]),
            *([f"perturbation: {changes[0]} here, {changes[1]} there"] if changes[0] != changes[1] else []),
        ],
        "cases": {
            "paired": len(shared),
            "only_in_a": len(sides[0]) - len(shared),
            "only_in_b": len(sides[1]) - len(shared),
        },
        "policies": asdict(Policies(command.empty, command.missing)),
        "differences": [
            {**asdict(item), "significant": item.significant}
            for item in _differences(first, second, Policies(command.empty, command.missing))
        ],
        "by_set": _wins(first, second),
        "changed_most": _changed(first, second),
    }


def _differences(first: Sequence[CaseScore], second: Sequence[CaseScore], policies: Any) -> list[Difference]:
    """Every metric that both runs have, over the cases that count in both."""
    import numpy as np

    from ibisagent.evaluation.measures import measures
    from ibisagent.evaluation.summary import resampler_of

    resampler = resampler_of(first)
    others = {measure.name: measure for measure in measures(second, policies)}
    found = []
    for mine in measures(first, policies):
        theirs = others.get(mine.name)
        if theirs is None or theirs.columns.shape != mine.columns.shape:
            continue
        counts = np.array([not (x or y) for x, y in zip(mine.reasons, theirs.reasons, strict=True)])
        columns = [measure.columns * counts[:, None] for measure in (mine, theirs)]
        interval = resampler.difference(columns[0], columns[1], mine.statistic)
        values = [float(mine.statistic(part.sum(0))) for part in columns]
        a, b = (None if np.isnan(value) else value for value in values)
        found.append(
            Difference(
                mine.name,
                a,
                b,
                interval.value,
                interval.low,
                interval.high,
                int(counts.sum()),
                mine.unit,
                mine.better,
            )
        )
    return found


def _wins(first: Sequence[CaseScore], second: Sequence[CaseScore]) -> dict[str, dict[str, int]]:
    """Wins, losses and ties of B by IoU, per set and in all."""
    table: dict[str, dict[str, int]] = {"all": {"wins": 0, "losses": 0, "ties": 0}}
    for one, other in zip(first, second, strict=True):
        change = other.iou() - one.iou()
        word = "ties" if abs(change) < TIE else "wins" if change > 0 else "losses"
        for name in ("all", one.dataset):
            table.setdefault(name, {"wins": 0, "losses": 0, "ties": 0})[word] += 1
    return table


def _changed(first: Sequence[CaseScore], second: Sequence[CaseScore]) -> list[dict[str, Any]]:
    """The cases whose IoU changed most, the largest change first; those without change are not listed."""
    rows: list[dict[str, Any]] = [
        {
            "case": one.case,
            "dataset": one.dataset,
            "target": one.target,
            "iou_a": one.iou(),
            "iou_b": other.iou(),
            "change": other.iou() - one.iou(),
            "status_a": one.status,
            "status_b": other.status,
        }
        for one, other in zip(first, second, strict=True)
        if one.iou() != other.iou()
    ]
    return sorted(rows, key=lambda row: (-abs(row["change"]), row["case"]))[:CHANGED]


def show(comparison: dict[str, Any], screen: Console) -> None:
    """Differences, wins and losses, and the cases that changed most, as tables on the screen."""
    from rich.table import Table

    for side in ("a", "b"):
        pair = comparison["runs"][side]
        screen.print(f"{side.upper()}: [bold]{pair.get('policy')}[/] with [bold]{pair.get('tool')}[/]")
    table = Table("metric", "A", "B", "B - A", "95 % interval", "n", "")
    for row in comparison["differences"]:
        digits = 4 if row["unit"] == "" else 2
        cells = [_cell(row[key], digits) for key in ("a", "b", "difference")]
        span = "" if row["low"] is None else f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"
        table.add_row(row["name"], *cells, span, str(row["n"]), verdict(row))
    screen.print(table)
    wins = Table("set", "B wins", "B loses", "ties")
    for name, row in comparison["by_set"].items():
        wins.add_row(name, str(row["wins"]), str(row["losses"]), str(row["ties"]))
    screen.print(wins)
    for row in comparison["changed_most"][:5]:
        screen.print(f"  {row['case']}: IoU {row['iou_a']:.3f} -> {row['iou_b']:.3f}")


def verdict(row: dict[str, Any]) -> str:
    """In words, whether B is better or worse; empty where the interval holds 0 or nothing is better."""
    if not row["significant"] or row["better"] == "":
        return ""
    return "better" if (row["difference"] > 0) == (row["better"] == "higher") else "worse"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
