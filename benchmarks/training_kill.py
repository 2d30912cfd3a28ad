"""SIGKILL both trainers at random moments, continue, and compare with an uninterrupted run.

    python benchmarks/training_kill.py --data ../shared/data --kills 4

Prints for SFT and RL the largest difference of the two loss curves (bar: 1e-4) and how many steps a
kill cost at most (bar: the steps since the last checkpoint, here 1). The embedded policy, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A trainer in a process of its own."""
    command = [sys.executable, "-m", "ibisagent", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(arguments: list[str]) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    process = start(arguments)
    _, said = process.communicate()
    if process.returncode != 0:
        raise SystemExit(said.decode()[-2000:])
    return time.monotonic() - began


def curve(out: Path) -> dict[int, float]:
    """Loss by step, as far as it was written."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {
        record["step"]: record["loss"] for record in map(json.loads, (x for x in lines if x.endswith("}")))
    }


def compare(name: str, arguments: list[str], folder: Path, kills: int, rng: random.Random) -> bool:
    """An uninterrupted run against one that is killed `kills` times."""
    whole, cut = folder / f"{name}-whole", folder / f"{name}-cut"
    seconds = finish([*arguments, "--out", str(whole)])
    lost = 0
    for _ in range(kills):
        process = start([*arguments, "--out", str(cut)])
        try:
            process.wait(timeout=rng.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = [int(path.name.split("-")[1]) for path in (cut / "checkpoints").glob("step-*[0-9]")]
        lost = max(lost, len(curve(cut)) - max(kept, default=0))
    finish([*arguments, "--out", str(cut)])
    one, other = curve(whole), curve(cut)
    gap = max(abs(one[step] - other[step]) for step in one) if one.keys() == other.keys() else float("inf")
    good = gap <= 1e-4 and lost <= 1
    print(f"{name}: {kills} kills, {len(one)} steps, largest difference {gap:.2e}, steps lost at most {lost}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(["synthesize", str(options.data), "--out", str(folder / "data"), "--limit", "20"])
        common = ["--save-every", "1", "--lr", "1e-4"]
        sft = ["train", "sft", str(folder / "data"), "--steps", "8", "--batch", "4", *common]
        rl = [
            "train", "rl", str(options.data), "--steps", "5", "--groups", "2", "--group", "3",
            "--validate-every", "2", "--validate-per-set", "1", *common,
        ]  # fmt: skip
        results = [
            compare("sft", sft, folder, options.kills, rng),
            compare("rl", rl, folder, options.kills, rng),
        ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
