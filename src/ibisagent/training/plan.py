"""`ibisagent train plan`: memory and time of a training, from shapes, before anyone rents a machine.

The flags are those of `train sft` and `train rl`; GB are 10^9 bytes. What cannot fit is refused, with
the first change that makes it fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ibisagent.errors import InputError
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.plan_costs import (
    STEP_SECONDS,
    Stage,
    gpus,
    memory,
    rl_seconds,
    sft_seconds,
    trained_weights,
)
from ibisagent.training.plan_shapes import KNOWN, Shapes, shapes_of
from ibisagent.training.policy import PolicyToTrain

SPARE = 0.08  # of a GPU's memory, for the CUDA context and what the allocator cannot use
GB = 1e9


@dataclass(frozen=True)
class TrainPlan:
    """Estimate memory and time of SFT and RL for a Qwen2.5-VL model."""

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct, or a folder with config.json"""
    gpus: str = "8x80"
    """number of GPUs x GB of memory of each"""
    lora_rank: int = PolicyToTrain.lora_rank
    """as for train sft; 0: full training"""
    freeze_vision: bool = PolicyToTrain.freeze_vision
    """leave the vision tower as it is"""
    gradient_checkpointing: bool = PolicyToTrain.gradient_checkpointing
    """recompute activations instead of keeping them"""
    micro_batch: int = Optimisation.micro_batch
    """examples in one forward pass on one GPU"""
    max_tokens: int = PolicyToTrain.max_tokens
    """longest conversation, pictures included"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """in which the model computes"""
    sharding: Literal["none", "fsdp"] = "none"
    """none: every GPU holds all weights (DDP); fsdp: they are divided (accelerate's FSDP, full SFT only)"""
    pixels: int = 262_144
    """of a picture, at most"""
    prompt: int = 330
    """tokens of system prompt and instruction"""
    reply: int = 100
    """tokens of one policy text"""
    texts: int = 456_000
    """texts of the SFT data"""
    epochs: float = 10.0
    """over the SFT data"""
    rollouts: int = 128
    """episodes of one round of RL, over all GPUs"""
    turns: int = 4
    """texts of one episode"""
    rollout_batch: int = 8
    """texts written side by side on one GPU"""
    tflops: float = 312.0
    """peak of one GPU in the dtype, 10^12 operations a second; an A100 has 312 in bfloat16"""
    bandwidth: float = 2.0
    """of a GPU's memory, TB a second; an A100 has 2.0"""
    utilisation: float = 0.3
    """share of the peak that training reaches"""


def run(command: TrainPlan) -> int:
    """Print the plan; exit code 2, through InputError, where it cannot fit."""
    from rich.console import Console
    from rich.table import Table

    shapes = shapes_of(command.model)
    count, size = gpus(command)
    stages: tuple[Stage, ...] = ("sft",) if command.sharding == "fsdp" else ("sft", "rl")
    memories = {stage: memory(shapes, command, stage) for stage in stages}
    name = command.model if command.model in KNOWN else Path(command.model).resolve().name
    screen = Console(soft_wrap=True, highlight=False)
    table = Table("GB on each GPU", *stages, title=f"{name} on {count} x {size:g} GB")
    for row in memories["sft"]:
        table.add_row(row, *(f"{memories[stage][row] / GB:.1f}" for stage in stages))
    totals = [sum(memories[stage].values()) / GB for stage in stages]
    table.add_row("in all", *(f"{total:.1f}" for total in totals), style="bold")
    screen.print(table)
    for line in _lines(shapes, command, count):
        screen.print(line)
    for line in (*ASSUMED, _device(command)):
        screen.print(f"  assumed: {line}", style="dim")
    if max(totals) > size * (1 - SPARE):
        raise InputError(
            f"a plan fits into {1 - SPARE:.0%} of a GPU's {size:g} GB",
            f"{max(totals):.0f} GB",
            _fix(shapes, command, size),
        )
    return 0


def _lines(shapes: Shapes, command: TrainPlan, count: int) -> list[str]:
    """Weights and times in words."""
    trained = trained_weights(shapes, command)
    rate = count / sft_seconds(shapes, command)
    hours = command.texts * command.epochs / rate / 3600
    lines = [
        f"{shapes.total / 1e9:.3f} billion weights ({shapes.vision / 1e9:.3f} vision), "
        f"{trained / 1e6:.1f} million trained; a picture is {shapes.picture_tokens(command.pixels)} tokens",
        f"SFT: {rate:.1f} texts/s; {command.texts:,} texts x {command.epochs:g} epochs: {hours:,.0f} h",
    ]
    if command.sharding == "fsdp":
        return [*lines, "RL: train rl needs whole weights on every GPU; with divided ones use verl (runs/)"]
    writes, learns = rl_seconds(shapes, command)
    return [
        *lines,
        f"RL: {writes + learns:.0f} s a round of {command.rollouts} rollouts x {command.turns} turns "
        f"({writes:.0f} s writing, {learns:.0f} s learning, the tool not counted)",
    ]


ASSUMED = (
    "AdamW with float32 gradients and moments; full training keeps float32 weights and computes in --dtype",
    "activations counted for this module and attention that keeps no T x T scores but a mask",
    "every conversation as long as --max-tokens for memory, and of one picture for time",
    "keys and values of all texts written side by side; other memory as the allocator spares it (8 %)",
    "counted on a CPU and never measured on a GPU; FSDP was not run; the share of the peak is a guess",
)


def _device(command: TrainPlan) -> str:
    return (
        f"{command.tflops:g} TFLOPS and {command.bandwidth:g} TB/s a GPU, of which training reaches "
        f"{command.utilisation:.0%}; {STEP_SECONDS * 1000:.0f} ms a decoding step at least"
    )


def _fix(shapes: Shapes, options: TrainPlan, size: float) -> str:
    """The first change that fits, for both stages and for SFT alone; else what it takes."""
    saving: list[dict[str, Any]] = [
        {"gradient_checkpointing": True},
        {"micro_batch": 1},
        {"gradient_checkpointing": True, "micro_batch": 1},
    ]
    lora = {"lora_rank": options.lora_rank or 8}
    whole = [*saving, *(lora | change for change in saving)] if options.sharding == "none" else []
    divided = [] if options.lora_rank else [{"sharding": "fsdp"} | change for change in ({}, *saving)]
    found, least = [], math.inf
    for what, tries in (("", whole), ("SFT alone ", divided)):
        for change in tries:
            tried = replace(options, **change)
            stages: tuple[Stage, ...] = ("sft",) if tried.sharding == "fsdp" else ("sft", "rl")
            needed = max(sum(memory(shapes, tried, stage).values()) for stage in stages) / GB
            least = min(least, needed)
            if needed <= size * (1 - SPARE):
                new = {name: value for name, value in change.items() if getattr(options, name) != value}
                found.append(f"{what}needs {needed:.0f} GB with {_flags(new)}")
                break
    card = math.ceil(least / (1 - SPARE))
    return (
        "; ".join(found) or f"take GPUs of {card} GB, or an engine that divides the model (runs/verl_7b.sh)"
    )


def _flags(change: dict[str, Any]) -> str:
    names = ((f"--{name.replace('_', '-')}", value) for name, value in change.items())
    return " ".join(name if value is True else f"{name} {value}" for name, value in names)
