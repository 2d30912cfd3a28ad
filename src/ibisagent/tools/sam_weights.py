"""Reading the weights of the SAM family: checkpoints, folders, strict renaming.

Everything that a user can get wrong here is an InputError with a fix; nothing in a file is ever
executed (`torch.load(weights_only=True)`, no remote code).
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from ibisagent.errors import InputError

StateDict = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=PreTrainedModel)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHECKPOINT_SUFFIXES = {".pt", ".pth"}


# --- files and folders ------------------------------------------------------------------------


def is_checkpoint(path: str) -> bool:
    """True for a file, False for a folder or a hub id. Raises InputError for neither."""
    place = Path(path)
    if place.is_file():
        return True
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise InputError(
                "a folder of weights holds a config.json and safetensors files (Hugging Face layout)",
                f"{place.name} without config.json",
                "name the checkpoint file itself if it is in the original layout",
            )
        return False
    if _HUB_ID.fullmatch(path) and place.suffix not in _CHECKPOINT_SUFFIXES:
        return False
    raise InputError(
        "weights are a checkpoint file, a folder in Hugging Face layout or a hub id (OWNER/NAME)",
        f"{place.name or path!r}, which is none of these",
        "check the path",
    )


def read_checkpoint(path: str) -> StateDict:
    """Tensors of an original-layout checkpoint: `{"model": state_dict}` or the bare state_dict.

    Raises InputError if the file is truncated, holds anything that would have to be executed, or
    holds no tensors.
    """
    name = Path(path).name
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "a checkpoint may hold only tensors and plain containers",
            f"{name}, which asks for code to be run or is no checkpoint",
            'save it again as torch.save({"model": model.state_dict()}, FILE)',
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            "a checkpoint must be readable to its end",
            f"{name}, which is damaged or truncated",
            "copy or download it again and compare its size",
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise InputError('a checkpoint holds {"model": state_dict} or a state_dict', f"{name} without one")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if len(tensors) != len(content):
        odd = next(key for key, value in content.items() if not isinstance(value, torch.Tensor))
        raise InputError("every entry of a state_dict is a tensor", f"{odd!r} in {name}")
    return tensors


def read_config(path: str, model_types: Sequence[str]) -> dict[str, Any]:
    """config.json of a folder or hub id. Raises InputError unless its model_type is one of these."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise InputError(
            "the weights' config.json must be readable",
            Path(path).name if Path(path).exists() else path,
            "check the folder, or download the model once where there is a network and name its folder",
        ) from error
    if config.get("model_type") not in model_types:
        raise InputError(
            f"the folder's model_type must be {' or '.join(model_types)}",
            config.get("model_type"),
            "choose the tool that fits these weights",
        )
    return config


def load_folder(
    model_class: type[Model], path: str, config: PreTrainedConfig, ignored: re.Pattern[str]
) -> Model:
    """A transformers model in float32 from a folder or hub id, with no weight missing or left over.

    `ignored`: names (at their start) that may be left over. Raises InputError.
    """
    try:
        loaded: Any = model_class.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, like all other differences
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            "the folder's weights must be complete and fit its config.json",
            str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            "copy or download the folder again",
        ) from error
    model, report = loaded
    for name, here, expected in report["mismatched_keys"]:
        _refuse_shape(name, tuple(here), tuple(expected))
    left_over = [key for key in report["unexpected_keys"] if not ignored.match(key)]
    _refuse_differences(set(report["missing_keys"]), set(left_over), "the folder")
    return cast(Model, model)


def build_config(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """A transformers config from plain values. Raises InputError where they do not fit."""
    try:
        return config_class.from_dict(dict(values))
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(
            "config.json must describe a model of its own model_type",
            str(error).strip().splitlines()[0][:200],
            "copy or download the folder again",
        ) from error


# --- from one layout to another ---------------------------------------------------------------


def rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """`name` after every (pattern, replacement) of `rules`, in order, as `re.sub` does it."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def fill_model(model_class: type[Model], config: PreTrainedConfig, state: StateDict) -> Model:
    """A transformers model of `config` with exactly the tensors of `state`, in float32.

    Raises InputError if a name is missing or left over or a shape differs.
    """
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse_differences(set(expected) - set(state), set(state) - set(expected), "the checkpoint")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            _refuse_shape(name, tuple(state[name].shape), shape)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model


def _refuse_shape(name: str, here: tuple[int, ...], expected: tuple[int, ...]) -> NoReturn:
    raise InputError(
        "every weight must have the shape that its architecture asks for",
        f"{here} for {name}, not {expected}",
        "check that the weights are unchanged and belong to their config.json",
    )


def _refuse_differences(missing: set[str], left_over: set[str], what: str) -> None:
    if not missing and not left_over:
        return
    parts = []
    for label, names in (("missing", missing), ("unknown", left_over)):
        if names:
            some = ", ".join(sorted(names)[:3])
            parts.append(f"{len(names)} {label} ({some}{', ...' if len(names) > 3 else ''})")
    raise InputError(
        f"{what} must hold every weight of the image model and no unknown one",
        " and ".join(parts),
        "check that kind and file belong together (sam2, medsam2, sam, medsam)",
    )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights, sorted by name; the same for every layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
