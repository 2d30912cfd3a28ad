"""Which cases a run holds, planned from the index alone: a case is one picture and one target.

Patients are hashed, as sample ids are, since names of files and patients belong in no output. A
hash is the same wherever the same data lie, so shards merge and runs compare by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ibisagent.datasets.biomedparse import split_of
from ibisagent.datasets.cases import Case, ReadOptions, hashed, samples_of
from ibisagent.datasets.detect import open_dataset
from ibisagent.errors import InputError
from ibisagent.types import Sample


@dataclass(frozen=True)
class Task:
    """One picture and those of its targets that are asked for."""

    entry: Case
    targets: tuple[str | None, ...]  # None: only an instruction says what

    def case_ids(self) -> tuple[str, ...]:
        return tuple(case_id(self.entry, target) for target in self.targets)

    @property
    def patient(self) -> str:
        """Hash of the patient or exam; of the picture where none is known."""
        return hashed("patient", self.entry.patient or self.entry.key)


@dataclass(frozen=True)
class Plan:
    """The pictures of a run and how they are read."""

    tasks: tuple[Task, ...]
    options: ReadOptions
    faults: dict[str, int]  # what the index got wrong: kind -> how often


def plan(
    data: Path,
    split: str = "test",
    datasets: Sequence[str] = (),
    *,
    absent: bool = False,
    per_set: int | None = None,
    format: str | None = None,
    options: ReadOptions | None = None,
) -> Plan:
    """Every picture of a split with its targets; no pixel is read.

    `data` is anything that `datasets.detect.open_dataset` reads. Split "all" takes every split. In
    the layout of BiomedParseData, "val" is a tenth of the training patients (`split_of`) and "train"
    all others. `per_set` keeps so many cases of each set, drawn by hash, so that they do not depend
    on the order of files. Raises InputError where nothing is found.
    """
    options = replace(options or ReadOptions(), split=None if split == "all" else split)
    try:
        found = open_dataset(data, format, options)
    except InputError:
        if split != "val":
            raise
        found = open_dataset(data, format, replace(options, split="train"))
    entries = list(found.cases)
    if found.format == "biomedparse" and split in ("train", "val"):
        entries = [entry for entry in entries if split_of(entry.patient or entry.key) == split]
    names = sorted({entry.dataset for entry in entries})
    unknown = sorted(set(datasets) - set(names))
    if unknown:
        raise InputError(
            "--datasets are sets of the data", ", ".join(unknown), f"there are: {', '.join(names)}"
        )
    tasks = [_task(entry, absent) for entry in entries if not datasets or entry.dataset in datasets]
    tasks = [task for task in tasks if task.targets]
    if per_set is not None:
        tasks = [
            task for name in names for task in _keep([t for t in tasks if t.entry.dataset == name], per_set)
        ]
    if not tasks:
        raise InputError(
            "there is something to evaluate", f"no case in split {split!r}", "check the folder and --split"
        )
    faults = Counter(str(fault.kind) for fault in found.faults)
    return Plan(tuple(tasks), found.options, dict(sorted(faults.items())))


def shard(tasks: Sequence[Task], number: int, count: int) -> list[Task]:
    """The share `number` (from 1) of `count`, by hash of the picture; shares are disjoint."""
    return [task for task in tasks if int(hashed("shard", task.entry.key), 16) % count == number - 1]


def samples(task: Task, options: ReadOptions) -> Iterator[Sample]:
    """The samples of a task; pixels are read here. A target with an empty mask is absent."""
    for sample in samples_of(task.entry, options, absent=True):
        if sample.target in task.targets:
            yield sample


def case_id(entry: Case, target: str | None) -> str:
    """The sample id of a target, as `samples_of` gives it."""
    return f"{entry.key}/{target.replace(' ', '+')}" if target else entry.key


def _task(entry: Case, absent: bool) -> Task:
    names = [target.name for target in entry.targets]
    return Task(entry, tuple(dict.fromkeys([*names, *(entry.absent if absent else ())])))


def _keep(tasks: Sequence[Task], count: int) -> list[Task]:
    """The `count` cases with the lowest hashes, in their old order."""
    ids = sorted((hashed("draw", name), name) for task in tasks for name in task.case_ids())
    kept = {name for _, name in ids[:count]}
    thinned = [
        replace(task, targets=tuple(t for t in task.targets if case_id(task.entry, t) in kept))
        for task in tasks
    ]
    return [task for task in thinned if task.targets]
