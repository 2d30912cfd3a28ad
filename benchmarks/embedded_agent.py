"""The whole agent on a split: IoU, first clicks, turns and seconds.

    python benchmarks/embedded_agent.py --split test --start proposal --json out/agent.json

Prints, over sets (set-macro) and per set: IoU of the result, IoU of the tool's proposal alone, share
of first clicks inside the target, of clicks that raised the IoU, turns, seconds per episode, with
95 % bootstrap intervals over patients, stratified by set; then how absent targets were answered.
`--split val` reads the validation patients of the training split; choose there, and read the test
split once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro

from ibisagent.actions import click_pixel
from ibisagent.datasets.biomedparse import data_root, list_datasets, read_index, samples_of, split_of
from ibisagent.environment import Settings
from ibisagent.evaluation.intervals import Resampler, grouped_columns, mean_of_groups
from ibisagent.masks import iou
from ibisagent.policies.embedded import EmbeddedPolicy
from ibisagent.rollout import collect, rollout
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Click, Episode, Outcome, Sample


@dataclass
class Config:
    """Settings of one measurement."""

    split: Literal["test", "val"] = "test"
    start: Literal["none", "proposal"] = "proposal"
    policy: Path | None = None  # weights, instead of the packaged ones
    tool: Path | None = None  # weights, instead of the packaged ones
    cases: int = 0  # per set at most, 0: all
    absent: bool = True  # also ask for targets that the index lists as absent
    max_turns: int = 20
    threads: int = 2
    json: Path | None = None  # where the figures are kept
    resamples: int = 2000


@dataclass
class Case:
    """What was measured on one episode."""

    dataset: str
    patient: str
    target: str
    iou: float
    before: float  # IoU of the proposal, 0 without one
    inside: float | None  # the first Positive Point lies in the target; None: the target is absent
    raised: list[float]  # per click: 1 where the IoU rose
    turns: int
    seconds: float
    status: str
    outcome: str
    absent: bool


def samples(config: Config) -> Iterator[Sample]:
    root = data_root()
    for dataset in list_datasets(root):
        done = 0
        for record in read_index(root, dataset, "train" if config.split == "val" else "test"):
            if config.split == "val" and split_of(record.patient) != "val":
                continue
            if config.cases and done >= config.cases:
                break
            done += 1
            yield from samples_of(record, absent=config.absent)


def measure(sample: Sample, episode: Episode) -> Case:
    truth = sample.truth
    assert truth is not None
    empty = np.zeros_like(truth)

    def overlap(mask: np.ndarray | None) -> float:
        return iou(truth, empty if mask is None else mask)

    clicks = [
        turn.action for turn in episode.turns if isinstance(turn.action, Click) and turn.action.positive
    ]
    first = clicks[0] if clicks else None
    inside = float(first is not None and bool(truth[click_pixel(first, *truth.shape)]))
    raised, mask = [], episode.start_mask
    for turn in episode.turns:
        if isinstance(turn.action, Click):
            raised.append(float(overlap(turn.mask) > overlap(mask)))
        mask = turn.mask
    return Case(
        dataset=sample.dataset or "",
        patient=sample.patient or "",
        target=sample.target or "",
        iou=overlap(episode.mask),
        before=overlap(episode.start_mask),
        inside=inside if truth.any() and first is not None else None,
        raised=raised,
        turns=len(episode.turns),
        seconds=episode.seconds,
        status=str(episode.status),
        outcome=str(episode.outcome),
        absent=not truth.any(),
    )


def report(cases: list[Case], config: Config) -> dict[str, object]:
    present, absent = [case for case in cases if not case.absent], [case for case in cases if case.absent]
    sets = sorted({case.dataset for case in present})
    clicked = [case for case in present if case.inside is not None]
    acted = [case for case in present if case.raised]
    rows: list[tuple[str, list[Case], Callable[[Case], float]]] = [
        ("IoU", present, lambda case: case.iou),
        ("proposal", present, lambda case: case.before),
        ("first in", clicked, lambda case: case.inside or 0.0),
        ("raised", acted, lambda case: float(np.mean(case.raised))),
        ("turns", present, lambda case: float(case.turns)),
        ("called absent", present, lambda case: float(case.outcome == Outcome.ABSENT)),
    ]
    facts: dict[str, object] = {"split": config.split, "start": config.start, "cases": len(present)}
    print(f"{len(present)} cases of {config.split}, --start {config.start}")
    print(f"{'':42}" + "".join(f"{name[:9]:>10}" for name in sets))
    for label, chosen, value in rows:
        if not chosen:
            continue
        owners = [case.dataset for case in chosen]
        draws = Resampler(owners, [case.patient for case in chosen], config.resamples)
        found = draws.interval(grouped_columns([value(case) for case in chosen], owners), mean_of_groups)
        macro = (found.value, found.low, found.high)
        micro = float(np.mean([value(case) for case in chosen]))
        each = {name: [value(case) for case in chosen if case.dataset == name] for name in sets}
        means = {name: float(np.mean(values)) if values else float("nan") for name, values in each.items()}
        facts[label] = {"set_macro": macro, "cases": micro, "sets": means}
        line = f"{label:14}{macro[0]:.3f} [{macro[1]:.3f}, {macro[2]:.3f}] {micro:.3f}"
        print(f"{line:42}" + "".join(f"{means[name]:10.3f}" for name in sets))
    seconds = [case.seconds for case in cases]
    facts["seconds"] = {"median": float(np.median(seconds)), "p95": float(np.percentile(seconds, 95))}
    facts["status"] = dict(Counter(case.status for case in cases))
    print(f"seconds per episode: median {np.median(seconds):.3f}, 95 % {np.percentile(seconds, 95):.3f}")
    print(f"status: {facts['status']}")
    if absent:
        honest = float(np.mean([case.outcome == Outcome.ABSENT for case in absent]))
        empty = float(np.mean([case.iou == 1.0 for case in absent]))
        facts["absent"] = {"cases": len(absent), "honest": honest, "empty": empty}
        print(
            f"absent targets: {len(absent)} cases, {honest:.3f} answered so, {empty:.3f} with an empty mask"
        )
    return facts


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    policy, tool = EmbeddedPolicy.load(config.policy), EmbeddedTool.load(config.tool)
    settings = Settings(max_turns=config.max_turns, verbs=policy.verbs, start=config.start)
    chosen = {sample.sample_id: sample for sample in samples(config)}
    episodes = collect(rollout(chosen.values(), policy, tool, settings))
    cases = [measure(chosen[episode.sample_id], episode) for episode in episodes]
    facts = report(cases, config)
    facts["fingerprint"] = {"policy": dict(policy.fingerprint()), "tool": dict(tool.fingerprint())}
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config))
