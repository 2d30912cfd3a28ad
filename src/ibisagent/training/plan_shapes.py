"""Sizes of Qwen2.5-VL models, and how many weights follow from them.

The table holds the numbers of the released config.json files (Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct).
The counts that follow are those of the released weights: 3,754,622,976, 8,292,166,656, 33,452,718,336 and
73,410,777,344.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibisagent.errors import InputError


@dataclass(frozen=True)
class Shapes:
    """What memory and time follow from."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool  # input embeddings serve as output head too
    vision_hidden: int = 1280
    vision_intermediate: int = 3420
    vision_layers: int = 32
    patch: int = 14  # pixels a side
    merge: int = 2  # patches a side that make one token

    @property
    def kv(self) -> int:
        """Width of keys, and of values, in one layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the seven linear layers of one decoder layer."""
        h, i = self.hidden, self.intermediate
        return ((h, h), (h, self.kv), (h, self.kv), (h, h), (h, i), (h, i), (i, h))

    @property
    def layer(self) -> int:
        """Weights of one decoder layer: linear layers, biases of q, k and v, two norms."""
        return sum(a * b for a, b in self.linears) + self.hidden + 2 * self.kv + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def language(self) -> int:
        """All weights but those of the vision tower."""
        return self.layers * self.layer + self.hidden + self.embeddings * (1 if self.tied else 2)

    @property
    def vision_block(self) -> int:
        h, i = self.vision_hidden, self.vision_intermediate
        return 2 * h + 3 * h * h + 3 * h + h * h + h + 3 * h * i + 2 * i + h

    @property
    def vision(self) -> int:
        """Patch embedding (three colours, two frames), blocks, merger."""
        h, wide = self.vision_hidden, self.vision_hidden * self.merge**2
        merger = h + wide * wide + wide + wide * self.hidden + self.hidden
        return 3 * 2 * self.patch**2 * h + self.vision_layers * self.vision_block + merger

    @property
    def total(self) -> int:
        return self.language + self.vision

    def lora(self, rank: int, vision: bool) -> int:
        """Weights of an adapter on every linear layer of the language model, and of the vision tower."""
        pairs = [pair for pair in self.linears for _ in range(self.layers)]
        if vision:
            h, i, wide = self.vision_hidden, self.vision_intermediate, self.vision_hidden * self.merge**2
            block = [(h, 3 * h), (h, h), (h, i), (h, i), (i, h)]
            pairs += block * self.vision_layers + [(wide, wide), (wide, self.hidden)]
        return rank * sum(a + b for a, b in pairs)

    def picture_tokens(self, pixels: int) -> int:
        """Tokens of a picture of so many pixels, at most."""
        return pixels // (self.patch * self.merge) ** 2


KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Shapes(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shapes(3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen2.5-VL-32B-Instruct": Shapes(5120, 27648, 64, 40, 8, 152064, False, vision_intermediate=3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": Shapes(8192, 29568, 80, 64, 8, 152064, False, vision_intermediate=3456),
}


def shapes_of(model: str) -> Shapes:
    """By name, or from the config.json of a local folder. Raises InputError."""
    if model in KNOWN:
        return KNOWN[model]
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():
        raise InputError(
            "--model is a known name or a folder with config.json", model, f"known: {', '.join(KNOWN)}"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return _from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "config.json is that of a Qwen2.5-VL checkpoint", f"{type(error).__name__}: {error}"
        ) from None


def _from_config(config: Mapping[str, Any]) -> Shapes:
    text, vision = config.get("text_config", config), config["vision_config"]
    return Shapes(
        hidden=int(text["hidden_size"]),
        intermediate=int(text["intermediate_size"]),
        layers=int(text["num_hidden_layers"]),
        heads=int(text["num_attention_heads"]),
        kv_heads=int(text["num_key_value_heads"]),
        vocabulary=int(text["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision_hidden=int(vision["hidden_size"]),
        vision_intermediate=int(vision["intermediate_size"]),
        vision_layers=int(vision["depth"]),
        patch=int(vision.get("patch_size", 14)),
        merge=int(vision.get("spatial_merge_size", 2)),
    )
