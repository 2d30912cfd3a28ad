"""What the trainers ask of a policy: log-probabilities of texts, with gradients.

Supervised training and reinforcement learning are written once, against `Trainable`; the embedded
policy (`training/embedded.py`) and every Qwen2.5-VL-layout checkpoint (`training/qwen.py`) are
trained by the same two files. Nothing here knows about rewards or about processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ibisagent.types import Observation, Policy


@dataclass(frozen=True)
class Written:
    """One policy text that is trained."""

    text: str
    token_ids: tuple[int, ...] | None = None  # as they were sampled, end token included; None: from the text
    weight: float | None = 1.0  # reinforcement learning: the advantage. None: only read, never trained


@dataclass(frozen=True)
class Example:
    """A conversation and the policy texts in it.

    With history `none` there is one text. Otherwise `observation.messages` holds the earlier texts
    as assistant messages, and `texts` holds an entry for each of them in order, then one for the
    text that answers the observation. Earlier texts may be there only to be read (weight None).
    """

    observation: Observation
    texts: tuple[Written, ...]  # at least one


@dataclass(frozen=True)
class Collated:
    """Examples as tensors, on the module's device."""

    inputs: dict[str, Tensor]  # for `Trainable.module`
    mask: Tensor  # bool B x T: tokens of texts that are trained, end token included
    weights: Tensor  # float B x T: `Written.weight` of the text that a token belongs to; 0 elsewhere


class Trainable(Protocol):
    """A policy whose weights can be moved.

    `module(**inputs)` gives float32 B x T natural log-probabilities of the tokens in `mask` (any
    value elsewhere), under the very distribution that `policy` was loaded to sample from (a greedy one:
    at temperature 1). No dropout and no moving statistics: the same weights always give the same values.
    """

    reads_history: bool  # whether earlier texts of a conversation change what it writes

    @property
    def policy(self) -> Policy:
        """Writes texts with the weights as of the last `refresh`."""
        ...

    @property
    def module(self) -> nn.Module:
        """Its parameters that require gradients are trained."""
        ...

    def problem(self, example: Example) -> str | None:
        """Why an example cannot be trained, in a few words that group alike cases; None where it can."""
        ...

    def collate(self, examples: Sequence[Example]) -> Collated:
        """Tensors of a micro-batch. Raises InputError for what `problem` would have named."""
        ...

    def refresh(self) -> None:
        """Let `policy` write with the weights as they are now; call after every optimiser step."""
        ...

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the policy as its loader reads it (`embedded:FOLDER`, `qwen:FOLDER`).

        `state`: the module's weights where they lie in shards and had to be gathered.
        """
        ...
