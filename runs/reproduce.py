"""The embedded pair from raw data to its tables, unattended; every step continues where it stopped.

    make reproduce-embedded DATA=../shared/data

One CPU thread a training, about fifteen hours in all on a machine like the card's. What differs from
the shipped weights: their policy went through earlier stages that this recipe leaves out (see the card).
Nothing here reads the test split but the last steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from arms import ibisagent

HERE = Path(__file__).parent
# glibc would give memory back and fault it in again at every step: 1.4x slower
MEMORY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "THP_MEM_ALLOC_ENABLE": "1",
}


@dataclass
class Reproduce:
    """Options of the recipe."""

    data: Path
    """folder of the data sets"""
    out: Path = Path("out/reproduce")
    """where everything goes"""
    tool_minutes: tuple[tuple[float, float], ...] = ((98.0, 0.62), (180.0, 0.79), (262.0, 0.86))
    """training of the tool: the rate falls to 0 at each of these minutes; smaller frames up to this share"""
    policy_minutes: float = 150.0
    """training of the policy, on the tool's encoder and on the tool's masks"""
    rival_minutes: float = 412.0
    """training of the single-pass rival: as long as tool and policy together"""
    rounds: int = 60
    """of GRPO"""
    ablation_rounds: int = 12
    """of GRPO in every arm of the ablations, each about eight minutes"""
    further: int = 1250
    """steps of further supervised training beside it, about as long"""


def run(script: str, *arguments: object) -> None:
    """Run a script of this folder or of benchmarks/; each continues what it began, or finds it done."""
    print("running:", script, *arguments, flush=True)
    command = [sys.executable, str(HERE.parent / script), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | MEMORY, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with exit code {done.returncode}; run the same command again")


def main(config: Reproduce) -> None:
    """Every step in order; what is calibrated exists only when its training is done."""
    data, out = config.data.resolve(), config.out
    os.environ["IBISAGENT_DATA"] = str(data)
    tool, policy = out / "embedded_tool.safetensors", out / "calibration/embedded_policy.safetensors"
    if not tool.exists():
        for minutes, small in config.tool_minutes:
            schedule = ("--minutes", minutes, "--small-share", small)
            run("runs/embedded_tool.py", "--out", out / "tool", *schedule)
        run("runs/calibrate_tool.py", "--weights", out / "tool" / tool.name, "--out", tool)
    raw = out / "policy/policy.safetensors"
    with_tool = ("--data", data, "--tool", f"embedded:{tool}")
    if not policy.exists():
        run(
            "runs/embedded_policy.py", "--folder", out / "policy", "--minutes", config.policy_minutes,
            "--encoder", tool, "--tool", tool,
        )  # fmt: skip
        run(
            "runs/calibrate_policy.py", *with_tool, "--weights", raw,
            "--out", out / "calibration",
        )  # fmt: skip
    run("runs/sft.py", *with_tool, "--out", out / "sft", "--policy", raw)
    taught = (
        *with_tool, "--policy", f"embedded:{out / 'sft/run/policy'}", "--steps", config.rounds,
        "--trajectories", out / "sft/further", "--further", config.further, "--out", out / "rl",
    )  # fmt: skip
    run("runs/rl.py", *taught, "--split", "val")
    ablated = (*with_tool, "--policy", f"embedded:{out / 'sft/run/policy'}", "--out", out / "ablations")
    for table in ("reward_ablation", "thresholds", "profiles", "turns"):
        run(f"runs/{table}.py", *ablated, "--steps", config.ablation_rounds)
    rival = out / "rival/embedded_tool.safetensors"
    run("runs/embedded_tool.py", "--out", rival.parent, "--minutes", config.rival_minutes, "--single-pass")
    # from here on the test split is read
    run("runs/rl.py", *taught, "--split", "test")
    pair = ("--policy", f"embedded:{policy}", "--tool", f"embedded:{tool}")
    alone = ("--policy", "scripted:stop-at-once", "--tool", f"embedded:{rival}")
    for name, options in (("agent", pair), ("none", (*pair, "--start", "none")), ("rival", alone)):
        ibisagent("evaluate", data, "--split", "test", "--out", out / name, *options)
    ibisagent("compare", out / "rival", out / "agent")
    run(
        "runs/tool_swap.py", data, "--out", out / "tool-swap", "--policies", f"embedded:{policy}",
        "--tools", f"embedded:{tool}", "classical",
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Reproduce))
