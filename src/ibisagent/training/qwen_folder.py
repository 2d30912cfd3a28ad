"""Qwen2.5-VL checkpoints as folders: writing one whole, and `ibisagent train merge`.

Only weights change in training; so config, tokenizer, template, image processor and sampling
defaults are those of the checkpoint that was trained, letter by letter but for the dtype: a config
as today's transformers writes it has lost the rotary settings for older programs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ibisagent.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

BESIDE = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


@dataclass(frozen=True)
class TrainMerge:
    """Write a checkpoint with a LoRA adapter worked into its weights."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """folder or hub id in Qwen2.5-VL layout"""
    adapter: Annotated[str, tyro.conf.Positional]
    """folder or hub id of an adapter that was trained on it"""
    out: Annotated[Path, tyro.conf.Positional]
    """new folder, which `qwen:FOLDER` loads"""
    dtype: str = "stored"
    """of the new weights: stored (as the checkpoint has them), float32, bfloat16 or float16"""


def run(command: TrainMerge) -> int:
    """Merge; returns the exit code. Raises InputError."""
    merge(command.checkpoint, command.adapter, command.out, command.dtype)
    print(f"checkpoint: {command.out}")
    return 0


def merge(place: str, adapter: str, out: Path, dtype: str = "stored") -> None:
    """Work an adapter into the weights of its checkpoint, on the CPU. `out` must not hold a checkpoint.

    Raises InputError where the two do not fit or `out` is taken, MissingExtraError without peft.
    """
    import torch

    from ibisagent.devices import pick_dtype
    from ibisagent.policies.qwen_checkpoint import check_checkpoint, load_adapter, load_checkpoint

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("a merged checkpoint is written into a new folder", out.name, "name another")
    cpu = torch.device("cpu")
    chosen = _stored_dtype(check_checkpoint(place)) if dtype == "stored" else pick_dtype(dtype, cpu)
    model, _ = load_checkpoint(place, cpu, chosen)
    wrapped: Any = load_adapter(model, adapter)
    save_plain(wrapped.merge_and_unload(safe_merge=True), place, out, chosen)


def _stored_dtype(source: str) -> torch.dtype:
    """As config.json says; float32 where it does not."""
    import torch
    from transformers import Qwen2_5_VLConfig

    stored = Qwen2_5_VLConfig.from_pretrained(source).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def save_plain(
    model: Qwen2_5_VLForConditionalGeneration,
    source: str,
    folder: Path,
    dtype: torch.dtype,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights as `dtype`, config and all that belongs beside them; what was there is replaced.

    source: the folder or hub id that `model` came from. state: the weights where `model` does not
    hold them whole.
    """
    weights = model.state_dict() if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        old.unlink()  # shards of an earlier checkpoint would be left beside fewer new ones
    model.save_pretrained(folder, state_dict={name: weights[name].to(dtype) for name in weights})
    for name in BESIDE:
        if (found := _beside(source, name)) is not None:
            shutil.copyfile(found, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _beside(source: str, name: str) -> Path | None:
    """A file of a local checkpoint, or of one in the hub's cache; None where there is none."""
    if Path(source).expanduser().is_dir():
        file = Path(source).expanduser() / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, name)
    return Path(cached) if isinstance(cached, str) else None
