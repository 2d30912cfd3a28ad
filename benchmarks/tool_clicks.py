"""How well a tool answers: oracle clicks (METHOD section 5), and the name alone.

    python benchmarks/tool_clicks.py --split test --json out/tool_clicks.json

Prints mean IoU after 1..10 clicks, NoC80 and NoC85 (20 clicks at most), the calibration error of the
tool's own score, and the IoU of text proposals, over cases and per set, with 95 % bootstrap
intervals over patients, stratified by set. `--split val` reads the validation patients of the
training split; choose there, and read the test split once.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro

from ibisagent.datasets.biomedparse import data_root, list_datasets, read_index, samples_of, split_of
from ibisagent.masks import iou
from ibisagent.synthesis.clicks import next_click
from ibisagent.tools import load_tool
from ibisagent.types import Click, Logits, Sample, Tool, ToolReply, ToolRequest


@dataclass
class Config:
    """Settings of one measurement."""

    tool: str = "embedded"  # spec of the tool
    weights: Path | None = None  # of the embedded tool, instead of the packaged ones
    split: Literal["test", "val"] = "test"
    clicks: int = 20  # at most
    named: bool = False  # tell the tool the target's name with every click
    proposals: bool = True  # measure the name alone, where the tool takes text
    cases: int = 0  # per set at most, 0: all
    json: Path | None = None  # where the figures are kept
    resamples: int = 2000


@dataclass
class Case:
    """What was measured on one picture and target."""

    dataset: str
    patient: str
    target: str
    ious: list[float] = field(default_factory=list)  # after each click
    scores: list[float] = field(default_factory=list)  # the tool's own, after each click
    proposal: float | None = None
    proposal_score: float | None = None


def samples(config: Config) -> Iterator[Sample]:
    """Cases of the split, set by set."""
    root = data_root()
    for dataset in list_datasets(root):
        done = 0
        for record in read_index(root, dataset, "train" if config.split == "val" else "test"):
            if config.split == "val" and split_of(record.patient) != "val":
                continue
            for sample in samples_of(record, absent=config.proposals):
                if sample.truth is not None and not sample.truth.any():
                    yield sample  # absent target: for proposals only
                elif not config.cases or done < config.cases:
                    done += 1
                    yield sample


def answer(reply: ToolReply) -> ToolReply:
    if reply.error is not None or reply.mask is None:
        raise SystemExit(f"the tool failed: {reply.error}")
    return reply


def measure(tool: Tool, sample: Sample, config: Config) -> Case:
    """Click until no pixel is left or the limit; later entries repeat the last."""
    assert sample.truth is not None
    case = Case(sample.dataset or "", sample.patient or "", sample.target or "")
    if config.proposals and "text" in tool.prompts:
        reply = answer(tool.propose([ToolRequest(sample.picture, instruction=sample.instruction)])[0])
        assert reply.mask is not None
        case.proposal, case.proposal_score = iou(sample.truth, reply.mask), reply.score
    clicks: tuple[Click, ...] = ()
    mask, logits = None, None
    while len(case.ious) < config.clicks:
        click = next_click(sample.truth, mask, clicks) if sample.truth.any() else None
        if click is None:
            break
        clicks += (click,)
        name = sample.instruction if config.named else None
        low: Logits | None = logits
        reply = answer(tool.predict([ToolRequest(sample.picture, clicks, (), low, None, name)])[0])
        mask, logits = reply.mask, reply.low_res_logits
        assert mask is not None
        case.ious.append(iou(sample.truth, mask))
        case.scores.append(-1.0 if reply.score is None else reply.score)
    missing = config.clicks - len(case.ious)
    if case.ious:
        case.ious += [case.ious[-1]] * missing
        case.scores += [case.scores[-1]] * missing
    return case


def noc(case: Case, goal: float) -> float:
    """Clicks to reach IoU >= goal; the limit where it is never reached."""
    return next((k + 1 for k, value in enumerate(case.ious) if value >= goal), len(case.ious))


def calibration_error(pairs: list[tuple[float, float]], bins: int = 10) -> float:
    """Expected calibration error: |mean score - mean IoU| over equal-width bins of the score."""
    data = np.array(pairs)
    index = np.minimum((data[:, 0] * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(data[index == b, 0].mean() - data[index == b, 1].mean()) * np.mean(index == b)
            for b in np.unique(index)
        )
    )


def interval(
    cases: list[Case], value: Callable[[Case], float], resamples: int, by_set: bool
) -> tuple[float, float, float]:
    """Mean over cases (or over sets) with its 95 % bootstrap interval over patients within sets."""
    rng = np.random.default_rng(0)
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        groups[case.dataset][case.patient].append(value(case))
    sums, counts = [], []
    for patients in groups.values():
        total = np.array([sum(v) for v in patients.values()])
        count = np.array([len(v) for v in patients.values()])
        drawn = rng.integers(len(total), size=(resamples, len(total)))
        drawn[0] = np.arange(len(total))  # the first row is the data itself
        sums.append(total[drawn].sum(1))
        counts.append(count[drawn].sum(1))
    if by_set:
        means = np.mean([s / c for s, c in zip(sums, counts)], axis=0)
    else:
        means = np.sum(sums, axis=0) / np.sum(counts, axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(means[0]), float(low), float(high)


def report(cases: list[Case], absent: list[Case], config: Config, tool: Tool) -> dict[str, object]:
    """All figures as plain values; also printed."""
    facts: dict[str, object] = {
        "split": config.split, "named": config.named, "cases": len(cases), "tool": dict(tool.fingerprint()),
    }  # fmt: skip
    print(f"{len(cases)} cases of {config.split}, clicks {'with' if config.named else 'without'} the name")
    figures: list[tuple[str, Callable[[Case], float]]] = [
        *((f"@{k}", lambda c, k=k: c.ious[k - 1]) for k in (1, 2, 3, 5, 10) if k <= config.clicks),
        ("NoC80", lambda c: noc(c, 0.80)),
        ("NoC85", lambda c: noc(c, 0.85)),
    ]
    if cases and cases[0].proposal is not None:
        figures.append(("text", lambda c: c.proposal or 0.0))
    sets = sorted({case.dataset for case in cases})
    print(f"{'':24}" + "".join(f"{s[:9]:>10}" for s in sets))
    for label, value in figures:
        over_cases = interval(cases, value, config.resamples, False)
        over_sets = interval(cases, value, config.resamples, True)
        each = {s: float(np.mean([value(c) for c in cases if c.dataset == s])) for s in sets}
        facts[label] = {"cases": over_cases, "set_macro": over_sets, "sets": each}
        print(
            f"{label:6}{over_cases[0]:.3f} [{over_cases[1]:.3f}, {over_cases[2]:.3f}]"
            + "".join(f"{each[s]:10.3f}" for s in sets)
            + f"  set-macro {over_sets[0]:.3f} [{over_sets[1]:.3f}, {over_sets[2]:.3f}]"
        )
    clicked = [(s, i) for c in cases for s, i in list(zip(c.scores, c.ious))[:10] if s >= 0]
    if clicked:
        facts["ece_clicks"] = calibration_error(clicked)
        print(f"ECE of the score over clicks 1 to 10: {facts['ece_clicks']:.3f}")
    if cases and cases[0].proposal_score is not None:
        pairs = [(c.proposal_score or 0.0, c.proposal or 0.0) for c in cases + absent]
        facts["ece_proposals"] = calibration_error(pairs)
        facts["absent_cases"] = len(absent)
        facts["absent_empty"] = float(np.mean([c.proposal == 1.0 for c in absent])) if absent else None
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
    measured = [(sample.truth, measure(tool, sample, config)) for sample in samples(config)]
    cases = [case for truth, case in measured if truth is not None and truth.any()]
    absent = [case for truth, case in measured if truth is not None and not truth.any()]
    facts = report(cases, absent, config, tool)
    facts["seconds"] = time.perf_counter() - start
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
