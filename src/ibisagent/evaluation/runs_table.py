"""Several runs on the same cases as one table: each metric with n and interval, and what differs
from a reference run, pair by pair. Baselines, tool swap and robustness are tables of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ibisagent.evaluation.evaluate import Evaluate
    from ibisagent.evaluation.workers import Wrap

SHOWN = (
    "mean IoU",
    "set-macro IoU",
    "mean Dice",
    "first click inside",
    "turns",
    "seconds of policy and tool",
)
PRESENCE = (
    "sensitivity (presence)",
    "specificity (presence, hard absent)",
    "specificity (presence, easy absent)",
)


@dataclass(frozen=True)
class Row:
    """One line of a table: a run in a folder of its own, below that of the table."""

    name: str
    folder: str
    run: Callable[[Console | None], dict[str, Any]]  # makes what is not there yet; the summary
    reference: str | None = None  # folder of the row that it is compared with, an earlier one


def row(
    name: str, folder: str, command: Evaluate, wrap: Wrap | None = None, reference: str | None = None
) -> Row:
    """A row that `ibisagent evaluate` makes in `command.out / folder`."""

    def run(screen: Console | None) -> dict[str, Any]:
        from ibisagent.evaluation.evaluate import evaluate

        summary = evaluate(replace(command, out=command.out / folder), screen, wrap)
        assert summary is not None, "a run without shards is whole"
        return summary

    return Row(name, folder, run, reference)


def check_whole(command: Evaluate) -> None:
    """Raise InputError for options that a table of runs does not take."""
    if command.shard is not None:
        raise InputError("the table is of whole runs", "--shard", "leave it out, or use `ibisagent evaluate`")


def measure(
    rows: Sequence[Row], out: Path, shown: Sequence[str] = SHOWN, screen: Console | None = None
) -> list[dict[str, Any]]:
    """Run every row and give the table as plain JSON values; `out` holds the rows' folders.

    "minus_reference" holds, for each metric that both runs have, this run's value minus the
    reference's over the cases that count in both.
    """
    from ibisagent.evaluation.compare import Compare, compare

    names = {item.folder: item.name for item in rows}
    table: list[dict[str, Any]] = []
    for item in rows:
        if screen is not None:
            screen.print(f"[bold]{item.name}[/]")
        summary = item.run(screen)
        metrics = {metric["name"]: metric for metric in summary["metrics"] if metric["name"] in shown}
        minus: dict[str, Any] = {}
        if item.reference is not None:
            pair = compare(Compare(out / item.reference, out / item.folder))
            minus = {found["name"]: found for found in pair["differences"] if found["name"] in shown}
        table.append(
            {
                "name": item.name,
                "folder": item.folder,
                "statuses": summary["statuses"],
                "metrics": metrics,
                "reference": names.get(item.reference or ""),
                "minus_reference": minus,
            }
        )
    return table


def show(table: Sequence[dict[str, Any]], screen: Console, of: str, shown: Sequence[str] = SHOWN) -> None:
    """The table on the screen; `of` heads the first column. Metrics that no row has are left out."""
    from rich.table import Table

    names = [name for name in shown if any(name in record["metrics"] for record in table)]
    figures = Table(show_lines=True)
    for head in (of, *names, f"{names[0]} minus its reference" if names else ""):
        figures.add_column(head, overflow="fold")  # a narrow screen cuts no figure
    for record in table:
        cells = [cell(record["metrics"].get(name), "\n") for name in names]
        minus = record["minus_reference"].get(names[0]) if names else None
        change = ""
        if minus is not None and minus["low"] is not None:
            span = f"{minus['low']:+.4f} to {minus['high']:+.4f}"
            change = f"{minus['difference']:+.4f}\n{span}\nn {minus['n']}, against {record['reference']}"
        figures.add_row(record["name"], *cells, change)
    screen.print(figures)


def cell(metric: dict[str, Any] | None, between: str = " ") -> str:
    """Value, interval and n of a metric as text, with `between` them."""
    from ibisagent.evaluation.screen import figure

    if metric is None:
        return "-"
    value, span = figure(metric)
    return between.join([value, *([f"({span})"] if span else []), f"n {metric['n']}"])
