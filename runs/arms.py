"""What the experiments of this folder share: arms that are trained and measured alike, and a table.

An arm is a name and options of `ibisagent train rl` (or sft). Every arm is trained with every seed, then
measured by `ibisagent evaluate`; all steps continue where they were stopped, and experiments with the
same OUT share arms of the same name. Differences to the first arm are paired by case, seeds pooled,
with the bootstrap over patients of `evaluation`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ibisagent.evaluation.intervals import (
    Interval,
    Resampler,
    grouped_columns,
    mean,
    mean_columns,
    mean_of_groups,
)
from ibisagent.evaluation.samples import read_scores
from ibisagent.evaluation.scoring import CaseScore

# What GRPO of the embedded policy is trained with, chosen on validation patients (dev/LOG.md).
GRPO = (
    "--lr", "2e-4", "--schedule", "cosine", "--credit", "turn", "--no-scale", "--temperature", "0.4",
    "--micro-batch", "16", "--save-every", "5",
)  # fmt: skip
SHAPED = ("--validate-every", "0")  # arms of the ablations, beside GRPO
PAPER = ("--profile", "paper", "--credit", "episode", *SHAPED)  # a mean over turns has no credit per turn


@dataclass
class Experiment:
    """What every arm has in common."""

    data: Path
    """folder of the data sets"""
    out: Path
    """folder of the experiment; the same command continues it"""
    policy: str = "embedded"
    """the supervised policy that training begins with"""
    tool: str = "embedded"
    """the tool"""
    steps: int = 60
    """rounds of GRPO"""
    seeds: tuple[int, ...] = (0,)
    """one training each"""
    split: str = "val"
    """what the table is measured on; test only once, when everything is chosen"""
    start: str = "none"
    """where episodes begin, in training and when they are measured"""
    per_set: int | None = None
    """cases of every set that are measured, for a trial"""


@dataclass(frozen=True)
class Arm:
    """One row of a table."""

    name: str
    train: tuple[str, ...] | None = ()  # options of `train rl` beside GRPO; None: the policy as it is
    evaluate: tuple[str, ...] = ()  # options of `evaluate`
    trajectories: Path | None = None  # `train sft` on these instead of `train rl`


def option(name: str, value: object) -> tuple[object, ...]:
    """An option of a command line; nothing where its value is None."""
    return () if value is None else (name, value)


def overridden(options: Sequence[str], by: Sequence[str]) -> list[str]:
    """`options` without those that `by` names too, then `by`: the command line takes each option once."""
    kept: list[str] = []
    keeps = True
    for word in options:
        if word.startswith("--"):
            keeps = word not in by
        kept += [word] * keeps
    return [*kept, *by]


def ibisagent(*arguments: object) -> None:
    """Run a command of ours; a failure ends the experiment, and the next call continues it."""
    command = [sys.executable, "-m", "ibisagent", *map(str, arguments)]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 3, 4):  # 3: cases without an answer, which count 0; 4: stopped early
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit code {done.returncode}")


def run(experiment: Experiment, arms: Sequence[Arm], name: str) -> str:
    """Train and measure every arm; the table, also written to OUT/NAME.md."""
    folders = {arm.name: [_arm(experiment, arm, seed) for seed in experiment.seeds] for arm in arms}
    text = table(folders)
    (experiment.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return text


def _arm(experiment: Experiment, arm: Arm, seed: int) -> Path:
    folder = experiment.out / f"{arm.name.replace(' ', '-')}-{seed}"
    policy = experiment.policy
    if arm.train is not None:
        common = ("--out", folder, "--policy", policy, "--seed", seed)
        if arm.trajectories:
            ibisagent("train", "sft", arm.trajectories, *common, *arm.train)
        else:
            here = ("--tool", experiment.tool, "--steps", experiment.steps, "--start", experiment.start)
            ibisagent("train", "rl", experiment.data, *common, *here, *overridden(GRPO, arm.train))
        kind = policy.partition(":")[0]
        policy = f"{kind}:{folder / 'policy'}"
    measured = folder / f"evaluation-{experiment.split}"
    ibisagent(
        "evaluate", experiment.data, "--split", experiment.split, "--out", measured, "--policy", policy,
        "--tool", experiment.tool, "--start", experiment.start, *arm.evaluate,
        *option("--per-set", experiment.per_set),
    )  # fmt: skip
    return measured


def table(folders: dict[str, list[Path]]) -> str:
    """Markdown: each arm's figures and its paired difference to the first, with 95 % intervals."""
    scores = {name: [s for folder in found for s in read_scores(folder)] for name, found in folders.items()}
    first = next(iter(scores.values()))
    known = {score.case: score for score in first}  # seeds bring every case again
    sets = [score.dataset for score in known.values()]
    draw = Resampler(sets, [score.patient for score in known.values()])
    lines = [
        f"{len(known)} cases, {len(next(iter(folders.values())))} seed(s); "
        "95 % intervals by bootstrap over patients",
        "",
        "| arm | set-macro IoU | mean IoU | turns | set-macro IoU minus the first arm's | training, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    there = _means(first, known)
    for name, own in scores.items():
        here = _means(own, known)
        macro = draw.interval(grouped_columns(here, sets), mean_of_groups)
        plain = draw.interval(mean_columns(here), mean)
        change = draw.difference(grouped_columns(there, sets), grouped_columns(here, sets), mean_of_groups)
        turns = sum(score.turns for score in own) / len(own)
        seconds = ", ".join(_seconds(folder) for folder in folders[name])
        cells = [name, _show(macro), _show(plain), f"{turns:.2f}", _show(change, "+"), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _means(scores: Sequence[CaseScore], cases: Collection[str]) -> list[float]:
    """The mean IoU over seeds of every case."""
    found: dict[str, list[float]] = {case: [] for case in cases}
    for score in scores:
        found[score.case].append(score.iou())
    return [sum(values) / len(values) for values in found.values()]


def _seconds(folder: Path) -> str:
    card = folder.parent / "training.json"
    return f"{json.loads(card.read_text())['seconds']:.0f}" if card.exists() else "0"


def _show(interval: Interval, sign: str = "") -> str:
    if interval.value is None:
        return "-"
    span = "" if interval.low is None else f" [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return f"{interval.value:{sign}.3f}{span}"
