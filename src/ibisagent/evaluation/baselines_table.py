"""`ibisagent baselines`: the agent and its baselines on the same cases, in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.evaluation.evaluate import Evaluate
from ibisagent.evaluation.runs_table import Row, check_whole, measure, row, show
from ibisagent.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

SCHEMA = "ibisagent.baselines/2"
AGENT = "agent"


@dataclass(frozen=True)
class Baselines(Evaluate):
    """Measure an agent beside first click only, oracle clicks, a constant click, best of n and others."""

    samples: int = 4
    """episodes sampled for each case for the rows "best of n"; 0 leaves these out"""
    sample_temperature: float = 1.0
    """of the policy in sampled episodes"""


def run(command: Baselines) -> int:
    """Run what is not done yet and print the table. Returns the exit code: 3 where cases got no answer."""
    from ibisagent.evaluation.screen import show_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()
    table = baselines(command, screen)
    show(table["rows"], screen, "run")
    for name, metric in (table["agreement"] or {}).items():
        from ibisagent.evaluation.runs_table import cell

        screen.print(f"sampled episodes: {name} {cell(metric)}")
    for name, reason in table["left_out"].items():
        screen.print(f"left out: {name}, {reason}")
    print(f"table: {command.out / 'baselines.json'}")
    return show_unanswered((command.out / row["folder"] for row in table["rows"]), screen)


def baselines(command: Baselines, screen: Console | None = None) -> dict[str, Any]:
    """The table as plain JSON values; each row's run lies in a folder below `command.out`.

    Rows that cannot be run are listed with the reason.
    """
    from ibisagent.evaluation.best_of import agreement_facts

    check_whole(command)
    if command.samples < 0 or command.samples == 1:
        raise InputError("--samples is 0, or 2 and more", command.samples)
    if not command.sample_temperature > 0:
        raise InputError("--sample-temperature is above 0", command.sample_temperature)
    rows, left_out = _rows(command)
    table = measure(rows, command.out, screen=screen)
    folders = _sample_folders(command)
    record = {
        "schema": SCHEMA,
        "rows": table,
        "samples": command.samples,
        "sample_temperature": command.sample_temperature,
        "agreement": agreement_facts(folders) if folders else None,
        "left_out": left_out,
    }
    write_json(command.out / "baselines.json", record)
    return record


def _rows(command: Baselines) -> tuple[list[Row], dict[str, str]]:
    from ibisagent.evaluation.baselines import (
        FirstClickOnly,
        FirstClickThenOracle,
        SimulatedOracle,
        constant_clicks,
    )
    from ibisagent.evaluation.evaluate import plan_of
    from ibisagent.tools import load_tool

    pair = command.pair
    bare = replace(command, pair=replace(pair, start="none"))
    oracle = _with_policy(bare, "scripted:oracle")
    tool = load_tool(pair.tool, device=pair.device, dtype=pair.dtype, point_to_box=pair.point_to_box)
    rows = [
        row("agent", AGENT, command),
        row("first click only", "first-click-only", bare, FirstClickOnly, AGENT),
        row("first click, then oracle", "first-click-then-oracle", bare, FirstClickThenOracle, AGENT),
        row("oracle clicks", "oracle", oracle, None, AGENT),
        row("oracle clicks, jittered", "oracle-jittered", oracle, SimulatedOracle("jittered"), AGENT),
        row("oracle clicks, like people", "oracle-people", oracle, SimulatedOracle("people"), AGENT),
    ]
    left_out = {}
    try:
        train = plan_of(replace(command, split="train", per_set=_masks_per_set(), absent="none"))
        rows.append(row("constant click", "constant-click", bare, constant_clicks(train), AGENT))
    except InputError as error:
        left_out["constant click"] = f"no training masks: {error.rule}"
    if "text" in tool.prompts:
        single = _with_policy(replace(command, pair=replace(pair, start="proposal")), "scripted:stop-at-once")
        rows.append(row("single pass", "single-pass", single, None, AGENT))
    else:
        left_out["single pass"] = f"{tool.name} makes no proposal from text"
    return rows + _sampled_rows(command), left_out


def _sampled_rows(command: Baselines) -> list[Row]:
    """n runs of the agent with seeds and a temperature of their own, and what each rule makes of them."""
    from ibisagent.evaluation.best_of import RULES, write_best
    from ibisagent.evaluation.collector import Policies

    folders = _sample_folders(command)
    policies = Policies(command.empty, command.missing)
    rows = []
    for number, folder in enumerate(folders):
        pair = replace(
            command.pair, temperature=command.sample_temperature, seed=command.pair.seed + 1 + number
        )
        name = f"sampled episode {number + 1} of {len(folders)}"
        at = str(folder.relative_to(command.out))
        rows.append(row(name, at, replace(command, pair=pair), None, AGENT))
    for number, rule in enumerate(RULES if folders else ()):
        at = f"best-of-{len(folders)}-{number + 1}"

        def best(_: Console | None, at: str = at, rule: str = rule) -> dict[str, Any]:
            return write_best(folders, command.out / at, rule, policies)

        rows.append(Row(f"best of {len(folders)} {rule}", at, best, AGENT))
    return rows


def _sample_folders(command: Baselines) -> list[Path]:
    return [command.out / f"sampled-{number + 1}" for number in range(command.samples)]


def _with_policy(command: Baselines, policy: str) -> Baselines:
    return replace(command, pair=replace(command.pair, policy=policy, adapter=None, verbs=()))


def _masks_per_set() -> int:
    from ibisagent.evaluation.baselines import MASKS

    return MASKS
