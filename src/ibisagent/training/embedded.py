"""The embedded policy as something to train: log-probabilities of its words and points.

A token is a word, or a point: then its probability is that of the word `<point>` times that of the
cell. All shifts of sampling (calibration, patience, Undo, cells outside the picture) are part of
the distribution, so what is trained is what is deployed. BatchNorm keeps its statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ibisagent.errors import InputError
from ibisagent.policies.embedded import WEIGHTS, EmbeddedPolicy, looks_of, row_of
from ibisagent.policies.embedded_model import (
    LONGEST,
    Seen,
    allowed_cells,
    to_square,
)
from ibisagent.policies.embedded_words import POINT_ENTRY, SIDE, cells_inside
from ibisagent.targets import understand
from ibisagent.tools.embedded_model import Features
from ibisagent.training.trainable import Collated, Example


class WordLogProbs(nn.Module):
    """Pictures, targets and tokens to the tokens' log-probabilities; see `EmbeddedTrainable.collate`."""

    def __init__(self, policy: EmbeddedPolicy) -> None:
        super().__init__()
        self.network = policy.network
        self.policy = policy
        self.temperature = policy.temperature or 1.0

    def train(self, mode: bool = True) -> WordLogProbs:
        """Always as in inference: the log-probabilities must be those that texts were sampled with."""
        super().train(False)
        return self

    def forward(
        self,
        image: Tensor,
        target: Tensor,
        shown: Tensor,
        tokens: Tensor,
        cells: Tensor,
        shifts: Tensor,
        inside: Tensor,
    ) -> Tensor:
        """U x 5 x 256 x 256, U, B (of the U), B x T, B x T (-1: no point), B x 3 x words, B x 4096 to B x T.

        Texts on the same picture share its look: rollouts of one group begin with the same one.
        """
        seen = _rows(self.network.see(image, target), shown)
        logits, states = self.network.write(seen, tokens)
        verdict = torch.zeros_like(logits)
        verdict[:, 1] = shifts[:, 0] + shifts[:, 2] * self.policy.presence_shift(seen.present)[:, None]
        log_probs = torch.log_softmax((logits + verdict + shifts[:, 1:2]) / self.temperature, dim=-1)
        chosen = log_probs.gather(2, tokens[..., None])[..., 0]
        rows, columns = torch.nonzero(cells >= 0, as_tuple=True)
        if len(rows):
            places = self.network.point(_rows(seen, rows), states[rows, columns])
            places = torch.log_softmax(
                places.masked_fill(~inside[rows], -torch.inf) / self.temperature, dim=1
            )
            here = places.gather(1, cells[rows, columns][:, None])[:, 0]
            chosen = chosen.index_put((rows, columns), here, accumulate=True)
        return chosen


class EmbeddedTrainable:
    """`Trainable` of an `EmbeddedPolicy`. It knows no history, so an example has one trained text."""

    reads_history = False

    def __init__(self, policy: EmbeddedPolicy, freeze_vision: bool = False) -> None:
        """`freeze_vision` keeps the encoder as it is."""
        self.policy = policy
        policy.network.requires_grad_(True)
        if freeze_vision:
            policy.network.encoder.requires_grad_(False)
            policy.network.encoder.register_forward_hook(_as_leaves)
        self.module = WordLogProbs(policy)

    def problem(self, example: Example) -> str | None:
        """Why an example cannot be trained, in a few words that group alike cases; None where it can."""
        observation = example.observation
        if understand(observation.instruction).target is None:
            return "an instruction that the embedded policy cannot read"
        if max(observation.image.shape[:2]) > SIDE:
            return f"a picture above {SIDE} pixels"
        if any(text.weight is not None for text in example.texts[:-1]):
            return "several trained texts in one conversation, of which the embedded policy reads none"
        try:
            ids = self._ids(example)
        except KeyError:
            return "words outside the embedded policy's vocabulary"
        if len(ids) > LONGEST:
            return f"a text above {LONGEST} tokens"
        words = [min(token, len(self.policy.words.entries)) for token in ids]
        every = np.append(self.policy.shifts(observation)[1], 0.0)
        if not np.isfinite(every[words]).all():
            return "an Undo after turn 1, which the embedded policy never writes"
        return None

    def collate(self, examples: Sequence[Example]) -> Collated:
        """Tensors of a micro-batch. Raises InputError for what `problem` would have named."""
        for example in examples:
            problem = self.problem(example)
            if problem is not None:
                raise InputError("the embedded policy is trained on texts that it can write", problem)
        ids = [self._ids(example) for example in examples]
        longest = max(map(len, ids))
        shape = (len(examples), longest)
        words = len(self.policy.words.entries)
        tokens, cells = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        mask, weights = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for row, (example, written) in enumerate(zip(examples, ids, strict=True)):
            own = torch.tensor(written)
            tokens[row, : len(own)] = torch.where(own >= words, POINT_ENTRY, own)
            cells[row, : len(own)] = torch.where(own >= words, own - words, -1)
            weight = example.texts[-1].weight
            mask[row, : len(own)] = weight is not None
            weights[row, : len(own)] = weight or 0.0
        seen = [example.observation for example in examples]
        targets = [row_of(understand(item.instruction).target or "", item) for item in seen]
        first, shown = looks_of(list(zip(seen, targets, strict=True)))
        images = torch.from_numpy(
            np.stack([to_square(seen[index].image, seen[index].laterality) for index in first])
        )
        inside = [cells_inside(*item.image.shape[:2]) for item in seen]
        inputs = {
            "image": images.contiguous(memory_format=torch.channels_last),
            "target": torch.tensor([targets[index] for index in first]),
            "shown": torch.tensor(shown),
            "tokens": tokens,
            "cells": cells,
            "shifts": torch.from_numpy(np.stack([np.stack(self.policy.shifts(item)) for item in seen])),
            "inside": allowed_cells(*torch.tensor(inside).unbind(1)),
        }
        return Collated(inputs, mask, weights)

    def refresh(self) -> None:
        """Let `policy` write with the weights as they are now."""
        self.policy.refresh()

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights as `embedded:FOLDER` reads them."""
        if state is not None:
            self.module.load_state_dict(dict(state))
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save(folder / WEIGHTS)

    def _ids(self, example: Example) -> tuple[int, ...]:
        last = example.texts[-1]
        if last.token_ids is not None:
            return last.token_ids
        return tuple(self.policy.tokens_of(last.text, example.observation))


def _rows(seen: Seen, rows: Tensor) -> Seen:
    return Seen(*(getattr(seen, field.name)[rows] for field in fields(Seen)))


def _as_leaves(_: nn.Module, __: object, features: Features) -> Features:
    """torch 2.13 crashes in GroupNorm's backward where a channels-last input needs no gradient."""
    return features.leaves() if torch.is_grad_enabled() else features
