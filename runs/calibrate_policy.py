"""Choose what the embedded policy does with its doubts, on the validation patients.

    python runs/calibrate_policy.py --data DATA --weights POLICY.safetensors --out out/calibration

Three choices, one after the other, are stored with the weights in OUT/embedded_policy.safetensors:
how readily a mask is taken back (the shift of one verdict's logit with the best set-macro IoU of whole
episodes from the default start); below which logit of presence a target is reported as absent (the
highest that leaves `sensitivity` of the present targets); and how sure a statement must be to be made
(for each kind the least with which `agreement` of its statements agree with the masks; kinds that never
do are not stated). Every evaluation continues where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from arms import ibisagent, option

from ibisagent.evaluation.cases import plan, samples
from ibisagent.policies.embedded import WEIGHTS, Calibration, EmbeddedPolicy
from ibisagent.render import view_image
from ibisagent.synthesis.reasoning import STATEMENTS, VERDICTS
from ibisagent.targets import TARGETS

NEVER = 1.01  # more than all of a kind's probability
THOUGHTS = Path(__file__).parents[1] / "benchmarks" / "thoughts.py"


@dataclass
class Config:
    """Settings of one calibration."""

    data: Path
    """folder of the data sets"""
    weights: Path
    """of the policy"""
    out: Path
    """folder of the evaluations and of the calibrated weights"""
    tool: str = "embedded"
    """the tool"""
    shifts: tuple[float, ...] = (0.0, 1.5, 3.0)
    """of the verdict that takes a mask back"""
    sensitivity: float = 0.975
    """share of the present targets that must not be reported as absent"""
    agreement: float = 0.92
    """share of each kind's statements that must agree"""
    sure: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """what is tried for it"""
    per_set: int | None = None
    """cases of every set that are looked at, for a trial"""


def figure(folder: Path, name: str) -> float:
    """A metric of an evaluation."""
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == name))


def evaluated(config: Config, name: str, calibration: Calibration) -> Path:
    """An evaluation on validation patients, from the default start."""
    weights = config.out / f"{name}.safetensors"
    policy = EmbeddedPolicy.load(config.weights)
    policy.calibrate(calibration)
    policy.save(weights)
    folder = config.out / name
    ibisagent(
        "evaluate", config.data, "--split", "val", "--out", folder, "--tool", config.tool,
        "--policy", f"embedded:{weights}", *option("--per-set", config.per_set),
    )  # fmt: skip
    return folder


def presences(config: Config) -> dict[str, list[float]]:
    """Logits of presence on bare pictures: of present targets, and of hard and easy absent ones."""
    policy = EmbeddedPolicy.load(config.weights)
    planned = plan(config.data, "val", absent="both", per_set=config.per_set)
    found: dict[str, list[float]] = {"present": [], "hard": [], "easy": []}
    for task in planned.tasks:
        for sample in samples(task, planned.options):
            image = view_image(sample.picture, None, policy.view)
            seen = policy.see(image, TARGETS.index(sample.target or ""), sample.picture.laterality)
            there = sample.truth is not None and bool(sample.truth.any())
            kind = "present" if there else task.absence(sample.target)
            found[kind].append(float(seen.present[0]))
    return found


def main(config: Config) -> None:
    torch.set_num_threads(1)
    config.out.mkdir(parents=True, exist_ok=True)
    chosen = EmbeddedPolicy.load(config.weights).calibration
    scored = []
    for shift in config.shifts:
        verdicts = {VERDICTS["elsewhere"]: shift} if shift else {}
        folder = evaluated(config, f"shift-{shift:g}", replace(chosen, verdicts=verdicts, presence=None))
        scored.append((figure(folder, "set-macro IoU"), verdicts))
        print(f"shift {shift:g}: set-macro IoU {scored[-1][0]:.4f}", flush=True)
    chosen = replace(chosen, verdicts=max(scored, key=lambda pair: pair[0])[1])
    found = presences(config)
    threshold = float(np.quantile(found["present"], 1 - config.sensitivity))
    chosen = replace(chosen, presence=round(threshold, 2))
    for kind in ("hard", "easy"):
        below = float(np.mean(np.array(found[kind]) < threshold))
        print(f"presence below {threshold:.2f}: {below:.3f} of {len(found[kind])} {kind} absent targets")
    kinds = {kind: "error size" if kind == "error" else kind for kind in STATEMENTS}
    least = dict.fromkeys(kinds, NEVER)
    for sure in reversed(config.sure):
        every = replace(chosen, sure=dict.fromkeys(kinds, sure))
        folder, file = evaluated(config, f"sure-{sure:g}", every), config.out / f"thoughts-{sure:g}.json"
        file.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, THOUGHTS, folder, "--json", file], check=False, stdout=subprocess.DEVNULL
        )
        if not file.exists():
            raise SystemExit(f"{config.weights} writes no thoughts; train it for longer")
        rows = json.loads(file.read_text())["thoughts"]["kinds"]
        for kind, name in kinds.items():
            agree = rows[name]["strict"]["value"]
            print(f"sure {sure:g}: {rows[name]['strict']['n']} statements of {kind}, agreement {agree}")
            if agree is not None and agree >= config.agreement:
                least[kind] = sure
    chosen = replace(chosen, sure=least)
    policy = EmbeddedPolicy.load(config.weights)
    policy.calibrate(chosen)
    policy.save(config.out / WEIGHTS)
    print(json.dumps(asdict(chosen)))


if __name__ == "__main__":
    main(tyro.cli(Config))
