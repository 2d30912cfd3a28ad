"""What the embedded pair costs on a CPU: a picture, a proposal, a click, a warm episode, the weights.

    python benchmarks/embedded_speed.py --data DATA

Tool: one thread, each picture encoded afresh, then three oracle clicks on it. Episodes: a loaded pair,
one picture at a time, on as many threads as --threads. Exit code 1 where a median misses its bar
(encoding 30 ms, click 10 ms, episode 0.5 s) or the packaged weights pass 20 MB. A busy machine misses
bars that a quiet one meets, so the least of all times is printed too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import tyro

from ibisagent import Agent
from ibisagent.evaluation.cases import plan, samples
from ibisagent.synthesis.clicks import next_click
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Click, Sample, ToolRequest

BARS = {"encoding a picture": 0.030, "a click": 0.010, "an episode": 0.5}  # seconds, medians
MEGABYTES = 20.0


@dataclass
class Config:
    """Settings of the measurement."""

    data: Path
    """folder of the data sets"""
    per_set: int = 4
    """validation pictures of each set"""
    threads: int = 2
    """of the episodes"""


def timed(call: Callable[[], Any], into: list[float]) -> Any:
    """The result of a call whose seconds are added to a list."""
    began = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - began)
    return result


def main(config: Config) -> int:
    """Print all medians; the exit code."""
    planned = plan(config.data, "val", per_set=config.per_set)
    cases = [case for task in planned.tasks for case in samples(task, planned.options)]
    seconds: dict[str, list[float]] = {}
    torch.set_num_threads(1)
    measure_tool(cases, seconds)
    torch.set_num_threads(config.threads)
    agent = Agent.load()
    agent.segment(cases[0].picture, cases[0].instruction)
    for case in cases:
        timed(lambda c=case: agent.segment(c.picture, c.instruction), seconds.setdefault("an episode", []))
    missed = []
    for name, values in seconds.items():
        median, bar = statistics.median(values), BARS.get(name)
        held = "" if bar is None else f", bar {1e3 * bar:.0f} ms {'met' if median <= bar else 'MISSED'}"
        print(f"{name:22} median {1e3 * median:6.1f} ms, least {1e3 * min(values):6.1f} ms{held}")
        missed += [name] if bar is not None and median > bar else []
    weights = list(files("ibisagent").joinpath("weights").iterdir())
    size = sum(len(item.read_bytes()) for item in weights if item.name.endswith(".safetensors")) / 1e6
    print(f"weights {size:.1f} MB, bar {MEGABYTES:.0f} MB {'met' if size <= MEGABYTES else 'MISSED'}")
    return 1 if missed or size > MEGABYTES else 0


def measure_tool(cases: list[Sample], seconds: dict[str, list[float]]) -> None:
    """Encoding, proposing and clicking, a fresh tool for each case so that nothing is remembered."""
    loaded = EmbeddedTool.load()
    encoding, proposing, clicking = (
        seconds.setdefault(name, [])
        for name in ("encoding a picture", "a proposal, second look included", "a click")
    )
    for case in cases:
        tool = EmbeddedTool(loaded.network, "same")
        timed(lambda t=tool, c=case: t.set_image([c.picture]), encoding)
        asked = ToolRequest(case.picture, instruction=case.instruction)
        timed(lambda t=tool, r=asked: t.propose([r]), proposing)
        mask, low, clicks = None, None, ()
        for _ in range(3):
            click: Click | None = next_click(case.truth, mask, clicks)
            if click is None:
                break
            clicks += (click,)
            request = ToolRequest(case.picture, clicks, low_res_logits=low)
            [reply] = timed(lambda t=tool, r=request: t.predict([r]), clicking)
            mask, low = reply.mask, reply.low_res_logits


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Config)))
