"""`ibisagent clicks DATA`: any tool under any click simulator, without a policy.

Left out: worker processes and shards; a case costs an encoding and some clicks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError
from ibisagent.files import out_folder, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ibisagent.evaluation.cases import Plan, Task
    from ibisagent.evaluation.clicking import Clicked
    from ibisagent.types import Sample, Tool

SCHEMA = "ibisagent.clicks/1"
LINES = "clicks.jsonl"

Simulator = Literal["centre", "component", "uniform", "jittered", "people"]


@dataclass(frozen=True)
class Clicks(Reading):
    """Measure a tool under simulated clicks: IoU after n clicks, NoC, and the error of its own score."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder, a folder of sets, or its index file"""
    tool: str = "embedded"
    """the segmentation tool; see `ibisagent segment --help`"""
    simulator: tuple[Simulator, ...] = ("centre",)
    """how clicks are simulated; several are measured one after the other"""
    clicks: int = 20
    """at most so many"""
    start: Literal["none", "proposal"] = "none"
    """proposal: begin from what the tool makes of the instruction alone"""
    named: bool = False
    """tell the tool the instruction with every click"""
    split: str = "test"
    """test, train, val or all; where the data has no val, it is a tenth of the training patients"""
    out: Path = Path("ibisagent-clicks")
    """folder for the results; the same command continues, further simulators are added"""
    datasets: tuple[str, ...] = ()
    """only these sets"""
    per_set: int | None = None
    """at most so many cases of each set, drawn by hash"""
    instruction: str = "Find the {target} in this image."
    """what the tool is told where it is told something"""
    batch_size: int = 8
    """cases that advance together"""
    seed: int = 0
    """of the simulators that draw"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16"""
    point_to_box: float | None = None
    """let a tool that takes only boxes answer clicks with a box of so many percent of the sides"""


def run(command: Clicks) -> int:
    """Measure what is not done yet, then print and write the figures.

    Returns the exit code: 0, or 3 where cases got no answer; the same command asks these again.
    """
    from ibisagent.evaluation.screen import say_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()
    summary = measure(command, screen)
    for name, part in summary["simulators"].items():
        _show(name, part, screen)
    print(f"cases: {command.out / LINES}\nsummary: {command.out / 'summary.json'}")
    errors = {r["case"]: r["error"] for r in _records(command.out / LINES) if r["error"] is not None}
    return say_unanswered(Counter(errors.values()), "cases", screen)


def measure(command: Clicks, screen: Console | None = None) -> dict[str, Any]:
    """The summary as plain values, also written to the folder. Raises InputError."""
    from ibisagent.evaluation.samples import claim, mend
    from ibisagent.tools import load_tool

    for name in ("clicks", "batch_size"):
        if getattr(command, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is at least 1", getattr(command, name))
    planned = _plan(command)
    tool = load_tool(
        command.tool, device=command.device, dtype=command.dtype, point_to_box=command.point_to_box
    )
    if "text" not in tool.prompts and (command.named or command.start == "proposal"):
        raise InputError(
            "--named and --start proposal need a tool that takes text", tool.name, "leave them out"
        )
    out_folder(command.out)
    claim(command.out, "clicks", _facts(command, planned, tool))
    file = command.out / LINES
    mend(file)
    for simulator in dict.fromkeys(command.simulator):
        done = {
            line["case"]
            for line in _records(file)
            if line["simulator"] == simulator and line["error"] is None
        }
        with file.open("ab", buffering=0) as lines:
            for record in _measured(command, simulator, planned, done, tool, screen):
                lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    summary = summarize(_records(file), command.clicks)
    write_json(command.out / "summary.json", summary)
    return summary


def summarize(records: Sequence[dict[str, Any]], clicks: int) -> dict[str, Any]:
    """For each simulator its metrics, the mean curve and the cases that were left out."""
    from ibisagent.evaluation.clicking import click_metrics

    parts = {}
    for simulator in dict.fromkeys(record["simulator"] for record in records):
        own = [record for record in records if record["simulator"] == simulator]
        found = [_clicked(record) for record in own]
        good = [one for one in found if one.error is None]
        if not good:
            raise InputError("the tool answers in some case", found[0].error, "check the tool")
        parts[simulator] = {
            "cases": len(own),
            "left_out": len(own) - len(good),
            "iou_by_click": [
                sum(one.iou_after(count) for one in good) / len(good) for count in range(clicks + 1)
            ],
            "metrics": click_metrics(
                found,
                {record["case"]: record["dataset"] for record in own},
                {record["case"]: record["patient"] for record in own},
                clicks,
            ),
        }
    return {"schema": SCHEMA, "simulators": parts}


def _plan(command: Clicks) -> Plan:
    from ibisagent.evaluation.evaluate import Evaluate, plan_of

    return plan_of(
        Evaluate(
            command.data,
            command.split,
            datasets=command.datasets,
            per_set=command.per_set,
            instruction=command.instruction,
            **{one.name: getattr(command, one.name) for one in fields(Reading)},
        )
    )


def _facts(command: Clicks, planned: Plan, tool: Tool) -> dict[str, Any]:
    """What all simulators in one folder share."""
    from ibisagent.datasets.cases import hashed

    cases = sorted(name for task in planned.tasks for name in task.case_ids())
    facts = {
        "split": command.split,
        "cases": len(cases),
        "case_list": hashed(*cases),
        "instruction": command.instruction,
        "reading": planned.options.record(),
        "tool": dict(tool.fingerprint()),
        "clicks": command.clicks,
        "start": command.start,
        "named": command.named,
        "seed": command.seed,
    }
    return dict(json.loads(json.dumps(facts)))


def _measured(
    command: Clicks, simulator: Simulator, planned: Plan, done: set[str], tool: Tool, screen: Console | None
) -> Iterator[dict[str, Any]]:
    """The lines of the cases that are not done; a picture that cannot be read gives lines that say so."""
    from ibisagent.evaluation.cases import samples
    from ibisagent.evaluation.clicking import click_cases
    from ibisagent.progress import Progress
    from ibisagent.synthesis.clicks import ClickSimulator

    owners = {name: task for task in planned.tasks for name in task.case_ids()}
    failed: list[dict[str, Any]] = []

    def feed() -> Iterator[Sample]:
        for task in planned.tasks:
            waiting = [name for name in task.case_ids() if name not in done]
            try:
                found = list(samples(task, planned.options)) if waiting else []
            except (InputError, OSError, ValueError) as error:
                why = f"unreadable: {error.rule if isinstance(error, InputError) else type(error).__name__}"
                failed.extend(_record(simulator, name, task, why) for name in waiting)
                continue
            yield from (sample for sample in found if sample.sample_id in waiting)

    measured = click_cases(
        feed(),
        tool,
        ClickSimulator(simulator),
        command.clicks,
        start=command.start,
        named=command.named,
        seed=command.seed,
        batch_size=command.batch_size,
    )
    with Progress(screen, simulator, len(owners), len(done)) as progress:
        for one in measured:
            progress.advance()
            yield _record(simulator, one.case, owners[one.case], one)
    yield from failed


def _record(simulator: str, name: str, task: Task, found: Clicked | str) -> dict[str, Any]:
    """One case as plain values; a text says why it could not be measured."""
    from ibisagent.evaluation.clicking import Clicked

    entry = task.entry
    if isinstance(found, str):
        found = Clicked(name, (), (), (), found)
    targets = dict(zip(task.case_ids(), task.targets, strict=True))
    return {
        "schema": SCHEMA,
        "case": name,
        "simulator": simulator,
        "dataset": entry.dataset,
        "target": targets[name],
        "modality": entry.modality,
        "patient": task.patient,
        "ious": list(found.ious),
        "scores": list(found.scores),
        "clicks": [[click.x, click.y, click.positive] for click in found.clicks],
        "error": found.error,
    }


def _clicked(record: dict[str, Any]) -> Clicked:
    from ibisagent.evaluation.clicking import Clicked
    from ibisagent.types import Click

    clicks = tuple(Click(*click) for click in record["clicks"])
    return Clicked(record["case"], tuple(record["ious"]), tuple(record["scores"]), clicks, record["error"])


def _records(file: Path) -> list[dict[str, Any]]:
    """The last record of each simulator and case: one that got no mask is measured again."""
    if not file.exists():
        return []
    with file.open("rb") as lines:
        records = [json.loads(line) for line in lines]
    return list({(record["simulator"], record["case"]): record for record in records}.values())


def _show(name: str, part: dict[str, Any], screen: Console) -> None:
    from rich.table import Table

    from ibisagent.evaluation.screen import figure

    sets = list(part["metrics"][0]["by_set"])
    table = Table(name, "value", "95 % interval", "set-macro", *sets)
    for metric in part["metrics"]:
        digits = 2 if metric["unit"] else 3
        macro = metric.get("set_macro", {}).get("value")
        each = [f"{metric['by_set'][one]:.{digits}f}" if "by_set" in metric else "" for one in sets]
        table.add_row(metric["name"], *figure(metric), "" if macro is None else f"{macro:.{digits}f}", *each)
    screen.print(table)
    left = f", {part['left_out']} left out because a call or a file failed" if part["left_out"] else ""
    screen.print(f"{part['cases']} cases{left}; clicks by {name}")
