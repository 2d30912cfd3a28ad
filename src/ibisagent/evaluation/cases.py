"""Which cases a run holds, planned from the index alone: a case is one picture and one target.

Patients are hashed, as sample ids are, since names of files and patients belong in no output. A
hash is the same wherever the same data lie, so shards merge and runs compare by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ibisagent.datasets.biomedparse import (
    PictureRecord,
    list_datasets,
    read_index,
    sample_id,
    samples_of,
    split_of,
)
from ibisagent.errors import InputError
from ibisagent.types import Sample

_HASH = 12  # hexadecimal characters


@dataclass(frozen=True)
class Task:
    """One picture and those of its targets that are asked for."""

    record: PictureRecord
    targets: tuple[str, ...]

    def case_ids(self) -> tuple[str, ...]:
        return tuple(sample_id(self.record, target) for target in self.targets)


def plan(
    data: Path,
    split: str = "test",
    datasets: Sequence[str] = (),
    *,
    absent: bool = False,
    per_set: int | None = None,
) -> list[Task]:
    """Every picture of a split with its targets, set by set; no pixel is read.

    `data` holds sets in the layout of BiomedParseData, or is one such set. Split "val" is a tenth of
    the training patients (`split_of`), and "train" all others. `per_set` keeps so many cases of
    each set, drawn by hash, so that they do not depend on the order of files. Raises InputError
    where nothing is found.
    """
    root, names = _sets(data, datasets)
    folder = "train" if split in ("train", "val") else split
    tasks: list[Task] = []
    for name in names:
        if not (root / name / f"{folder}.json").is_file():
            continue
        records = read_index(root, name, folder)
        if folder == "train":
            records = [record for record in records if split_of(record.patient) == split]
        own = [
            Task(record, (*(item.target for item in record.targets), *(record.absent if absent else ())))
            for record in records
        ]
        tasks += own if per_set is None else _keep(own, per_set)
    if not tasks:
        raise InputError(
            "there is something to evaluate", f"no case in split {split!r}", "check the folder and --split"
        )
    return tasks


def shard(tasks: Sequence[Task], number: int, count: int) -> list[Task]:
    """The share `number` (from 1) of `count`, by hash of the picture; shares are disjoint."""
    return [task for task in tasks if int(_hash(task.record.stem), 16) % count == number - 1]


def samples(task: Task, instruction: str) -> Iterator[Sample]:
    """The samples of a task; pixels are read here. `{target}` is filled in."""
    wanted = set(task.targets)
    listed = {item.target for item in task.record.targets}
    for sample in samples_of(task.record, absent=bool(wanted - listed), instruction=instruction):
        if sample.target in wanted:
            yield sample


def patient_key(record: PictureRecord) -> str:
    """Hash of the patient or exam; of the picture where none is known."""
    return _hash(f"patient:{record.patient}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]


def _sets(data: Path, datasets: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    if not data.is_dir():
        raise InputError("DATA is a folder of data sets", "no folder", "check the path")
    if any((data / f"{split}.json").is_file() for split in ("train", "test")):
        data = data.resolve()
        return data.parent, (data.name,)
    found = list_datasets(data)
    unknown = sorted(set(datasets) - set(found))
    if unknown or not found:
        raise InputError(
            "every set is a folder with an index",
            ", ".join(unknown) or "none found",
            f"there are: {', '.join(found)}" if found else "see docs/evaluation.md for the layout",
        )
    return data, tuple(name for name in found if not datasets or name in datasets)


def _keep(tasks: Sequence[Task], count: int) -> list[Task]:
    """The `count` cases with the lowest hashes, in their old order."""
    ids = sorted((_hash(name), name) for task in tasks for name in task.case_ids())
    kept = {name for _, name in ids[:count]}
    thinned = [
        Task(task.record, tuple(t for t in task.targets if sample_id(task.record, t) in kept))
        for task in tasks
    ]
    return [task for task in thinned if task.targets]
