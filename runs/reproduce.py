"""The embedded pair from raw data to the card's tables, unattended; every step continues where it stopped.

    make reproduce-embedded DATA=../shared/data

One CPU thread a training, about 21 hours in all on a machine like the card's; OUT/tables.md at the
end. What differs from the shipped weights: they went through more stages, with settings that changed on
the way (see the card). Nothing here reads the test split but the last steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tables
import tyro
from arms import ibisagent, option

HERE = Path(__file__).parent
# glibc would give memory back and fault it in again at every step: 1.4x slower
MEMORY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "THP_MEM_ALLOC_ENABLE": "1",
}
UNSEEN = ("HyperKvasir", "Sunnybrook")  # the sets that one tool is never shown
ADRENALS = ("left adrenal gland", "right adrenal gland")  # too small in these pictures to be denied


@dataclass
class Reproduce:
    """Options of the recipe."""

    data: Path
    """folder of the data sets"""
    out: Path = Path("out/reproduce")
    """where everything goes"""
    tool_minutes: tuple[tuple[float, float], ...] = ((98.0, 0.62), (180.0, 0.79), (262.0, 0.86))
    """training of the tool: the rate falls to 0 at each of these minutes; smaller frames up to this share"""
    without_minutes: tuple[float, float] = (290.0, 0.6)
    """training of a tool that is never shown two of the sets"""
    policy_minutes: float = 150.0
    """training of the policy, on the tool's encoder and on the tool's masks"""
    rival_minutes: tuple[tuple[float, float], ...] = ((120.0, 0.65), (412.0, 0.65))
    """training of the single-pass rival: as long as tool and policy together"""
    sft_steps: int = 4000
    """of 16 texts, from a cold start"""
    rounds: int = 60
    """of GRPO"""
    ablation_rounds: int = 12
    """of GRPO in every arm of the ablations, each about eight minutes"""
    further: int = 1250
    """steps of further supervised training beside it, about as long"""
    limit: int | None = None
    """pictures that trajectories are made of, for a trial of the recipe"""
    per_set: int | None = None
    """cases of every set in the tables, for a trial of the recipe"""


def run(script: str, *arguments: object) -> None:
    """Run a script of this folder or of benchmarks/; each continues what it began, or finds it done."""
    print("running:", script, *arguments, flush=True)
    command = [sys.executable, str(HERE.parent / script), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | MEMORY, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with exit code {done.returncode}; run the same command again")


class Recipe:
    """The steps in order, and the files that they leave."""

    def __init__(self, config: Reproduce) -> None:
        self.config, self.out = config, config.out
        self.tool = self.out / "embedded_tool.safetensors"
        self.without = self.out / "without/embedded_tool.safetensors"
        self.rival = self.out / "rival/embedded_tool.safetensors"
        self.raw = self.out / "policy/policy.safetensors"
        self.policy = self.out / "calibration/embedded_policy.safetensors"
        self.few = option("--per-set", config.per_set)
        self.evaluated = ("--data", config.data, "--tool", f"embedded:{self.tool}", *self.few)

    def train(self) -> None:
        """The pair; what is calibrated exists only when its training is done."""
        config = self.config
        if not self.tool.exists():
            self._tool(self.out / "tool", config.tool_minutes)
            weights = self.out / "tool" / self.tool.name
            run("runs/calibrate_tool.py", "--weights", weights, "--out", self.tool)
        if not self.policy.exists():
            run(
                "runs/embedded_policy.py", "--folder", self.raw.parent, "--minutes", config.policy_minutes,
                "--encoder", self.tool, "--tool", self.tool,
            )  # fmt: skip
            calibrated = ("--weights", self.raw, "--out", self.policy.parent)
            run("runs/calibrate_policy.py", *self.evaluated, *calibrated)
        self._tool(self.without.parent, (config.without_minutes,), "--without", *UNSEEN)
        self._tool(self.rival.parent, config.rival_minutes, "--single-pass")

    @staticmethod
    def _tool(folder: Path, phases: tuple[tuple[float, float], ...], *options: object) -> None:
        for minutes, small in phases:
            schedule = ("--minutes", minutes, "--small-share", small)
            run("runs/embedded_tool.py", "--out", folder, *schedule, *options)

    def reinforce(self) -> tuple[object, ...]:
        """A cold policy taught by trajectories, then by GRPO; the ablations. Returns what runs/rl.py got."""
        config, sft = self.config, self.out / "sft"
        run(
            "runs/sft.py", "--data", config.data, "--tool", f"embedded:{self.tool}", "--out", sft,
            "--policy", self.raw, "--steps", config.sft_steps,
            *option("--limit", config.limit),
        )  # fmt: skip
        taught = (*self.evaluated, "--policy", f"embedded:{sft / 'run/policy'}")
        compared = (
            *taught, "--steps", config.rounds, "--trajectories", sft / "further",
            "--further", config.further, "--out", self.out / "rl",
        )  # fmt: skip
        run("runs/rl.py", *compared, "--split", "val")
        for table in ("reward_ablation", "thresholds", "profiles", "turns"):
            ablated = ("--out", self.out / "ablations", "--steps", config.ablation_rounds)
            run(f"runs/{table}.py", *taught, *ablated)
        return compared

    def measure(self) -> None:
        """Everything on the test split, once."""
        for name, options in (
            ("clicks", ("--weights", self.tool)),
            ("clicks-without", ("--weights", self.without)),
            ("clicks-classical", ("--tool", "classical")),
        ):
            file = self.out / f"{name}.json"
            if not file.exists():
                run("benchmarks/tool_clicks.py", "--split", "test", "--json", file, *options, *self.few)
        pair = ("--policy", f"embedded:{self.policy}", "--tool", f"embedded:{self.tool}")
        once = ("--policy", "scripted:stop-at-once", "--start", "proposal", "--tool")
        for name, options in (
            ("rival", (*once, f"embedded:{self.rival}")),
            ("proposal", (*once, f"embedded:{self.tool}")),
            ("default", (*pair, "--absent", "both", "--without", *ADRENALS)),
            ("none", (*pair, "--start", "none")),
            ("shift", (*pair, "--perturb", "shift")),
            ("shift-none", (*pair, "--perturb", "shift", "--start", "none")),
            ("mirror", (*pair, "--perturb", "mirror")),
        ):
            data = self.config.data
            ibisagent("evaluate", data, "--split", "test", "--out", self.out / name, *options, *self.few)
        for other in ("rival", "proposal"):
            against = self.out / f"against-{other}"
            ibisagent("compare", self.out / other, self.out / "default", "--out", against)
        run(
            "runs/tool_swap.py", self.config.data, "--split", "test", "--out", self.out / "tool-swap",
            "--policies", f"embedded:{self.policy}", "--tools", f"embedded:{self.tool}", "classical",
            *self.few,
        )  # fmt: skip
        self._thoughts()

    def _thoughts(self) -> None:
        """Its exit code says whether the bar holds: no reason to stop."""
        command = [HERE.parent / "benchmarks/thoughts.py", self.out / "default"]
        file = self.out / "thoughts.json"
        subprocess.run([sys.executable, *map(str, command), "--json", str(file)], check=False)
        if not file.exists():
            raise SystemExit("benchmarks/thoughts.py measured nothing; see above")


def main(config: Reproduce) -> None:
    """Train, reinforce, measure, write the page."""
    os.environ["IBISAGENT_DATA"] = str(config.data.resolve())
    recipe = Recipe(config)
    recipe.train()
    compared = recipe.reinforce()
    # from here on the test split is read
    run("runs/rl.py", *compared, "--split", "test")
    recipe.measure()
    page = config.out / "tables.md"
    page.write_text(tables.page(config.out), encoding="utf-8")
    print(f"tables: {page}")


if __name__ == "__main__":
    main(tyro.cli(Reproduce))
