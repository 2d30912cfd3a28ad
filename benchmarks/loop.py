"""What the loop itself costs: time outside the models, and what batching gains.

    python benchmarks/loop.py --data ../shared/data --episodes 16

Prints the share of an episode's wall time that is neither policy nor tool forward pass (bar: at
most 5 %) and the speed of one batch of episodes against the same episodes one after the other
(bar: at least 2x), both with the embedded pair, median over repeats run alternately.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from ibisagent.agent import Agent
from ibisagent.datasets.biomedparse import data_root
from ibisagent.datasets.detect import open_part
from ibisagent.rollout import collect, rollout
from ibisagent.types import Sample


class Stopwatch:
    """Counts the seconds spent in some methods of an object."""

    def __init__(self, target: object, methods: Sequence[str]) -> None:
        self.seconds = 0.0
        for name in methods:
            setattr(target, name, self._timed(getattr(target, name)))

    def _timed(self, method):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def run(agent: Agent, samples: list[Sample], batch_size: int) -> float:
    """Wall seconds for all episodes; the tool's cache is emptied first by loading a fresh tool."""
    began = time.perf_counter()
    for _ in collect(rollout(samples, agent.policy, agent.tool, agent.settings, batch_size=batch_size)):
        pass
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: IBISAGENT_DATA")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples = list(islice(open_part(data_root(options.data), "train"), 0, options.episodes * 12, 12))

    agent = Agent.load()
    run(agent, samples[:2], 1)
    shares, single, batched = [], [], []
    for _ in range(options.repeats):
        fresh = Agent.load()
        single.append(run(fresh, samples, 1))
        fresh = Agent.load()
        batched.append(run(fresh, samples, options.episodes))
        fresh = Agent.load()
        watches = [
            Stopwatch(fresh.policy, ["act"]),
            Stopwatch(fresh.tool, ["set_image", "predict", "propose"]),
        ]
        total = run(fresh, samples, 1)
        shares.append(1 - sum(watch.seconds for watch in watches) / total)
    gain = statistics.median(one / many for one, many in zip(single, batched, strict=True))
    print(f"{len(samples)} episodes on {options.threads} threads, {options.repeats} repeats, medians")
    print(f"outside policy and tool: {100 * statistics.median(shares):.1f} % of an episode")
    print(f"one after the other: {statistics.median(single) / len(samples):.3f} s an episode")
    each = statistics.median(batched) / len(samples)
    print(f"batch of {options.episodes}: {each:.3f} s an episode, {gain:.2f}x")


if __name__ == "__main__":
    main()
