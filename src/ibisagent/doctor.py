"""What runs on this machine and, where something does not, why and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ibisagent.errors import IbisError, install
from ibisagent.types import Click, Picture, ToolRequest

EXTRAS = {  # what pyproject.toml names -> its packages, and what for
    "chat": (("httpx",), "policies at an endpoint"),
    "lora": (("peft",), "LoRA adapters"),
    "data": (("datasets", "pyarrow"), "Hugging Face data sets, parquet for verl"),
    "train": (("accelerate", "tensorboard"), "train sft, train rl"),
    "ray": (("ray",), "--engine ray"),
}


def doctor(screen: Console) -> int:
    """Print one line per capability. Exit code 0 where the main job runs, else 1."""
    table = Table("what", "state", "detail", title="ibisagent doctor")
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: platform.python_version(),
        "torch": _torch,
        "embedded tool": _embedded_tool,
        "embedded policy": _embedded_policy,
        "classical tool": lambda: "no weights needed",
        "qwen, sam2, sam": lambda: (
            f"transformers {importlib.metadata.version('transformers')}; bring weights"
        ),
    }
    healthy = True
    for name, check in checks.items():
        try:
            table.add_row(name, "[green]ok[/]", escape(check()))
        except (IbisError, ImportError, OSError) as error:
            healthy = False
            table.add_row(name, "[red]no[/]", escape(str(error)))
    for extra, (modules, purpose) in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        state = "[yellow]not installed[/]" if absent else "[green]ok[/]"
        detail = f"{purpose}; without {', '.join(absent)}; {install(extra)}" if absent else purpose
        table.add_row(f"extra {extra}", state, escape(detail))
    table.add_row("devices", *_devices())
    screen.print(table)
    return 0 if healthy else 1


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _devices() -> tuple[str, str]:
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    why = "" if len(found) > 1 else " (no CUDA or MPS device: large policies will be slow)"
    return "[green]ok[/]", escape(", ".join(found) + why)


def _embedded_tool() -> str:
    from ibisagent.tools.embedded import EmbeddedTool

    tool = EmbeddedTool.load()
    picture = Picture(np.full((64, 64, 3), 90, np.uint8))
    began = time.perf_counter()
    [reply] = tool.predict([ToolRequest(picture, (Click(0.5, 0.5, True),))])
    if reply.error is not None:
        raise IbisError("the embedded tool answers a click", reply.error)
    return f"one click on a test picture in {time.perf_counter() - began:.2f} s"


def _embedded_policy() -> str:
    from ibisagent.policies.embedded import EmbeddedPolicy

    policy = EmbeddedPolicy.load()
    return f"loaded; {policy.supports('Find the liver').target} is one of its targets"
