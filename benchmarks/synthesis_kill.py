"""Kills a synthesis job at random moments and compares what comes out with an uninterrupted run.

    python benchmarks/synthesis_kill.py DATA [--kills 20] [--workers 2] [--tool classical] [--limit 40]

Prints how long the whole run took, when each kill (SIGKILL of the parent alone; its workers must
end by themselves) came and how many trajectories stood then, and whether the results are equal:
all fields but times and host, all pictures, the manifest. Exit code 0 where they are. A run that
ends before its kill is compared too, and begun anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def command(arguments: argparse.Namespace, out: Path, workers: int | None = None) -> list[str]:
    code = (
        "import sys; from pathlib import Path\n"
        "from ibisagent.synthesis.synthesize import Synthesize, run\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(run(Synthesize(Path(sys.argv[1]), Path(sys.argv[2]), tool=sys.argv[3], "
        "workers=int(sys.argv[4]), limit=int(sys.argv[5]) or None)))\n"
    )
    script = out.parent / "job.py"
    script.write_text(code)
    count = str(workers or arguments.workers)
    return [
        sys.executable,
        str(script),
        str(arguments.data),
        str(out),
        arguments.tool,
        count,
        str(arguments.limit),
    ]


def content(out: Path) -> dict[str, Any]:
    """Every file of a finished job, without times and host."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.json*")):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found[path.name] = [without_times(json.loads(line)) for line in lines]
    found["pictures"] = sorted(path.name for path in (out / "pictures").glob("*.png"))
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "tool_seconds", "host")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def uninterrupted(arguments: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Seconds to the first trajectory on disk, and of the whole run."""
    began = time.monotonic()
    process = subprocess.Popen(command(arguments, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = None
    while process.poll() is None:
        if first is None and any(path.stat().st_size for path in out.glob("journal-*.jsonl")):
            first = time.monotonic() - began
        time.sleep(0.05)
    whole = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"the uninterrupted run ended with {process.returncode}")
    return whole / 2 if first is None else first, whole


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tool", default="classical")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        start_up, whole = uninterrupted(arguments, folder / "whole")
        print(f"uninterrupted: {whole:.1f} s, of them {start_up:.1f} s before the first trajectory; ", end="")
        print(f"{lines(folder / 'whole')} trajectories")
        draws = random.Random(arguments.seed)
        out, kills = folder / "killed", 0
        while kills < arguments.kills:
            process = subprocess.Popen(
                command(arguments, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # every start costs its start-up: moments lie from its middle on, over a share of the work
            wait = draws.uniform(0.5 * start_up, start_up + (whole - start_up) * 4 / arguments.kills)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                print(f"kill {kills} after {wait:.1f} s: {lines(out)} trajectories stand")
                continue
            print(f"finished before kill {kills + 1}; begun anew")
            if content(out) != content(folder / "whole"):
                break
            shutil.rmtree(out)
        subprocess.run(command(arguments, out), check=True, capture_output=True)
        equal = content(out) == content(folder / "whole")
        print(f"after {kills} kills: {'equal' if equal else 'NOT EQUAL'}")
        return 0 if equal else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
