"""Over 600 odd and damaged files: each gives a picture or one named error, within bounds.

They are read in a process of its own, whose memory and whose screen are measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from odd_files import OddFile, write_odd_files

READER = """
import json, resource, sys, time
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from odd_files import peak_kilobytes
limit = 3 * 1024**3
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in json.load(sys.stdin):
    start = time.process_time()
    try:
        picture = load_picture(path)
        shape = list(picture.pixels.shape)
        said = {"shape": shape, "dtype": str(picture.pixels.dtype), "notes": list(picture.assumptions)}
    except InputError as error:
        said = {"error": str(error), "parts": [bool(error.rule), bool(error.value), bool(error.fix)]}
    said["seconds"] = time.process_time() - start
    said["kilobytes"] = peak_kilobytes()
    print(json.dumps(said), flush=True)
"""
SECRETS = ("Doe", "Jane", "jane", "0123456789", "1970", "/home", "Traceback")


class Reading:
    """What one process said about all files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = write_odd_files(folder)
        paths = json.dumps([str(file.path) for file in self.files])
        done = subprocess.run(
            [sys.executable, "-c", READER],
            input=paths,
            capture_output=True,
            text=True,
            timeout=900,
            cwd=Path(__file__).parent,  # for odd_files
        )
        self.code, self.stderr = done.returncode, done.stderr
        self.said = [json.loads(line) for line in done.stdout.splitlines()]

    def wrong(self, file: OddFile, said: dict) -> bool:
        if file.readable != ("error" not in said):
            return True
        if not file.readable:
            return file.says not in said["error"]
        height, width, channels = said["shape"]
        if channels != 3 or said["dtype"] != "uint8" or file.shape not in (None, (height, width)):
            return True
        return bool(file.says) and not any(file.says in note for note in said["notes"])


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    return Reading(tmp_path_factory.mktemp("odd"))


def test_all_files_are_answered_and_nothing_reaches_the_terminal(reading: Reading) -> None:
    assert len(reading.files) >= 300
    assert (reading.code, reading.stderr) == (0, "")
    assert len(reading.said) == len(reading.files)
    assert len({file.path.read_bytes() for file in reading.files if _is_small(file.path)}) >= 300


def test_each_is_read_or_refused_as_expected(reading: Reading) -> None:
    pairs = zip(reading.files, reading.said, strict=True)
    wrong = [(file, said) for file, said in pairs if reading.wrong(file, said)]
    assert wrong == []
    assert sum(file.readable for file in reading.files) >= 100
    assert sum(not file.readable for file in reading.files) >= 100


def test_errors_are_one_line_with_rule_value_and_fix(reading: Reading) -> None:
    for said in reading.said:
        if "error" in said:
            assert said["parts"] == [True, True, True], said
            assert len(said["error"].splitlines()) == 1 and len(said["error"]) < 600, said


def test_no_name_path_or_patient_data_is_repeated(reading: Reading) -> None:
    for file, said in zip(reading.files, reading.said, strict=True):
        text = said.get("error", "") + " ".join(said.get("notes", []))
        stem = file.path.name.split(".")[0]
        for secret in (*SECRETS, str(reading.folder), stem):
            assert secret not in text, said


def test_memory_and_time_are_bounded(reading: Reading) -> None:
    assert max(said["kilobytes"] for said in reading.said) < 1024**2
    assert max(said["seconds"] for said in reading.said) < 30  # of one core


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 10**6
