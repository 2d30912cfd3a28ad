"""Which cases a run holds, planned from the index alone: a case is one picture and one target.

Absent targets are hard where the data set lists them as absent from that very picture, and easy
where they are a target of another set, one for each picture, drawn by hash. Nobody looked for the
easy ones; so they are never taken from a set that shows the same part of the body, and vessels and
nerves, which lie almost everywhere, are never among them.

Patients are hashed, as sample ids are, since names of files and patients belong in no output. A
hash is the same wherever the same data lie, so shards merge and runs compare by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ibisagent.datasets.cases import Case, ReadOptions, hashed, samples_of
from ibisagent.datasets.detect import open_dataset, open_part
from ibisagent.errors import InputError
from ibisagent.types import Sample

Absent = Literal["none", "hard", "easy", "both"]

_REGIONS = (("abdomen", "chest", "heart", "thorax", "lung"), ("brain", "hippocampus", "head", "fet"))
_EVERYWHERE = frozenset({"blood vessel", "nerve"})


@dataclass(frozen=True)
class Task:
    """One picture and those of its targets that are asked for."""

    entry: Case
    targets: tuple[str | None, ...]  # None: only an instruction says what
    easy: str | None = None  # the one of them that is a target of another set

    def case_ids(self) -> tuple[str, ...]:
        return tuple(case_id(self.entry, target) for target in self.targets)

    def absence(self, target: str | None) -> Literal["hard", "easy"]:
        """How hard it is to see that a target of this task is absent, should it be."""
        return "easy" if self.easy is not None and target == self.easy else "hard"

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
    absent: Absent = "none",
    without: Sequence[str] = (),
    per_set: int | None = None,
    hold_out: bool = True,
    format: str | None = None,
    options: ReadOptions | None = None,
) -> Plan:
    """Every picture of a split with its targets; no pixel is read.

    `data` is anything that `datasets.detect.open_dataset` reads. Split "all" takes every split; "val"
    is the data's own or else a tenth of the training patients, and "train" all others (`open_part`; all
    of them without `hold_out`).
    `per_set` keeps so many cases of each set, drawn by hash, so that they do not depend on the order of
    files. `without` names targets that are not asked for. Raises InputError where nothing is found, and
    for easy absent targets where no set shows another part of the body.
    """
    options = replace(options or ReadOptions(), split=None if split == "all" else split)
    if split == "val" or (split == "train" and hold_out):
        found = open_part(data, split, format, options)
    else:
        found = open_dataset(data, format, options)
    entries = found.cases
    names = sorted({entry.dataset for entry in entries})
    unknown = sorted(set(datasets) - set(names))
    if unknown:
        raise InputError(
            "--datasets are sets of the data", ", ".join(unknown), f"there are: {', '.join(names)}"
        )
    foreign = _foreign(entries) if absent in ("easy", "both") else {}
    tasks = [
        _task(entry, absent, foreign.get(entry.dataset, ()), frozenset(without))
        for entry in entries
        if not datasets or entry.dataset in datasets
    ]
    tasks = [task for task in tasks if task.targets]
    if absent in ("easy", "both") and not any(task.easy for task in tasks):
        raise InputError(
            "easy absent targets are those of a set that shows another part of the body",
            "no such set",
            "give a folder of several sets, or write --absent hard",
        )
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


def _task(entry: Case, absent: Absent, foreign: Sequence[str], without: frozenset[str]) -> Task:
    names = [target.name for target in entry.targets]
    hard = entry.absent if absent in ("hard", "both") else ()
    choices = [name for name in foreign if name not in without]
    easy = choices[int(hashed("easy", entry.key), 16) % len(choices)] if choices else None
    if easy is not None:
        entry = replace(entry, absent=(*entry.absent, easy))
    asked = dict.fromkeys([*names, *hard, *([easy] if easy is not None else [])])
    return Task(entry, tuple(name for name in asked if name not in without), easy)


def _foreign(entries: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """For each set the targets of sets that show another part of the body, sorted."""
    shown: dict[str, set[str]] = {}
    known: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for entry in entries:
        names = {target.name for target in entry.targets if target.name}
        shown.setdefault(entry.dataset, set()).update(names)
        known.setdefault(entry.dataset, set()).update(names, entry.absent)
        parts.setdefault(entry.dataset, set()).add(_part(entry.site or entry.dataset))
    return {
        name: tuple(
            sorted(
                set().union(*(shown[other] for other in shown if not parts[name] & parts[other]))
                - known[name]
                - _EVERYWHERE
            )
        )
        for name in shown
    }


def _part(site: str) -> str:
    """The part of the body of a site: the trunk and the head are one each, else the site itself."""
    found = [region[0] for region in _REGIONS if any(word in site.lower() for word in region)]
    return found[0] if found else site.lower()


def _keep(tasks: Sequence[Task], count: int) -> list[Task]:
    """The `count` cases with the lowest hashes, in their old order."""
    ids = sorted((hashed("draw", name), name) for task in tasks for name in task.case_ids())
    kept = {name for _, name in ids[:count]}
    thinned = [
        replace(task, targets=tuple(t for t in task.targets if case_id(task.entry, t) in kept))
        for task in tasks
    ]
    return [task for task in thinned if task.targets]
