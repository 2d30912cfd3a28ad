"""`ibisagent tool-swap`: every policy with every tool on the same cases (the paper's first check).

All pairs begin from no mask unless `--start proposal` is asked for, since not every tool can make a
proposal, and pairs that begin differently would not differ by their tool alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.evaluation.evaluate import Evaluate
from ibisagent.evaluation.runs_table import Row, check_whole, measure, row, show
from ibisagent.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "ibisagent.tool-swap/1"
SHOWN = ("mean IoU", "set-macro IoU", "first click inside", "clicks in the error, clicks pooled", "turns")


@dataclass(frozen=True)
class ToolSwap(Evaluate):
    """Measure every policy with every tool on the same cases: how much depends on one tool."""

    policies: tuple[str, ...] = ()
    """specs as --policy takes them; by default that of --policy and scripted:oracle"""
    tools: tuple[str, ...] = ("embedded", "classical")
    """specs as --tool takes them, such as embedded classical sam2:PATH@512 medsam:PATH"""


def run(command: ToolSwap) -> int:
    """Run what is not done yet and print the table. Returns the exit code: 3 where cases got no answer."""
    from ibisagent.evaluation.screen import show_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()
    table = tool_swap(command, screen)
    show(table["rows"], screen, "policy with tool", SHOWN)
    for name, reason in table["left_out"].items():
        screen.print(f"left out: {name}, {reason}")
    print(f"table: {command.out / 'tool-swap.json'}")
    return show_unanswered((command.out / row["folder"] for row in table["rows"]), screen)


def tool_swap(command: ToolSwap, screen: Console | None = None) -> dict[str, Any]:
    """The table as plain JSON values; each pair's run lies in a folder below `command.out`.

    The difference of a row is to the same policy with the first tool that it can be run with.
    Pairs that do not fit each other are listed with the reason.
    """
    from ibisagent.pair import load_pair

    check_whole(command)
    policies = tuple(dict.fromkeys(command.policies)) or (command.pair.policy, "scripted:oracle")
    tools = tuple(dict.fromkeys(command.tools))
    if not tools:
        raise InputError("--tools names at least one tool", "none")
    start = "none" if command.pair.start == "auto" else command.pair.start
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    names = zip(_names(policies), policies, strict=True)
    for first, (policy_name, policy) in enumerate(names):
        adapter = command.pair.adapter if policy == command.pair.policy else None
        reference = None
        for second, (tool_name, tool) in enumerate(zip(_names(tools), tools, strict=True)):
            pair = replace(command.pair, policy=policy, tool=tool, start=start, adapter=adapter)
            name = f"{policy_name} with {tool_name}"
            try:
                load_pair(pair, {})
            except InputError as error:
                left_out[name] = error.rule
                continue
            folder = f"{first + 1}-{_slug(policy)}-{second + 1}-{_slug(tool)}"
            rows.append(row(name, folder, replace(command, pair=pair), None, reference))
            reference = reference or folder
    if not rows:
        raise InputError("at least one pair can be run", "; ".join(left_out.values()))
    table = measure(rows, command.out, SHOWN, screen)
    record = {"schema": SCHEMA, "start": start, "rows": table, "left_out": left_out}
    write_json(command.out / "tool-swap.json", record)
    return record


def _names(specs: Sequence[str]) -> list[str]:
    """What rows call each spec: its kind and size, and its number among those that share both."""
    short = [_kind(spec) + (re.search(r"@(512|1024)$", spec) or [""])[0] for spec in specs]
    return [
        f"{name} no. {short[: index + 1].count(name)}" if short.count(name) > 1 else name
        for index, name in enumerate(short)
    ]


def _kind(spec: str) -> str:
    """A spec without the place of its weights, which is nobody else's business."""
    kind, _, place = spec.partition(":")
    return spec if kind == "scripted" and not place.startswith("@") else kind


def _slug(spec: str) -> str:
    return _kind(spec).replace(":", "-")
