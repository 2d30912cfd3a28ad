"""Embedded SFT: trajectories of the training split, then supervised training on their texts.

    python runs/sft.py --data DATA --out out/sft --policy embedded:PRETRAINED --epochs 2

Every step continues where it was stopped. The policy lies in OUT/run/policy afterwards; OUT/further
holds three more trajectories of every picture for runs/rl.py, which trains on with them.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from arms import ibisagent


@dataclass
class Config:
    """Options of one run."""

    data: Path
    """folder of the data sets"""
    out: Path
    """folder of the run"""
    policy: str = "embedded"
    """where training begins: the densely pre-trained policy (runs/embedded_policy.py)"""
    tool: str = "embedded"
    """the tool that makes the masks"""
    epochs: float = 2.0
    """how often every text is learned"""
    lr: float = 1e-4
    """learning rate"""
    workers: int = 2
    """processes that make trajectories"""


if __name__ == "__main__":
    config = tyro.cli(Config)
    for name, more in (("trajectories", ()), ("further", ("--repeats", 3, "--seed", 1))):
        ibisagent(
            "synthesize", config.data, "--out", config.out / name, "--tool", config.tool,
            "--workers", config.workers, *more,
        )  # fmt: skip
    ibisagent(
        "train", "sft", config.out / "trajectories", "--out", config.out / "run", "--policy", config.policy,
        "--epochs", config.epochs, "--lr", config.lr, "--micro-batch", "16", "--save-every", "100",
    )  # fmt: skip
