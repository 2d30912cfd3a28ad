"""How long the whole synthesis takes with one and with two workers, and whether all of it replays.

    OMP_NUM_THREADS=1 python benchmarks/synthesis.py DATA [--limit N] [--tool embedded] [--replay N]

Prints seconds and rate of both runs, their quotient, whether both are equal (all fields but times
and host), and how many trajectories replay to the recorded masks (`--replay 0`: all). Exit code 0
where they are equal and all replay bit-exactly. Time it on a quiet machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import cv2
import torch
import tyro
from synthesis_kill import content

from ibisagent.episodes import read_episodes
from ibisagent.replay import replay
from ibisagent.synthesis.manifest import MANIFEST, trajectory_files
from ibisagent.tools import load_tool


@dataclass(frozen=True)
class Config:
    """Settings of one measurement."""

    data: Annotated[Path, tyro.conf.Positional]
    tool: str = "embedded"
    limit: int | None = None  # only so many pictures
    replay: int = 0  # only so many trajectories; 0: all


def synthesize(config: Config, out: Path, workers: int) -> float:
    """Seconds of `ibisagent synthesize` with its start-up."""
    words = [str(config.data), "--out", str(out), "--tool", config.tool, "--workers", str(workers)]
    words.append("--no-hold-out")  # all training pictures
    words += [] if config.limit is None else ["--limit", str(config.limit)]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "ibisagent", "synthesize", *words], check=True)
    return time.monotonic() - began


def main(config: Config) -> int:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        seconds = {workers: synthesize(config, folder / str(workers), workers) for workers in (2, 1)}
        manifest = json.loads((folder / "2" / MANIFEST).read_text())
        made = manifest["counts"]["trajectories"]
        for workers, taken in seconds.items():
            print(f"{workers} workers: {taken:.1f} s, {made} trajectories, {made / taken:.1f} a second")
        print(f"two workers are {seconds[1] / seconds[2]:.2f}x faster than one")
        equal = content(folder / "1") == content(folder / "2")
        print("both runs are equal" if equal else "NOT EQUAL")
        tool = load_tool(config.tool)
        episodes = (e for log in trajectory_files(folder / "2") for e in read_episodes(log))
        exact = played = 0
        for episode in islice(episodes, config.replay or None):
            result = replay(episode, tool)
            exact += result.verified and all(mask.exact for mask in result.masks)
            played += 1
        print(f"{exact} of {played} trajectories replay to the very masks")
        return 0 if equal and exact == played else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
