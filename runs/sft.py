"""Embedded SFT from a cold start: perception is given, every text is learned from trajectories.

    python runs/sft.py --data DATA --out out/sft --policy PRETRAINED

The encoder, the maps and the presence of PRETRAINED (runs/embedded_policy.py, which has seen the
tool's own masks) are kept; the part that writes begins anew, so that it knows nothing but what the
trajectories teach. Every step continues where it was stopped. The policy lies in OUT/run/policy
afterwards; OUT/further holds as many other trajectories for runs/rl.py.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from arms import ibisagent, option

from ibisagent.policies.embedded import EmbeddedPolicy
from ibisagent.policies.embedded_model import EmbeddedPolicyNetwork

LOOKS = ("encoder.", "target.", "enter.", "painted.", "block8.", "block4.", "join8.", "maps.", "present.")


@dataclass
class Config:
    """Options of one run."""

    data: Path
    """folder of the data sets"""
    out: Path
    """folder of the run"""
    policy: Path | None = None
    """weights whose perception is taken over; the packaged ones by default"""
    tool: str = "embedded"
    """the tool that makes the masks"""
    repeats: int = 3
    """trajectories of every picture and target"""
    steps: int = 4000
    """of 16 texts"""
    lr: float = 5e-4
    """learning rate"""
    workers: int = 2
    """processes that make trajectories"""
    limit: int | None = None
    """pictures that trajectories are made of, for a trial"""


def without_words(policy: EmbeddedPolicy) -> EmbeddedPolicy:
    """The same eyes and a hand that has not learned to write; no calibration."""
    torch.manual_seed(0)
    network = EmbeddedPolicyNetwork(policy.network.target.num_embeddings, policy.network.words.num_embeddings)
    looks = {key: value for key, value in policy.network.state_dict().items() if key.startswith(LOOKS)}
    network.load_state_dict(network.state_dict() | looks)
    return EmbeddedPolicy(network, policy.words)


if __name__ == "__main__":
    config = tyro.cli(Config)
    for name, seed in (("trajectories", 1), ("further", 2)):
        ibisagent(
            "synthesize", config.data, "--out", config.out / name, "--tool", config.tool,
            "--workers", config.workers, "--repeats", config.repeats, "--seed", seed,
            *option("--limit", config.limit),
        )  # fmt: skip
    cold = config.out / "cold/embedded_policy.safetensors"
    if not cold.exists():
        without_words(EmbeddedPolicy.load(config.policy)).save(cold)
    ibisagent(
        "train", "sft", config.out / "trajectories", "--out", config.out / "run", "--policy",
        f"embedded:{cold}", "--steps", config.steps, "--lr", config.lr, "--micro-batch", 16,
        "--save-every", 100,
    )  # fmt: skip
