"""A run's tables on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console


def show(summary: dict[str, Any], screen: Console) -> None:
    """The aggregates and the figures by set as tables on the screen."""
    from rich.table import Table

    pair = summary["run"]["pair"]
    table = Table("metric", "value", "95 % interval", "n", "left out")
    for metric in summary["metrics"]:
        out = ", ".join(f"{count} {reason}" for reason, count in metric["left_out"].items())
        table.add_row(metric["name"], *figure(metric), str(metric["n"]), out)
    screen.print(f"[bold]{pair['policy']}[/] with [bold]{pair['tool']}[/], start {pair['settings']['start']}")
    screen.print(table)
    show_turns(summary["by_turn"], screen)
    sets = Table("set", "cases", "mean IoU", "95 % interval", "first click inside", "turns")
    for name, row in summary["by_set"].items():
        iou = row["mean IoU"]
        sets.add_row(
            name, str(iou["n"]), *figure(iou), figure(row["first click inside"])[0], figure(row["turns"])[0]
        )
    screen.print(sets)
    statuses = ", ".join(f"{name} {count}" for name, count in summary["statuses"].items())
    screen.print(f"statuses: {statuses}")


def show_turns(rows: Sequence[dict[str, Any]], screen: Console, most: int = 6) -> None:
    """The first turns as a table: each figure with its interval and n."""
    from rich.table import Table

    if not rows:
        return
    names = [name for name in rows[0] if name not in ("turn", "cases")]
    table = Table("turn", "cases", *names)
    for row in rows[:most]:
        cells = []
        for name in names:
            value, span = figure(row[name])
            cells.append(f"{value} ({span}) n {row[name]['n']}" if span else f"{value} n {row[name]['n']}")
        table.add_row(str(row["turn"]), str(row["cases"]), *cells)
    screen.print(table)


def show_unanswered(folders: Iterable[Path], screen: Console, cases: Collection[str] | None = None) -> int:
    """`say_unanswered` for the cases of result folders, each once; `cases`: of these alone."""
    from ibisagent.evaluation.samples import read_lines
    from ibisagent.evaluation.scoring import unanswered

    found = {
        line["case"]: reason
        for folder in folders
        for line in read_lines(folder)
        if (reason := unanswered(line)) is not None and (cases is None or line["case"] in cases)
    }
    return say_unanswered(Counter(found.values()), "cases", screen)


def say_unanswered(reasons: Counter[str], what: str, screen: Console) -> int:
    """Say how many of `what` got no answer, by reason.

    Returns the exit code: 3 (no outcome, as of `segment`) where there are any, else 0.
    """
    if not reasons:
        return 0
    shown = [f"{reason} ({count})" for reason, count in reasons.most_common(3)]
    more = ["other reasons"] if len(reasons) > 3 else []
    screen.print(
        f"[bold yellow]{reasons.total()} {what} got no answer:[/] "
        f"{escape('; '.join([*shown, *more]))}; the same command asks them again"
    )
    return 3


def figure(metric: dict[str, Any]) -> tuple[str, str]:
    """Value and interval of a metric as text."""
    if metric["value"] is None:
        return "-", ""
    digits = 4 if metric["unit"] == "" else 2
    if metric["low"] is None:
        return f"{metric['value']:.{digits}f}", ""
    return f"{metric['value']:.{digits}f}", f"{metric['low']:.{digits}f} to {metric['high']:.{digits}f}"
