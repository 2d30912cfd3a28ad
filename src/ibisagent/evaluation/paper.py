"""`ibisagent evaluate DATA --reproduce paper`: Table 1 of the IBISAgent paper with our figures beside.

The published figures are stated by the paper, which released no evaluator: how it treats empty
masks, averages and matches for F1 is unknown. Its IBISAgent rows obey DSC = 2 IoU / (1 + IoU) of
the means, so they may be cumulative. Ours are therefore given both ways, and our F1 is detection F1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.files import out_folder, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ibisagent.evaluation.evaluate import Evaluate

SCHEMA = "ibisagent.reproduction/1"
SYSTEMS = ("LISA", "VisionReasoner", "MedPLIB", "Citrus-V", "UniBiomed", "MMedAgent", "IBISAgent")
OURS = (
    ("IoU", "mean IoU"),
    ("DSC", "mean Dice"),
    ("F1", "detection F1 at IoU 0.5, objects pooled"),
    ("cIoU", "cIoU"),
    ("cDice", "cDice"),
)

Triple = tuple[float, float, float]  # IoU, DSC, F1 in per cent


@dataclass(frozen=True)
class Benchmark:
    """One row of the table and what it takes to run it."""

    name: str
    folder: str | None  # below DATA; None: not public
    published: tuple[Triple, ...]  # in the order of SYSTEMS
    needs: str


BENCHMARKS = (
    Benchmark(
        "BiomedParseData test (in domain)",
        "BiomedParseData",
        (
            (9.4, 14.1, 20.2),
            (16.1, 22.1, 34.8),
            (22.3, 27.4, 38.9),
            (30.6, 37.6, 53.8),
            (50.7, 58.3, 69.2),
            (36.1, 42.9, 56.6),
            (85.58, 92.21, 96.39),
        ),
        "the data set microsoft/BiomedParseData as DATA/BiomedParseData, and the paper's checkpoint with a "
        "SAM2 or MedSAM2 checkpoint: --policy qwen:PATH --tool medsam2:PATH",
    ),
    Benchmark(
        "MeCoVQA-G+ test (out of domain)",
        "MeCoVQA",
        (
            (10.1, 15.4, 21.7),
            (18.3, 25.1, 37.8),
            (33.4, 41.2, 53.5),
            (46.5, 52.7, 69.8),
            (24.9, 31.7, 43.6),
            (26.5, 33.8, 44.2),
            (80.63, 89.27, 95.24),
        ),
        "the test list of MeCoVQA-G+ and the pictures and masks of SA-Med2D-20M in DATA/MeCoVQA, and the "
        "same checkpoints",
    ),
    Benchmark(
        "held-out in-house set",
        None,
        (
            (5.2, 9.6, 13.0),
            (10.1, 15.9, 22.5),
            (20.1, 27.8, 39.4),
            (32.1, 38.6, 50.8),
            (35.6, 41.6, 55.0),
            (27.4, 34.3, 45.9),
            (72.09, 83.78, 91.76),
        ),
        "data that are not public",
    ),
)


def run(command: Evaluate) -> int:
    """Measure the benchmarks that lie below DATA, else DATA itself, and print the table.

    Returns the exit code: 3 where cases got no answer, else 0.
    """
    from ibisagent.evaluation.screen import show_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()
    record = reproduce(command, screen)
    out_folder(command.out)
    write_json(command.out / "reproduction.json", record)
    _show(record, screen)
    print(f"reproduction: {command.out / 'reproduction.json'}")
    return show_unanswered((run.parent for run in sorted(command.out.glob("*/run.json"))), screen)


def reproduce(command: Evaluate, screen: Console | None = None) -> dict[str, Any]:
    """Published figures and ours, in per cent, as plain JSON values; None where not run.

    Where DATA holds none of the benchmarks, it is measured itself and listed as a row of its own.
    """
    if command.shard is not None:
        raise InputError("the table is of whole runs", "--shard", "run the shards with `ibisagent evaluate`")
    rows: list[dict[str, Any]] = []
    for benchmark in BENCHMARKS:
        folder = command.data / benchmark.folder if benchmark.folder else None
        found = folder is not None and folder.exists()
        ours = _measure(command, folder, command.out / folder.name, screen) if found and folder else None
        published = dict(zip(SYSTEMS, benchmark.published, strict=True))
        rows.append({"name": benchmark.name, "published": published, "ours": ours, "needs": benchmark.needs})
    if all(row["ours"] is None for row in rows):
        ours = _measure(command, command.data, command.out / "data", screen)
        rows.append({"name": f"your data, split {command.split}", "published": {}, "ours": ours, "needs": ""})
    return {"schema": SCHEMA, "rows": rows}


def _measure(command: Evaluate, data: Path, out: Path, screen: Console | None) -> dict[str, Any]:
    from ibisagent.evaluation.evaluate import evaluate

    summary = evaluate(replace(command, data=data, out=out), screen)
    assert summary is not None, "a run without shards is whole"
    metrics = {metric["name"]: metric for metric in summary["metrics"]}
    pair = summary["run"]["pair"]
    figures = {
        short: None if metrics[name]["value"] is None else round(100 * metrics[name]["value"], 2)
        for short, name in OURS
    }
    return {"policy": pair["policy"], "tool": pair["tool"], "cases": summary["cases"]["present"], **figures}


def _show(record: dict[str, Any], screen: Console) -> None:
    from rich.table import Table

    table = Table("benchmark", "system", "IoU", "DSC", "F1", "cIoU", "cDice")
    for row in record["rows"]:
        for system, figures in row["published"].items():
            table.add_row(row["name"], f"{system} (published)", *(f"{value:g}" for value in figures), "", "")
        ours = row["ours"]
        if ours is None:
            table.add_row(row["name"], "ours", *["not run"] * 5)
        else:
            name = f"{ours['policy']} with {ours['tool']}, {ours['cases']} cases"
            table.add_row(row["name"], name, *(str(ours[short]) for short, _ in OURS))
    screen.print(table)
    for row in record["rows"]:
        if row["ours"] is None:
            screen.print(f"{row['name']}: not run here; it needs {row['needs']}")
    screen.print(
        "The paper released no evaluator: its F1, empties and averages are unknown. Ours is detection F1."
    )
