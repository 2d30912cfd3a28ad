"""`ibisagent baselines`: the agent and its baselines on the same cases, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.evaluation.evaluate import Evaluate

if TYPE_CHECKING:
    from rich.console import Console

    from ibisagent.types import Mask, Policy

SCHEMA = "ibisagent.baselines/1"
SHOWN = (
    "mean IoU",
    "set-macro IoU",
    "mean Dice",
    "first click inside",
    "turns",
    "seconds of policy and tool",
)

Wrapper = Callable[["Policy", dict[str, "Mask"]], "Policy"]


@dataclass(frozen=True)
class Baselines(Evaluate):
    """Measure an agent beside first click only, oracle clicks, a constant click and a single pass."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a run in a folder of its own."""

    name: str
    folder: str
    command: Evaluate
    wrap: Wrapper | None = None


def run(command: Baselines) -> int:
    """Run what is not done yet and print the table. Returns the exit code, 0."""
    from rich.console import Console

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    table = baselines(command, screen)
    _show(table, screen)
    print(f"table: {command.out / 'baselines.json'}")
    return 0


def baselines(command: Evaluate, screen: Console | None = None) -> dict[str, Any]:
    """The table as plain JSON values; each row's run lies in a folder below `command.out`.

    Rows that cannot be run are listed with the reason.
    """
    from ibisagent.evaluation.compare import Compare, compare
    from ibisagent.evaluation.evaluate import evaluate
    from ibisagent.evaluation.samples import write_json

    if command.shard is not None:
        raise InputError("the table is of whole runs", "--shard", "leave it out, or use `ibisagent evaluate`")
    rows, left_out = _rows(command)
    table: list[dict[str, Any]] = []
    for row in rows:
        if screen is not None:
            screen.print(f"[bold]{row.name}[/]")
        summary = evaluate(replace(row.command, out=command.out / row.folder), screen, row.wrap)
        assert summary is not None, "a run without shards is whole"
        metrics = {metric["name"]: metric for metric in summary["metrics"] if metric["name"] in SHOWN}
        against = None
        if table:
            pair = compare(Compare(command.out / row.folder, command.out / rows[0].folder))
            [against] = [item for item in pair["differences"] if item["name"] == "mean IoU"]
        table.append(
            {"name": row.name, "folder": row.folder, "metrics": metrics, "agent_minus_this": against}
        )
    record = {"schema": SCHEMA, "rows": table, "left_out": left_out}
    write_json(command.out / "baselines.json", record)
    return record


def _rows(command: Evaluate) -> tuple[list[Row], dict[str, str]]:
    from ibisagent.evaluation.baselines import FirstClickOnly, FirstClickThenOracle, constant_clicks
    from ibisagent.evaluation.evaluate import plan_of
    from ibisagent.tools import load_tool

    pair = command.pair
    bare = replace(command, pair=replace(pair, start="none"))
    tool = load_tool(pair.tool, device=pair.device, dtype=pair.dtype, point_to_box=pair.point_to_box)
    rows = [
        Row("agent", "agent", command),
        Row("first click only", "first-click-only", bare, FirstClickOnly),
        Row("first click, then oracle", "first-click-then-oracle", bare, FirstClickThenOracle),
        Row("oracle clicks", "oracle", _with_policy(bare, "scripted:oracle")),
    ]
    left_out = {}
    try:
        train = plan_of(replace(command, split="train", per_set=_masks_per_set(), absent="none"))
        rows.append(Row("constant click", "constant-click", bare, constant_clicks(train)))
    except InputError as error:
        left_out["constant click"] = f"no training masks: {error.rule}"
    if "text" in tool.prompts:
        single = replace(command, pair=replace(pair, start="proposal"))
        rows.append(Row("single pass", "single-pass", _with_policy(single, "scripted:stop-at-once")))
    else:
        left_out["single pass"] = f"{tool.name} makes no proposal from text"
    return rows, left_out


def _with_policy(command: Evaluate, policy: str) -> Evaluate:
    return replace(command, pair=replace(command.pair, policy=policy, adapter=None, verbs=()))


def _masks_per_set() -> int:
    from ibisagent.evaluation.baselines import MASKS

    return MASKS


def _show(record: dict[str, Any], screen: Console) -> None:
    from rich.table import Table

    from ibisagent.evaluation.evaluate import figure

    table = Table("run", *SHOWN, "IoU of the agent above it")
    for row in record["rows"]:
        cells = [" ".join(figure(row["metrics"][name])) if name in row["metrics"] else "-" for name in SHOWN]
        against = row["agent_minus_this"]
        change = ""
        if against is not None and against["low"] is not None:
            change = f"{against['difference']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})"
        table.add_row(row["name"], *cells, change)
    screen.print(table)
    for name, reason in record["left_out"].items():
        screen.print(f"left out: {name}, {reason}")
