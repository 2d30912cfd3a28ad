"""`ibisagent robustness`: the plain run and each perturbation of it, with paired differences.

Every perturbation is seeded, changes picture and true mask alike, and is drawn the same for every
policy and tool. With `--absent`, presence is measured under each of them too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.evaluation.evaluate import Evaluate
from ibisagent.evaluation.runs_table import PRESENCE, check_whole, measure, row, show
from ibisagent.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "ibisagent.robustness/1"
WORDS = "contradictory words: refused or empty"
SHOWN = ("set-macro IoU", "mean IoU", "first click inside", "turns", *PRESENCE, WORDS)


@dataclass(frozen=True)
class Robustness(Evaluate):
    """Measure an agent on changed pictures (noise, mirror, ...) and words, and after a wrong first click."""

    kinds: tuple[str, ...] = ()
    """which perturbations; by default all"""


def run(command: Robustness) -> int:
    """Run what is not done yet and print the table. Returns the exit code: 3 where cases got no answer."""
    from ibisagent.evaluation.screen import show_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()
    table = robustness(command, screen)
    show(table["rows"], screen, f"strength {command.strength:g}", SHOWN)
    print(f"table: {command.out / 'robustness.json'}")
    return show_unanswered((command.out / row["folder"] for row in table["rows"]), screen)


def robustness(command: Robustness, screen: Console | None = None) -> dict[str, Any]:
    """The table as plain JSON values; each row's run lies in a folder below `command.out`."""
    from ibisagent.evaluation.perturb import KINDS, Perturbation

    check_whole(command)
    if command.perturb is not None:
        raise InputError("the table runs every perturbation", "--perturb", "choose some with --kinds")
    kinds = tuple(dict.fromkeys(command.kinds)) or KINDS
    for kind in kinds:
        Perturbation(kind, command.strength)
    rows = [row("plain", "plain", replace(command, strength=1.0))]
    for kind in kinds:
        folder = f"{kind}-{command.strength:g}"
        rows.append(row(kind, folder, replace(command, perturb=kind), reference="plain"))
    table = measure(rows, command.out, SHOWN, screen)
    record = {"schema": SCHEMA, "strength": command.strength, "seed": command.pair.seed, "rows": table}
    write_json(command.out / "robustness.json", record)
    return record
