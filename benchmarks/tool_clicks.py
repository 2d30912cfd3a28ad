"""How well a tool answers: oracle clicks (METHOD section 5), and the name alone.

    python benchmarks/tool_clicks.py --split test --json out/tool_clicks.json

Prints mean IoU after 1..10 clicks, NoC80 and NoC85 (20 clicks at most), the calibration error of the
tool's own score, and the IoU of text proposals, over cases and per set, with 95 % bootstrap
intervals over patients, stratified by set. `--split val` reads the validation patients of the
training split; choose there, and read the test split once. Clicks are those of `ibisagent clicks`;
what that command has not are proposals for absent targets, and weights that are not packaged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro

from ibisagent import metrics
from ibisagent.datasets.biomedparse import data_root
from ibisagent.evaluation.cases import plan, samples
from ibisagent.evaluation.clicking import Clicked, click_cases
from ibisagent.evaluation.intervals import Resampler, grouped_columns, mean, mean_columns, mean_of_groups
from ibisagent.masks import iou
from ibisagent.tools import load_tool
from ibisagent.types import Sample, Tool, ToolRequest


@dataclass
class Config:
    """Settings of one measurement."""

    tool: str = "embedded"  # spec of the tool
    weights: Path | None = None  # of the embedded tool, instead of the packaged ones
    split: Literal["test", "val"] = "test"
    clicks: int = 20  # at most
    named: bool = False  # tell the tool the target's name with every click
    proposals: bool = True  # measure the name alone, where the tool takes text
    per_set: int | None = None  # cases at most, drawn by hash
    json: Path | None = None  # where the figures are kept


@dataclass
class Case:
    """What was measured on one picture and target."""

    dataset: str
    patient: str
    clicked: Clicked | None  # None: the target is absent
    proposal: tuple[float, float | None] | None  # IoU of the name alone, and the tool's own score

    def iou_after(self, clicks: int) -> float:
        assert self.clicked is not None
        return self.clicked.iou_after(clicks)

    def noc(self, goal: float, limit: int) -> float:
        assert self.clicked is not None
        return metrics.number_of_clicks(self.clicked.ious, goal, limit)[0]


def measure(tool: Tool, sample: Sample, patient: str, config: Config) -> Case:
    """One case; a tool that fails ends the measurement."""
    assert sample.truth is not None
    proposal = None
    if config.proposals and "text" in tool.prompts:
        [reply] = tool.propose([ToolRequest(sample.picture, instruction=sample.instruction)])
        if reply.mask is None:
            raise SystemExit(f"the tool failed: {reply.error}")
        proposal = (iou(sample.truth, reply.mask), reply.score)
    found = list(click_cases([sample], tool, clicks=config.clicks, named=config.named))
    if found and found[0].error is not None:
        raise SystemExit(f"the tool failed: {found[0].error}")
    return Case(sample.dataset or "", patient, found[0] if found else None, proposal)


def calibration_error(pairs: list[tuple[float, float]]) -> float:
    """Expected calibration error over (score, IoU)."""
    columns = metrics.calibration_columns(*zip(*pairs))
    return float(metrics.calibration_error(columns.sum(axis=0)))


def report(cases: list[Case], absent: list[Case], config: Config, tool: Tool) -> dict[str, object]:
    """All figures as plain values; also printed."""
    facts: dict[str, object] = {
        "split": config.split, "named": config.named, "cases": len(cases), "tool": dict(tool.fingerprint()),
    }  # fmt: skip
    print(f"{len(cases)} cases of {config.split}, clicks {'with' if config.named else 'without'} the name")
    figures: list[tuple[str, Callable[[Case], float]]] = [
        *((f"@{k}", lambda c, k=k: c.iou_after(k)) for k in (1, 2, 3, 5, 10) if k <= config.clicks),
        ("NoC80", lambda c: c.noc(0.80, config.clicks)),
        ("NoC85", lambda c: c.noc(0.85, config.clicks)),
    ]
    if cases and cases[0].proposal is not None:
        figures.append(("text", lambda c: c.proposal[0] if c.proposal else 0.0))
    owners = [case.dataset for case in cases]
    draws = Resampler(owners, [case.patient for case in cases])
    sets = sorted(set(owners))
    print(f"{'':24}" + "".join(f"{s[:9]:>10}" for s in sets))
    for label, value in figures:
        values = [value(case) for case in cases]
        over_cases = draws.interval(mean_columns(values), mean)
        over_sets = draws.interval(grouped_columns(values, owners), mean_of_groups)
        each = {s: float(np.mean([v for v, own in zip(values, owners) if own == s])) for s in sets}
        pair = {"cases": over_cases, "set_macro": over_sets}
        facts[label] = {name: [i.value, i.low, i.high] for name, i in pair.items()} | {"sets": each}
        print(
            f"{label:6}{over_cases.value:.3f} [{over_cases.low:.3f}, {over_cases.high:.3f}]"
            + "".join(f"{each[s]:10.3f}" for s in sets)
            + f"  set-macro {over_sets.value:.3f} [{over_sets.low:.3f}, {over_sets.high:.3f}]"
        )
    clicked = [
        (one.scores[at], one.ious[at])
        for one in (case.clicked for case in cases)
        if one is not None
        for at in (min(k, len(one.ious) - 1) for k in range(1, min(config.clicks, 10) + 1))
    ]
    scored = [(score, value) for score, value in clicked if score is not None]
    if scored:
        facts["ece_clicks"] = calibration_error(scored)
        print(f"ECE of the score over clicks 1 to 10: {facts['ece_clicks']:.3f}")
    proposed = [case.proposal for case in cases + absent if case.proposal is not None]
    if proposed and proposed[0][1] is not None:
        facts["ece_proposals"] = calibration_error([(score or 0.0, value) for value, score in proposed])
        facts["absent_cases"] = len(absent)
        empty = [case.proposal is not None and case.proposal[0] == 1.0 for case in absent]
        facts["absent_empty"] = float(np.mean(empty)) if absent else None
        print(f"ECE of the score over proposals, absent targets included: {facts['ece_proposals']:.3f}")
        print(f"absent targets with an empty proposal: {facts['absent_empty']} of {len(absent)}")
    return facts


def main(config: Config) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if config.weights is not None:
        from ibisagent.tools.embedded import EmbeddedTool

        tool: Tool = EmbeddedTool.load(config.weights)
    else:
        tool = load_tool(config.tool)
    start = time.perf_counter()
    proposing = config.proposals and "text" in tool.prompts
    planned = plan(data_root(), config.split, absent="hard" if proposing else "none", per_set=config.per_set)
    measured = [
        measure(tool, sample, task.patient, config)
        for task in planned.tasks
        for sample in samples(task, planned.options)
    ]
    cases = [case for case in measured if case.clicked is not None]
    absent = [case for case in measured if case.clicked is None]
    facts = report(cases, absent, config, tool)
    facts["seconds"] = time.perf_counter() - start
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
