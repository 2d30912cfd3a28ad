"""What a synthesis folder holds beside its shards: the manifest, and what the logs add up to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError
from ibisagent.files import read_json, write_json

if TYPE_CHECKING:
    from ibisagent.synthesis.shards import Work

SCHEMA = "ibisagent.synthesis/1"
MANIFEST = "manifest.json"
_NO_LOGS = ("journal-", "left-out-", "instructions-")  # what else lies beside trajectories


def begin(out: Path, work: Work) -> dict[str, Any]:
    """The manifest of this job. Raises InputError where the folder holds another one."""
    from ibisagent.fingerprint import refuse_if_different

    job = work.job
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "job": {
            "data": {"format": work.dataset.format, "cases": work.count, "digest": work.digest},
            "instruction": job.options.instruction,
            "reading": work.dataset.options.record(),
            "tool": ":".join(part.rsplit("/", 1)[-1] for part in job.tool.split(":", 1)),
            "point_to_box": job.point_to_box,
            "teaching": asdict(job.teaching),
            "undo": job.undo,
            "max_turns": job.max_turns,
            "repeats": job.repeats,
            "keep_unreached": job.keep_unreached,
            "shards": job.shards,
            "seed": job.seed,
        },
        "complete": False,
    }
    if job.wording is not None:
        record["job"]["instructions"] = dict(job.wording.shares)
    if job.teacher is not None:
        record["job"]["teacher"] = job.teacher.record()
    path = out / MANIFEST
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))["job"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "the manifest in --out can be read", "a damaged one", "name another folder"
            ) from None
        refuse_if_different(
            record["job"], earlier, "a job is continued with the options that it was begun with"
        )
    elif any(out.glob("*.jsonl")):
        raise InputError("--out is a folder of its own", "one with other logs", "name another folder")
    write_json(path, record)
    return record


def summary(out: Path, shards: int) -> dict[str, Any]:
    """What finished shards hold: counts by kind and data set, turns, what was left out, the fingerprint."""
    from ibisagent.synthesis.shards import instructions_path, left_out_path, shard_path

    kinds: Counter[str] = Counter()
    sets: Counter[str] = Counter()
    left: Counter[str] = Counter()
    said: Counter[str] = Counter()
    turns = 0
    fingerprint: dict[str, Any] = {}
    for index in range(shards):
        with shard_path(out, index).open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                kinds[record["kind"]] += 1
                sets[record["sample_id"].split("/")[0]] += 1
                turns += len(record["turns"])
                fingerprint = record["fingerprint"]
        if left_out_path(out, index).exists():
            with left_out_path(out, index).open(encoding="utf-8") as lines:
                left.update(json.loads(line)["why"] for line in lines)
        if instructions_path(out, index).exists():
            with instructions_path(out, index).open(encoding="utf-8") as lines:
                said.update(json.loads(line)["kind"] for line in lines)
    counts = {
        "trajectories": sum(kinds.values()),
        "turns": turns,
        "kinds": dict(sorted(kinds.items())),
        "datasets": dict(sorted(sets.items())),
        "left_out": dict(sorted(left.items())),
    }
    if said:
        counts["instructions"] = dict(sorted(said.items()))
    return {"counts": counts, "fingerprint": fingerprint}


def trajectory_files(path: Path) -> list[Path]:
    """The logs of a synthesis folder in order, or the one log that is named.

    Raises InputError where there is none, or the synthesis was never finished.
    """
    if path.is_file():
        return [path]
    manifest = path / MANIFEST
    if manifest.exists():
        fix = "repeat the command that made the folder, or name one log"
        if read_json(manifest, fix).get("complete") is False:
            raise InputError("the synthesis is finished", f"an unfinished one in {path}", fix)
    files = sorted(path.glob("trajectories-*.jsonl")) or sorted(
        file for file in path.glob("*.jsonl") if not file.name.startswith(_NO_LOGS)
    )
    if not files:
        raise InputError(
            "trajectories are a log or a folder of logs", "none", "name the folder of `synthesize`"
        )
    return files
