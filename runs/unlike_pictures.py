"""What becomes of proposals for organs on pictures unlike the corpus, to choose weights of the tool by.

    python runs/unlike_pictures.py WEIGHTS [WEIGHTS ...]

Mean IoU over BTCV's validation patients: as they are, mirrored, with organs of other brightness
(tissues.py), and so with bent grey values besides; each with sides assumed, and known. Seeded: all weights
see the same pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from tissues import Grey, retone

from ibisagent.datasets.biomedparse import data_root
from ibisagent.datasets.cases import samples_of
from ibisagent.datasets.detect import open_part
from ibisagent.evaluation.perturb import Mirror
from ibisagent.masks import iou
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Sample, ToolRequest


@dataclass
class Config:
    """Which weights are compared."""

    weights: tyro.conf.Positional[tuple[Path, ...]]  # of the embedded tool
    data: Path | None = None


def bent(grey: Grey, rng: np.random.Generator) -> Grey:
    """Grey values through a curve that need not rise; black stays black."""
    knots = rng.uniform(0, 1, 6)
    knots[0] = 0
    curve = np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, 6), knots)
    return cv2.LUT(grey, (curve * 255).astype(np.uint8))


def kinds_of(samples: list[Sample], rng: np.random.Generator) -> Iterator[tuple[str, list[Sample]]]:
    """The samples of one picture, changed in every way."""
    yield "plain", samples
    yield "mirrored", [Mirror().apply(sample) for sample in samples]
    grey = np.ascontiguousarray(samples[0].picture.pixels[..., 0])
    organs = {s.target or "": s.truth.astype(np.uint8) * 255 for s in samples if s.truth is not None}
    toned = retone(grey, organs, rng)
    for kind, other in (("toned", toned), ("toned and bent", bent(retone(grey, organs, rng), rng))):
        pixels = np.repeat(other[..., None], 3, axis=2)
        yield kind, [replace(s, picture=replace(s.picture, pixels=pixels)) for s in samples]


def proposed(tool: EmbeddedTool, sample: Sample, known: bool) -> float:
    picture = replace(sample.picture, laterality="known" if known else "assumed")
    mask = tool.propose([ToolRequest(picture, instruction=sample.instruction)])[0].mask
    return iou(sample.truth, mask)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(5)
    cases: dict[str, list[Sample]] = {}
    held = open_part(data_root(config.data) / "BTCV", "val")
    for case in held.cases:
        for kind, samples in kinds_of(list(samples_of(case, held.options)), rng):
            cases.setdefault(kind, []).extend(samples)
    for path in config.weights:
        tool = EmbeddedTool.load(path)
        for kind, samples in cases.items():
            line = f"{path.name} {kind:15} {len(samples)} targets: assumed "
            line += f"{np.mean([proposed(tool, sample, known=False) for sample in samples]):.3f}"
            if kind != "mirrored":
                line += f", known {np.mean([proposed(tool, sample, known=True) for sample in samples]):.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
