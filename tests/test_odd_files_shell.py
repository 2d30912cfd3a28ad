"""Twenty odd and damaged files through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from odd_files import OddFile, write_odd_files

TWENTY = (
    *("1x1.png", "2x8192.png", "jpg-called.png", "grey16.png", "some-nan.tif", "cmyk.jpg"),
    *("alpha-palette.png", "exif-6.jpg", "inverted.dcm", "four.nii.gz"),
    *("10000-wide.png", "text-bomb.png", "empty.png", "all-nan.tif", "folder.png", "pipe.png"),
    *("no-pixels.dcm", "deflate-bomb.dcm", "wrong-checksum.nii.gz", "jpeg-ls.dcm"),
)
ABSENT = (
    "<think> Nothing is to be seen. </think> <action> Terminate </action> <answer> Not present. </answer>"
)


def segment(file: OddFile, out: Path, script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ibisagent", "segment", str(file.path), "Find the liver"]
    options = ["--out", str(out), "--policy", f"scripted:@{script}", "--tool", "classical", "--start", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=900, env=environment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[OddFile, Path, subprocess.CompletedProcess]]:
    folder = tmp_path_factory.mktemp("odd")
    files = {file.path.name.split("-", 1)[1]: file for file in write_odd_files(folder)}
    chosen = [files[name] for name in TWENTY]
    script = tmp_path_factory.mktemp("script") / "absent.txt"
    script.write_text(ABSENT, encoding="utf-8")
    outs = [tmp_path_factory.mktemp("out") / "results" for _ in chosen]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda pair: segment(*pair, script), zip(chosen, outs, strict=True)))
    return list(zip(chosen, outs, done, strict=True))


def test_the_readable_ones_give_results(runs: list) -> None:
    readable = [run for run in runs if run[0].readable]
    assert len(readable) == 10
    for file, out, done in readable:
        assert done.returncode in (0, 3, 4), (file, done.stderr)
        assert (out / "episode.jsonl").stat().st_size > 0
        assert (out / "report.html").stat().st_size > 0
        assert file.says in done.stderr, (file, done.stderr)
        assert "Traceback" not in done.stderr


def test_the_unreadable_ones_give_one_line_and_nothing_else(runs: list) -> None:
    unreadable = [run for run in runs if not run[0].readable]
    assert len(unreadable) == 10
    for file, out, done in unreadable:
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2, (file, done.stderr)
        assert len(lines) == 1 and lines[0].startswith("error:"), (file, lines)
        assert file.says in lines[0] and lines[0].count(";") >= 2, (file, lines)
        assert done.stdout == "" and not out.exists()
        assert file.path.name not in done.stderr and "Traceback" not in done.stderr
