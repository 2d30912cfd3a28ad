"""The card's tables as Markdown, from what runs/reproduce.py has measured.

Every value is read from the files of `ibisagent evaluate`, `ibisagent compare`, `ibisagent tool-swap`,
benchmarks/tool_clicks.py and benchmarks/thoughts.py; computed here is only the mean over sets of the
first clicks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAIR = {
    "rival": "single-pass rival",
    "proposal": "tool's proposal alone",
    "default": "agent from the proposal (default)",
    "none": "agent from the bare picture",
    "shift": "agent, shifted pictures",
    "shift-none": "agent, shifted, from the bare picture",
    "mirror": "agent, mirrored pictures",
}  # folders of evaluations and their rows
CLICKS = {
    "clicks": "embedded",
    "clicks-without": "embedded, never shown HyperKvasir and Sunnybrook",
    "clicks-classical": "classical (geodesic)",
}  # files of benchmarks/tool_clicks.py and their rows
F1 = "detection F1 at IoU 0.5, objects pooled"
FIRST = "first click inside"
PRESENCE = {
    "sensitivity": "sensitivity (presence)",
    "specificity, hard absent": "specificity (presence, hard absent)",
    "specificity, easy absent": "specificity (presence, easy absent)",
}


def page(out: Path) -> str:
    """All tables of the folder of a recipe that is done."""
    runs = {name: json.loads((out / name / "summary.json").read_text()) for name in PAIR}
    tools = {name: json.loads((out / f"{name}.json").read_text()) for name in CLICKS}
    thoughts = json.loads((out / "thoughts.json").read_text())
    comparisons = {
        f"agent minus {PAIR[name]}": json.loads((out / f"against-{name}/comparison.json").read_text())
        for name in ("rival", "proposal")
    }
    swap = json.loads((out / "tool-swap/tool-swap.json").read_text())
    parts = [
        f"# The embedded pair on the test split ({runs['default']['cases']['present']} cases)",
        "95 % intervals by bootstrap over patients within sets. Not a medical device.",
        "## The tool: oracle clicks without the name, and the name alone",
        _clicks(tools),
        _clicks_by_set(tools["clicks"]),
        f"ECE of the score after clicks {tools['clicks']['ece_clicks']:.3f}, of proposals, absent targets "
        f"included, {tools['clicks']['ece_proposals']:.3f}.",
        "## The pair, its parts and the rival",
        _pair(runs),
        _pair_by_set(runs),
        _differences(comparisons),
        "## Absent targets, positive = present",
        _presence(runs["default"]),
        "## Thoughts",
        _thoughts(thoughts),
        "## The same policy with other tools",
        _swap(swap),
        "## Supervised, then reinforced",
        (out / "rl/rl.md").read_text(),
    ]
    for name in ("rewards", "thresholds", "profiles", "turns"):
        parts += [f"## Ablation: {name} (validation)", (out / f"ablations/{name}.md").read_text()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(value: float | None, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    if value is None:
        return "-"
    span = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{span}"


def _figure(metrics: Mapping[str, Mapping[str, Any]], name: str, digits: int = 3) -> str:
    one = metrics[name]
    return _show(one["value"], one["low"], one["high"], digits)


def _metrics(run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["name"]: one for one in run["metrics"]}


def _clicks(tools: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("@1", "@2", "@3", "@5", "@10", "NoC85", "text")
    rows = []
    for name, title in CLICKS.items():
        there = [tools[name].get(column) for column in columns]
        rows.append([title, *("-" if one is None else _show(*one["cases"]) for one in there)])
    return _table(["tool", *columns[:-1], "name alone"], rows)


def _clicks_by_set(tool: Mapping[str, Any]) -> str:
    columns = ("@1", "@3", "@5", "@10", "NoC85", "text")
    rows = [[name, *(_show(tool[c]["sets"][name]) for c in columns)] for name in tool["@1"]["sets"]]
    return _table(["embedded, by set", *columns[:-1], "name alone"], rows)


def _pair(runs: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, title in PAIR.items():
        own, by_set = _metrics(runs[name]), runs[name]["by_set"].values()
        firsts = [one[FIRST]["value"] for one in by_set if FIRST in one]
        inside = [value for value in firsts if value is not None]
        rows.append(
            [
                title,
                *(_figure(own, metric) for metric in ("set-macro IoU", "mean IoU", "mean Dice", F1)),
                _figure(own, "turns", 2),
                # over the sets in which it clicked at all
                f"{_figure(own, FIRST)}; {_show(sum(inside) / len(inside) if inside else None)}",
            ]
        )
    head = ["", "set-macro IoU", "mean IoU", "mean Dice", "F1", "turns", "first click inside: cases; sets"]
    return _table(head, rows)


def _pair_by_set(runs: Mapping[str, Mapping[str, Any]]) -> str:
    sets = list(runs["default"]["by_set"])
    rows = [
        [title, *(_show(runs[name]["by_set"][one]["mean IoU"]["value"]) for one in sets)]
        for name, title in PAIR.items()
    ]
    return _table(["mean IoU", *sets], rows)


def _differences(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("set-macro IoU", "mean IoU", "mean Dice", F1)
    rows = []
    for title, comparison in comparisons.items():
        found = {one["name"]: one for one in comparison["differences"]}
        three = [[found[name][key] for key in ("difference", "low", "high")] for name in names]
        rows.append([title, *(_show(*one) for one in three)])
    return _table(["paired by case", *names], rows)


def _presence(run: Mapping[str, Any]) -> str:
    own = _metrics(run)
    counts = ", ".join(f"{own[name]['n']} cases" for name in PRESENCE.values())
    return _table(list(PRESENCE), [[_figure(own, name) for name in PRESENCE.values()]]) + f"\n\n({counts})"


def _thoughts(facts: Mapping[str, Any]) -> str:
    agreeing, stating = facts["thoughts"]["kinds"]["all"]["strict"], facts["thoughts that state one"]
    agree, state = (_show(*(one[key] for key in ("value", "low", "high"))) for one in (agreeing, stating))
    return f"{agree} of {agreeing['n']} statements agree with the masks; {state} of the thoughts state one."


def _swap(swap: Mapping[str, Any]) -> str:
    rows = []
    for one in swap["rows"]:
        figures = (_figure(one["metrics"], name) for name in ("set-macro IoU", "mean IoU"))
        rows.append([one["name"], *figures, _figure(one["metrics"], "turns", 2)])
    return _table([f"start: {swap['start']}", "set-macro IoU", "mean IoU", "turns"], rows)
