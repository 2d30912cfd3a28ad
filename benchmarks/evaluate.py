"""One command over a whole data set: time, memory, kills, shards, comparison with itself, pages.

    python benchmarks/evaluate.py DATA --split test --out out/evaluate

Prints a line for each of the evaluation's bars; exit code 1 where one that could be checked does
not hold. `--per-set` makes it small (the limits of time and memory are then not judged). Memory is
that of the whole process tree, looked at several times a second: the sum of proportional shares
(PSS), so that shared pages count once. Needs Linux. Pages are opened where Chromium is installed.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from ibisagent.evaluation.compare import Compare, compare
from ibisagent.evaluation.compare_report import comparison_html
from ibisagent.evaluation.summary import equal_part

MOST_SECONDS, MOST_MEGABYTES, MOST_RATIO = 480.0, 3000.0, 2.1


@dataclass
class Config:
    """What is measured."""

    data: tyro.conf.Positional[Path]  # folder of sets
    split: str = "val"
    out: Path = Path("out/evaluate")  # emptied first
    per_set: int | None = None  # at most so many cases of each set
    workers: int = 2
    kills: int = 10
    policy: str = "embedded"
    tool: str = "embedded"
    seed: int = 0  # of the kills
    pages_only: bool = False  # open the pages of an earlier run in --out


@dataclass
class Measured:
    """One call of the command."""

    seconds: float
    megabytes: float  # peak PSS of the process tree


FAILED: list[str] = []
STARTED: list[subprocess.Popen[bytes]] = []


def verdict(name: str, holds: bool | None, figure: str) -> None:
    """Print one line; None: not judged."""
    word = "-" if holds is None else "yes" if holds else "NO"
    print(f"{name:44} {word:4} {figure}", flush=True)
    if holds is False:
        FAILED.append(name)


def arguments(config: Config, out: Path, *more: str) -> list[str]:
    limit = [] if config.per_set is None else ["--per-set", str(config.per_set)]
    return [
        sys.executable, "-m", "ibisagent", "evaluate", str(config.data), "--split", config.split,
        "--workers", str(config.workers), "--policy", config.policy, "--tool", config.tool,
        "--out", str(out), *limit, *more,
    ]  # fmt: skip


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """In a process group of its own, without output; it ends with this script."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    STARTED.append(process)
    return process


def stop_all() -> None:
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def tree(root: int) -> list[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def memory(process: int) -> float:
    """PSS in megabytes; 0 where the process is gone."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def call(words: list[str]) -> Measured:
    began, peak = time.monotonic(), 0.0
    process = start(words)
    while process.poll() is None:
        peak = max(peak, sum(memory(one) for one in tree(process.pid)))
        time.sleep(0.25)
    if process.returncode not in (0, 3):  # 3: some case got no answer
        sys.exit(f"failed with exit code {process.returncode}: {' '.join(words)}")
    return Measured(time.monotonic() - began, peak)


def summary_of(folder: Path) -> dict[str, object]:
    return equal_part(json.loads((folder / "summary.json").read_text()))


def lines_in(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("samples*.jsonl"))


# --- the bars ---------------------------------------------------------------------------------


def whole(config: Config) -> Measured:
    measured = call(arguments(config, config.out / "whole"))
    cases = lines_in(config.out / "whole")
    full = config.per_set is None
    rate = f"{measured.seconds:.1f} s for {cases} cases, {config.workers} processes"
    verdict("one command in 480 s", measured.seconds <= MOST_SECONDS if full else None, rate)
    within = measured.megabytes < MOST_MEGABYTES if full else None
    verdict("peak memory below 3 GB", within, f"{measured.megabytes:.0f} MB (PSS of the process tree)")
    return measured


def shards(config: Config, full: Measured) -> None:
    """Half of the pictures, then the other half; the second call merges."""
    folder = config.out / "shards"
    half = call(arguments(config, folder, "--shard", "1/2"))
    cases, all_cases = lines_in(folder), lines_in(config.out / "whole")
    call(arguments(config, folder, "--shard", "2/2"))
    verdict("two shards merged equal one run", summary_of(folder) == summary_of(config.out / "whole"), "")
    ratio = (full.seconds / half.seconds) / (all_cases / cases) * 2
    verdict(
        "2x samples take at most 2.1x time", ratio <= MOST_RATIO,
        f"{ratio:.2f}x ({cases} cases {half.seconds:.1f} s without summary, {all_cases} cases "
        f"{full.seconds:.1f} s with it)",
    )  # fmt: skip


def kills(config: Config) -> None:
    """Killed after a random number of further cases and a random wait, every second time workers too."""
    folder, rng = config.out / "killed", random.Random(config.seed)
    cases, done = lines_in(config.out / "whole"), 0
    at = []
    for number in range(config.kills):
        wanted = lines_in(folder) + rng.uniform(0, 1.6 * (cases - lines_in(folder)) / (config.kills - number))
        process = start(arguments(config, folder))
        while process.poll() is None and lines_in(folder) < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        if number % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        done += 1
        at.append(lines_in(folder))
    call(arguments(config, folder))
    equal = summary_of(folder) == summary_of(config.out / "whole")
    same = lines_in(folder) == cases
    verdict(f"killed {done} times, an equal summary", equal and same, f"with {at} of {cases} cases done")


def itself(config: Config) -> None:
    found = compare(Compare(config.out / "whole", config.out / "whole"))
    numbers = [row[key] for row in found["differences"] for key in ("difference", "low", "high")]
    zero = all(number in (None, 0.0) for number in numbers)
    significant = any(row["significant"] for row in found["differences"])
    rows = len(found["differences"])
    verdict("compare with itself is exactly 0", zero and not significant, f"{rows} metrics, no significance")
    for other in ("killed", "shards"):
        if (config.out / other).exists():
            same = compare(Compare(config.out / "whole", config.out / other))
            values = [r["difference"] for r in same["differences"] if r["unit"] != "s"]
            verdict(
                f"compare with {other} is exactly 0", all(v in (None, 0.0) for v in values), "times apart"
            )


# --- pages ------------------------------------------------------------------------------------


def opened(browser: str, page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Console lines and requested addresses of a page in headless Chromium; a screenshot beside."""
    log = folder / f"{page.stem}-net.json"
    words = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}", "--hide-scrollbars", "--window-size=1200,4000",
        f"--screenshot={folder / (page.stem + '.png')}", page.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    text = log.read_text()
    try:
        events = json.loads(text)
    except ValueError:  # Chromium may end without closing the list
        events = json.loads(text.rstrip().rstrip(",") + "]}")
    kinds = {number: name for name, number in events["constants"]["logEventTypes"].items()}
    asked = []
    for event in events["events"]:
        facts = event.get("params") or {}
        own = facts.get("initiator", "not an origin") != "not an origin"  # Chromium's own have no origin
        if kinds[event["type"]] == "URL_REQUEST_START_JOB" and own:
            asked.append(facts.get("url", ""))
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], asked


def pages(config: Config) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        verdict("pages open without complaint", None, "no Chromium on this machine")
        return
    folder = config.out / "pages"
    folder.mkdir(exist_ok=True)
    control = folder / "control.html"
    control.write_text('<img src="http://example.invalid/x.png"><script>console.error("seen")</script>')
    console, asked = opened(browser, control, folder)
    verdict("the check sees a request and an error", bool(console) and bool(asked), f"control: {asked}")
    pair = compare(Compare(config.out / "whole", config.out / "killed"))
    (folder / "comparison.html").write_text(comparison_html(pair), encoding="utf-8")
    for page in (config.out / "whole" / "report.html", folder / "comparison.html"):
        console, asked = opened(browser, page, folder)
        verdict(
            f"{page.name} opens offline, console empty", not console and not asked,
            f"{len(console)} console lines, {len(asked)} requests, {folder / (page.stem + '.png')}",
        )  # fmt: skip


def main(config: Config) -> None:
    if not config.pages_only:
        shutil.rmtree(config.out, ignore_errors=True)
        config.out.mkdir(parents=True)
        full = whole(config)
        shards(config, full)
        kills(config)
        itself(config)
    pages(config)
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    atexit.register(stop_all)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(tyro.cli(Config))
