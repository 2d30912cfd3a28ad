"""Where and in which numbers models compute: one rule for policies, tools and training."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ibisagent.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
_SHORT = ("out of memory", "allocate memory", "not enough memory")  # what the devices' own errors say


def check_names(device: str, dtype: str) -> None:
    """Raise InputError for words that name no device or dtype anywhere; PyTorch is not needed."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise InputError("the device is auto, cpu, cuda, cuda:N or mps", repr(device), "write --device auto")
    if dtype not in ("auto", *DTYPES):
        raise InputError("the dtype is auto, float32, bfloat16 or float16", repr(dtype), "write --dtype auto")


def pick_device(device: str) -> torch.device:
    """The device for `auto` (CUDA, else MPS, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises InputError for another word or a device that is not here.
    """
    import torch

    check_names(device, "auto")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cards else "mps" if mps else "cpu")
    chosen = torch.device(device)
    here = {"cpu": True, "mps": mps, "cuda": (chosen.index or 0) < cards}
    if not here[chosen.type]:
        raise InputError(
            "the device asked for must be here",
            f"{device} with PyTorch {torch.__version__}",
            "write --device auto or --device cpu, or install a PyTorch build for it",
        )
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on CUDA, float32 elsewhere. Raises InputError for an unknown name."""
    import torch

    check_names("auto", dtype)
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. Each device has its own; only CUDA's has a class."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SHORT)
