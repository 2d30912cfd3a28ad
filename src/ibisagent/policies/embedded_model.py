"""The network of the embedded policy: a painted picture and a target's name in, text out.

It sees what a person at the screen sees: the picture with the mask painted in green, never the
mask itself. Three parts:

- the encoder of the embedded tool (`tools.embedded_model.Encoder`, own weights) with one map per
  known target;
- a small head, steered by the target's name, that maps four things at stride 4: the target, what
  is painted, what the mask misses and what it wrongly includes;
- a transformer decoder that reads all this and writes the text word by word. Where a text holds a
  point, the point is the cell of the stride-4 grid that fits the decoder's state best, so that
  what the network sees becomes digits without loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ibisagent.policies.embedded_words import GRID, SIDE
from ibisagent.tools.embedded_model import Encoder
from ibisagent.types import Laterality, Pixels

LONGEST = 56  # tokens of a text
MAPS = ("target", "painted", "missed", "included")
_HEAD = 48  # channels of the head
_WIDTH, _LAYERS, _HEADS = 160, 3, 4  # of the decoder


@dataclass(frozen=True)
class Seen:
    """What the network sees in B observations."""

    names: Tensor  # B x targets x 64 x 64, logits of every known target
    maps: Tensor  # B x 4 x 64 x 64, logits in the order of MAPS
    present: Tensor  # B, logit: the target is in the picture
    points: Tensor  # B x 48 x 64 x 64, what the pointer looks at
    memory: Tensor  # B x (256 + 2) x width, what the text decoder reads
    glance: Tensor  # B x width, where each text begins: what was asked, and the maps in figures


class _Steered(nn.Module):
    """Residual block of two 3x3 convolutions; GroupNorm, scaled and shifted by a condition."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(width // 8, width), nn.GroupNorm(width // 8, width)
        self.steer = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.steer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.steer(condition)[:, :, None, None].chunk(2, dim=1)
        y = self.first(F.relu(torch.addcmul(shift, self.norm1(x), 1 + scale)))
        return x + self.second(F.relu(self.norm2(y)))


class _Layer(nn.Module):
    """Pre-norm transformer layer: own past, then the picture, then a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(_WIDTH) for _ in range(3))
        self.qkv, self.out1 = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.query, self.out2 = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.key_value = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.wide, self.narrow = nn.Linear(_WIDTH, 2 * _WIDTH), nn.Linear(2 * _WIDTH, _WIDTH)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return _heads(key), _heads(value)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows = len(memory[0])  # those of `x` beyond are padding, for the linear layers alone
        query, key, value = (_heads(part)[:rows] for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None and x.shape[1] > 1)
        x = x + self.out1(_joined(mixed, len(x)))
        seen = F.scaled_dot_product_attention(_heads(self.query(self.norm2(x)))[:rows], *memory)
        x = x + self.out2(_joined(seen, len(x)))
        return x + self.narrow(F.relu(self.wide(self.norm3(x)))), (key, value)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (_HEADS, -1)).transpose(1, 2)


def _joined(x: Tensor, rows: int) -> Tensor:
    joined = x.transpose(1, 2).flatten(2)
    return joined if len(joined) == rows else F.pad(joined, (0, 0, 0, 0, 0, rows - len(joined)))


FIGURES = 15  # of `evidence`


def evidence(maps: Tensor, valid: Tensor) -> Tensor:
    """B x FIGURES from the maps' logits: areas, overlap, error shares, peaks, where the target is.

    `valid` B x 1 x h x w is the share of each cell that the picture covers; the target's centre and
    area are relative to that part.
    """
    maps = maps.float()
    p = torch.sigmoid(maps)
    target, painted, missed, included = (p[:, index] for index in range(4))
    area = [part.mean((1, 2)) + 1e-5 for part in (target, painted, missed, included)]
    both = (target * painted).mean((1, 2))
    overlap = (both + 1e-5) / (area[0] + area[1] - both + 1e-5)
    peaks = maps.amax((2, 3)) / 4
    shares = [torch.log(area[2] / area[0]), torch.log(area[3] / area[0])]
    sure = target * target * valid[:, 0]
    total = sure.sum((1, 2)) + 1e-5
    where = torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype) + 0.5
    width, height = valid[:, 0].amax(1).sum(1), valid[:, 0].amax(2).sum(1)
    x, y = (sure.sum(1) * where).sum(1) / total / width, (sure.sum(2) * where).sum(1) / total / height
    part = torch.log(area[0] / valid.mean((1, 2, 3)))
    figures = [overlap, overlap * overlap, *[torch.log(a) for a in area], *shares, *peaks.unbind(1)]
    return torch.stack([*figures, 4 * x - 2, 4 * y - 2, part], dim=1)


class EmbeddedPolicyNetwork(nn.Module):
    """Picture and target to maps and text. `targets` and `words` are the sizes of both lists."""

    def __init__(self, targets: int, words: int) -> None:
        super().__init__()
        self.encoder = Encoder(targets)
        self.target = nn.Embedding(targets, 64)
        nn.init.normal_(self.target.weight, std=0.3)
        self.enter = nn.Conv2d(32 + 2, _HEAD, 3, padding=1)
        self.painted = nn.Conv2d(32, 1, 1)
        self.block8, self.block4 = _Steered(48, 64), _Steered(_HEAD, 64)
        self.join8 = nn.Conv2d(48, _HEAD, 1)
        self.maps = nn.Conv2d(_HEAD, 4, 3, padding=1)
        self.present = nn.Sequential(nn.Linear(96 + 64 + FIGURES, 64), nn.ReLU(), nn.Linear(64, 1))

        self.to_memory = nn.Linear(96 + _HEAD + 8, _WIDTH)
        self.places = nn.Parameter(torch.randn(256, _WIDTH) * 0.02)
        self.figures = nn.Sequential(
            nn.Linear(FIGURES + 1 + 64, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 2 * _WIDTH)
        )
        self.words = nn.Embedding(words, _WIDTH)
        nn.init.normal_(self.words.weight, std=0.05)
        self.start, self.hint = nn.Linear(64, _WIDTH), nn.Linear(FIGURES + 1, _WIDTH)
        nn.init.zeros_(self.hint.weight)
        nn.init.zeros_(self.hint.bias)
        self.order = nn.Parameter(torch.randn(LONGEST + 1, _WIDTH) * 0.02)
        self.layers = nn.ModuleList([_Layer() for _ in range(_LAYERS)])
        self.last = nn.LayerNorm(_WIDTH)
        self.point_query = nn.Linear(_WIDTH, _HEAD)
        self.point_gates = nn.Linear(_WIDTH, 4)
        nn.init.zeros_(self.point_gates.weight)
        with torch.no_grad():
            self.point_gates.bias.copy_(torch.tensor([0.3, 0.0, 0.3, 0.3]))

    def see(self, image: Tensor, target: Tensor) -> Seen:
        """Look: `image` B x 5 x 256 x 256 (see `to_square`), `target` B int64."""
        features = self.encoder(image)
        name = self.target(target)
        own = features.names[torch.arange(len(target)), target][:, None]
        painted = self.painted(features.stride4)
        hints = torch.tanh(torch.cat([own, painted], dim=1) / 4)
        x8 = self.block8(features.stride8, name)
        x = self.enter(torch.cat([features.stride4, hints], dim=1))
        x = x + F.interpolate(self.join8(x8), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.block4(x, name)
        maps = self.maps(F.relu(x)) + torch.cat(
            [own, painted, torch.zeros_like(painted).repeat(1, 2, 1, 1)], dim=1
        )
        figures = evidence(maps.detach(), F.avg_pool2d(image[:, 3:4], 4))
        deep = features.stride16.mean((2, 3))
        present = self.present(torch.cat([deep, name, figures], dim=1))[:, 0]
        p = torch.sigmoid(maps.detach())
        coarse = [features.stride16, F.avg_pool2d(x, 4), F.avg_pool2d(p, 4), F.max_pool2d(p, 4)]
        coarse_map = torch.cat(coarse, dim=1)
        memory = self.to_memory(coarse_map.flatten(2).transpose(1, 2)) + self._places(coarse_map.shape[-1])
        facts = self.figures(torch.cat([figures, present.detach()[:, None], name], dim=1))
        memory = torch.cat([memory, facts.unflatten(1, (2, -1))], dim=1)
        glance = self.start(name) + self.hint(torch.cat([figures, present.detach()[:, None]], dim=1))
        return Seen(features.names, maps, present, x, memory, glance)

    def _places(self, grid: int) -> Tensor:
        """Positions of the coarse grid; training begins on smaller squares."""
        if grid == 16:
            return self.places
        square = self.places.T.reshape(1, _WIDTH, 16, 16)
        smaller = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=False)
        return smaller.flatten(2)[0].T

    def write(self, seen: Seen, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing: `tokens` B x T int64 to next-word logits (B x T x words) and states.

        Position t holds what is predicted for token t from the tokens before it.
        """
        x = (
            torch.cat([seen.glance[:, None], self.words(tokens[:, :-1])], dim=1)
            + self.order[: tokens.shape[1]]
        )
        for layer, read in zip(self.layers, self.recall(seen.memory), strict=True):
            x, _ = layer(x, read, None)
        states = self.last(x)
        return F.linear(states, self.words.weight), states

    def point(self, seen: Seen, states: Tensor) -> Tensor:
        """B x 4096 logits over cells, from the states (B x width) that write the points."""
        query = self.point_query(states)
        likeness = torch.einsum("bc,bchw->bhw", query, seen.points) / _HEAD**0.5
        gates = self.point_gates(states)
        biased = torch.einsum("bk,bkhw->bhw", gates, seen.maps.detach().clamp(-8, 8))
        return (likeness + biased).flatten(1)

    def recall(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of pictures (`Seen.memory`), once per text."""
        return [cast(_Layer, layer).read(memory) for layer in self.layers]

    def step(
        self,
        memory: list[tuple[Tensor, Tensor]],
        past: list[tuple[Tensor, Tensor]] | None,
        last: Tensor,
        position: int,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """One more word: logits (B x words), states (B x width) and the grown past.

        `last` is `Seen.glance` (B x width) at position 0, then the words just written (B int64).
        `memory` may hold fewer rows than `last`; what comes out of the rows beyond means nothing.
        """
        x = (last if position == 0 else self.words(last))[:, None] + self.order[position]
        grown = []
        for index, layer in enumerate(self.layers):
            x, kept = layer(x, memory[index], past[index] if past else None)
            grown.append(kept)
        state = self.last(x[:, 0])
        return F.linear(state, self.words.weight), state, grown


def to_square(image: Pixels, laterality: Laterality) -> NDArray[np.float32]:
    """An observation's image (uint8 h x w x 3, longest side 256) as 5 x 256 x 256 for `see`.

    RGB less its mean over its spread, cut to [-4, 4]; a plane that is 1 where the image is, and one
    that is the same if its sides are known. The image lies at the top left, the rest is 0.
    """
    height, width = image.shape[:2]
    result = np.zeros((5, SIDE, SIDE), np.float32)
    values = image.transpose(2, 0, 1).astype(np.float32)
    result[:3, :height, :width] = np.clip((values - values.mean()) / (values.std() + 8.0), -4, 4)
    result[3, :height, :width] = 1.0
    result[4, :height, :width] = laterality == "known"
    return result


def allowed_cells(rows: Tensor, columns: Tensor) -> Tensor:
    """B x 4096 bool: cells that the observation covers, from its rows and columns of cells."""
    index = torch.arange(GRID, device=rows.device)
    inside = (index < rows[:, None])[:, :, None] & (index < columns[:, None])[:, None, :]
    return inside.flatten(1)
