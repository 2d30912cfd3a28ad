"""The result folder of a run: what made it (run.json) and one line per finished case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibisagent.errors import EpisodeFormatError, InputError
from ibisagent.evaluation.scoring import CaseScore, from_record, unanswered
from ibisagent.files import write_json
from ibisagent.fingerprint import refuse_if_different

RUN = "run.json"
RUN_SCHEMA = "ibisagent.run/1"
SAMPLES = "samples.jsonl"


def samples_file(folder: Path, shard: tuple[int, int] | None = None) -> Path:
    """Where the lines go: samples.jsonl, or one file per shard."""
    return folder / (SAMPLES if shard is None else f"samples-{shard[0]}-of-{shard[1]}.jsonl")


def mend(file: Path) -> None:
    """Cut off a last line that a kill left unfinished; without a file, nothing is done."""
    if not file.exists():
        return
    with file.open("r+b") as lines:
        data = lines.seek(0, 2)
        step = 1 << 20
        end, start = data, data
        while start > 0:
            start = max(0, start - step)
            lines.seek(start)
            found = lines.read(min(step, end - start)).rfind(b"\n")
            if found >= 0:
                lines.truncate(start + found + 1)
                return
            end = start
        lines.truncate(0)


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Every case of all sample files, each once: its first answer, and after those all that have none.

    Files are read in order of names. Of several lines without an answer the last one counts: the same
    command asks such cases again and adds a line. Raises EpisodeFormatError naming file and line where
    one does not hold.
    """
    answered: set[Any] = set()
    left: dict[Any, dict[str, Any]] = {}
    for file in sorted(folder.glob("samples*.jsonl")):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break  # a run still writes it, or was killed while it did
                try:
                    record = json.loads(line)
                except ValueError:
                    raise EpisodeFormatError(
                        "every line of a sample file is one JSON object",
                        f"line {number} of {file.name}",
                        "delete that line; the case is then run again",
                    ) from None
                case = record.get("case")
                if case in answered:
                    continue
                if unanswered(record) is None:
                    answered.add(case)
                    yield record
                else:
                    left[case] = record
    yield from (record for case, record in left.items() if case not in answered)


def read_scores(folder: Path) -> list[CaseScore]:
    """The scores of all finished cases of a result folder, without their episodes."""
    if not any(folder.glob("samples*.jsonl")):
        raise InputError("a result folder holds samples.jsonl", "none there", "name the --out of a run")
    return [from_record(record) for record in read_lines(folder)]


def read_asked(folder: Path) -> tuple[list[CaseScore], set[str]]:
    """The scores of the cases that need not be asked again, and the cases that got no answer so far."""
    answered, silent = [], set()
    for record in read_lines(folder):
        if unanswered(record) is None:
            answered.append(from_record(record))
        else:
            silent.add(record["case"])
    return answered, silent


def read_run(folder: Path) -> dict[str, Any] | None:
    """What made the folder's cases; None where nothing has been run yet."""
    try:
        record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{RUN} of a result folder is readable", type(error).__name__) from None
    if not isinstance(record, dict) or record.get("schema") != RUN_SCHEMA:
        raise InputError(f"this version reads {RUN_SCHEMA}", "another schema", "name another --out")
    return record


def claim(folder: Path, key: str, facts: dict[str, Any]) -> None:
    """Write `facts` under `key` of run.json, or check that those there are the same.

    Raises InputError that names each difference: a folder holds the cases of one run only.
    """
    record = read_run(folder) or {"schema": RUN_SCHEMA}
    if key in record:
        rule = "a result folder holds one run: the same cases, policy, tool and settings"
        refuse_if_different(facts, record[key], rule)
        return
    record[key] = facts
    write_json(folder / RUN, record)
