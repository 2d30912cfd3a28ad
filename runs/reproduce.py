"""The embedded pair from raw data to its tables, unattended; every step continues where it stopped.

    make reproduce-embedded DATA=../shared/data

One CPU thread a training, about six hours in all on a machine like the card's. What differs from the
shipped weights: their policy went through earlier stages that this recipe leaves out (see the card).
Nothing here reads the test split but the last step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

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
    tool_minutes: float = 98.0
    """training of the tool"""
    policy_minutes: float = 90.0
    """dense pre-training of the policy, on the tool's encoder"""
    rounds: int = 60
    """of GRPO"""


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
    tool, policy = out / "embedded_tool.safetensors", out / "dense/embedded_policy.safetensors"
    policy.parent.mkdir(parents=True, exist_ok=True)
    if not tool.exists():
        run("runs/embedded_tool.py", "--out", out / "tool", "--minutes", config.tool_minutes)
        run("runs/calibrate_tool.py", "--weights", out / "tool" / tool.name, "--out", tool)
    if not policy.exists():
        run(
            "runs/embedded_policy.py", "--folder", out / "policy", "--minutes", config.policy_minutes,
            "--encoder", tool, "--tool", tool,
        )  # fmt: skip
        run(
            "runs/calibrate_policy.py", "--weights", out / "policy/policy.safetensors", "--out", policy,
            "--tool", tool,
        )  # fmt: skip
    with_tool = ("--data", data, "--tool", f"embedded:{tool}")
    run("runs/sft.py", *with_tool, "--out", out / "sft", "--policy", f"embedded:{policy}")
    taught = f"embedded:{out / 'sft/run/policy'}"
    for split in ("val", "test"):
        run(
            "runs/rl.py", *with_tool, "--out", out / "rl", "--policy", taught, "--steps", config.rounds,
            "--split", split,
        )  # fmt: skip
    trained = f"embedded:{out / 'rl/GRPO-0/policy'}"
    run(
        "runs/tool_swap.py", data, "--out", out / "tool-swap", "--policies", trained,
        "--tools", f"embedded:{tool}", "classical",
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Reproduce))
