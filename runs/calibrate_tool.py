"""Fit the embedded tool's score on validation patients: two numbers in the weights' metadata.

    python runs/calibrate_tool.py --weights TRAINED.safetensors --out NEW.safetensors

The network's own estimate of its IoU is learned on training pictures, where masks are better than
elsewhere. Scale and shift of its logit (Platt scaling with IoU as soft label) are fitted on oracle
clicks, with and without the name, and on proposals for present and absent targets.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors import safe_open
from safetensors.torch import save_file

from ibisagent.datasets.biomedparse import data_root
from ibisagent.datasets.cases import samples_of
from ibisagent.datasets.detect import open_part
from ibisagent.masks import iou
from ibisagent.synthesis.clicks import next_click
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Click, Logits, Sample, ToolReply, ToolRequest


@dataclass
class Config:
    """Settings of one fit."""

    weights: Path
    out: Path
    cases: int = 40  # per set, about
    clicks: int = 8


def logit(probability: float) -> float:
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(clipped / (1 - clipped))


def pairs_of(tool: EmbeddedTool, sample: Sample, config: Config) -> list[tuple[float, float]]:
    """(logit of the score, IoU) of the proposal and of an oracle's clicks without the name."""
    truth = sample.truth
    assert truth is not None

    def pair(reply: ToolReply) -> tuple[float, float]:
        assert reply.mask is not None and reply.score is not None, reply.error
        return logit(reply.score), iou(truth, reply.mask)

    proposal = tool.propose([ToolRequest(sample.picture, instruction=sample.instruction)])[0]
    result = [pair(proposal)]
    mask, low, clicks = None, None, ()
    for _ in range(config.clicks if truth.any() else 0):
        click: Click | None = next_click(truth, mask, clicks)
        if click is None:
            break
        clicks += (click,)
        logits: Logits | None = low
        reply = tool.predict([ToolRequest(sample.picture, clicks, low_res_logits=logits)])[0]
        mask, low = reply.mask, reply.low_res_logits
        result.append(pair(reply))
    return result


def fit(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Scale and shift that minimise the cross-entropy between sigmoid(scale*x + shift) and IoU."""
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x * parameters[0] + parameters[1], y)
        value.backward()
        return value

    optimiser.step(loss)
    scale, shift = parameters.detach().tolist()
    return scale, shift


def main(config: Config) -> None:
    torch.set_num_threads(1)
    tool = EmbeddedTool.load(config.weights)
    tool = EmbeddedTool(tool.network, "uncalibrated")
    held, pairs = open_part(data_root(), "val"), []
    for dataset in sorted({case.dataset for case in held.cases}):
        own = [case for case in held.cases if case.dataset == dataset]
        cases = [sample for case in own for sample in samples_of(case, held.options, absent=True)]
        step = max(1, len(cases) // config.cases)
        for sample in cases[::step]:
            pairs += pairs_of(tool, sample, config)
    scale, shift = fit(pairs)
    with safe_open(str(config.weights), framework="pt") as file:
        facts = file.metadata() | {"calibration": json.dumps([round(scale, 4), round(shift, 4)])}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    partial = config.out.with_suffix(".part")
    save_file(tensors, str(partial), metadata=facts)
    partial.replace(config.out)
    print(f"{len(pairs)} pairs: scale {scale:.3f}, shift {shift:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
