"""Embedded RL: GRPO from the supervised policy, beside that policy and as much further supervision.

    python runs/rl.py --data DATA --out out/rl --policy embedded:out/sft/run/policy --further 1250

Then, once, --split test: the trainings are not repeated. `--further` is how many supervised steps take
the time that the rounds take on this machine; the table shows both.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from arms import Arm, Experiment, run


@dataclass
class Config(Experiment):
    """Options of the comparison."""

    start: str = "proposal"
    """where episodes begin, in training and when they are measured"""
    trajectories: Path = Path("out/sft/further")
    """what further supervised training learns from (`ibisagent synthesize`)"""
    further: int = 1250
    """steps of further supervised training"""


def arms(config: Config) -> tuple[Arm, ...]:
    """The policy as it is, trained on as before, and trained by GRPO."""
    further = ("--steps", str(config.further), "--lr", "2e-4", "--micro-batch", "16", "--save-every", "100")
    return (
        Arm("further SFT", further, trajectories=config.trajectories),
        Arm("SFT", train=None),
        Arm("GRPO", ("--without", "turn_cost")),
    )


if __name__ == "__main__":
    config = tyro.cli(Config)
    run(config, arms(config), "rl")
