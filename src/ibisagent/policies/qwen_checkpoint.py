"""Checkpoints in Qwen2.5-VL layout: check the files, load weights and adapters.

A checkpoint that lacks a weight, or an adapter that does not fit, is refused: transformers and peft
would go on with random or unused weights. Left out: quantisation, one model over several devices.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ibisagent.errors import InputError, MissingExtraError, install
from ibisagent.policies.qwen_processor import ImageOnlyProcessor, load_processor

if TYPE_CHECKING:
    from peft import PeftModel

MODEL_TYPE = "qwen2_5_vl"
# Released weights and older adapters name the parts as before transformers 4.52; for checkpoints
# transformers renames them itself, for adapters nobody does.
OLD_NAMES = {r"^visual\.": "model.visual.", r"^model\.(?!language_model\.|visual\.)": "model.language_model."}
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)


def load_checkpoint(
    path: str, device: torch.device, dtype: torch.dtype
) -> tuple[Qwen2_5_VLForConditionalGeneration, ImageOnlyProcessor]:
    """Model (evaluation mode) and processor from a folder or hub id. Raises InputError."""
    source = check_checkpoint(path)
    try:
        processor = load_processor(source)
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=pick_attention(device, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            "a checkpoint's files must be whole and fit each other",
            path,
            f"download them again ({_first_line(error)})",
        ) from error
    model, report = loaded
    absent = sorted(report["missing_keys"])
    if absent:
        raise InputError(
            "every weight must come from the checkpoint",
            f"{len(absent)} without a value, such as {absent[0]}",
            "download or merge it again",
        )
    return model.to(device).eval(), processor


def load_adapter(
    model: Qwen2_5_VLForConditionalGeneration, adapter: str, trainable: bool = False
) -> PeftModel:
    """Put a LoRA adapter's layers into `model`, in place and unmerged; what peft wraps around it.

    `trainable`: the adapter's weights are, and no others. Raises InputError where it does not fit,
    MissingExtraError without peft.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("--adapter needs peft", None, install("lora"))
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(adapter)
        config.inference_mode = not trainable
        wrapped = PeftModel(model, config)
        found = wrapped.load_adapter(adapter, "default", is_trainable=trainable, key_mapping=OLD_NAMES)
    except _UNREADABLE as error:
        raise InputError(
            "an adapter is a peft folder that fits the checkpoint",
            adapter,
            f"check both ({_first_line(error)})",
        ) from error
    stray = [*found.missing_keys, *found.unexpected_keys]
    if stray:
        raise InputError(
            "every weight of an adapter must have its place in the checkpoint",
            f"{len(stray)} without one, such as {stray[0]}",
            "use the checkpoint that the adapter was trained on",
        )
    return wrapped


def check_checkpoint(path: str) -> str:
    """What transformers is to load: a folder with everything in it, or a hub id. Raises InputError."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
        raise InputError(
            "qwen: takes a folder or a hub id ORGANISATION/NAME", path, "check the path: no folder is there"
        )
    source = str(folder) if folder.is_dir() else path
    try:
        config, _ = Qwen2_5_VLConfig.get_config_dict(source)
    except OSError as error:
        raise InputError(
            "a checkpoint is a folder here or an id within reach on the hub",
            path,
            "check the spelling, or download it elsewhere, copy the folder here and give its path",
        ) from error
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"config.json must say model_type {MODEL_TYPE}",
            repr(config.get("model_type")),
            "take a Qwen2.5-VL checkpoint, or serve this one and use chat:MODEL@URL",
        )
    return source


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                "a checkpoint folder holds config.json",
                f"the adapter in {folder}",
                f"write --policy qwen:BASE --adapter {folder}, with the checkpoint that it was trained on",
            )
        inside = sorted(found.parent.name for found in folder.glob("*/config.json"))
        raise InputError(
            "a checkpoint folder holds config.json",
            folder,
            f"did you mean its sub-folder {inside[0]}?" if inside else "give the folder with the weights",
        )
    index = folder / "model.safetensors.index.json"
    wanted = ["model.safetensors"]
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "the index must list the weight files", index.name, "download it again"
            ) from error
    absent = [name for name in wanted if not (folder / name).is_file()]
    if absent:
        raise InputError(
            "all weight files must be in the folder",
            f"{len(absent)} of {len(wanted)} absent, first {absent[0]}",
            "finish the download",
        )


def short_name(path: str) -> str:
    """A hub id as it is; of a folder its last part only, since names carry no local paths."""
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def pick_attention(device: torch.device, dtype: torch.dtype) -> str:
    """flash_attention_2 where it is installed and can run, PyTorch's own (`sdpa`) elsewhere."""
    can = device.type == "cuda" and dtype != torch.float32
    return "flash_attention_2" if can and importlib.util.find_spec("flash_attn") else "sdpa"


def config_id(config: Mapping[str, Any]) -> str:
    """Short hash over a model's configuration, without where and in which precision it was loaded."""
    skipped = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items() if key not in skipped}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return hashlib.sha256(json.dumps(plain(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_id(weights: Mapping[str, torch.Tensor], samples: int = 32) -> str:
    """Short hash over names, shapes and `samples` evenly spaced values of every tensor."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        flat = tensor.reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(samples, flat.numel())).long()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
