"""One shard of a synthesis job: its trajectories, a journal that survives any end, the final file.

Cases are dealt to shards by their keys, so a shard is the same in every run. While it is made,
every finished trajectory is a line in `journal-N.jsonl`; a run that was killed reads the journal,
drops a torn last line and makes only what is missing. A finished shard is written in the order of
the samples and takes its name in one step, so interrupted and whole runs are equal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ibisagent.datasets.cases import Case, ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset, open_part
from ibisagent.environment import Settings
from ibisagent.episodes import episode_line
from ibisagent.errors import IbisError
from ibisagent.files import write_whole
from ibisagent.fingerprint import list_id
from ibisagent.seeding import generator_for
from ibisagent.synthesis.instructions import Scene, scene_of
from ibisagent.synthesis.teacher import ChatTeacher, TeacherOptions, open_teacher
from ibisagent.synthesis.trajectories import UNREACHED, Plan, Teaching, plan, trajectories
from ibisagent.synthesis.wording import Wording, worded
from ibisagent.types import BASE_VERBS, Mask, Sample, Tool, Verb

_LEFT_OUT = '{"left_out"'

Tick = Callable[[int, int], None]  # cases and trajectories done since the last call


@dataclass(frozen=True)
class Job:
    """Everything that decides what is made; plain values, so that workers can be given it."""

    data: Path
    format: str | None = None
    options: ReadOptions = field(default_factory=ReadOptions)
    teaching: Teaching = field(default_factory=Teaching)
    tool: str = "embedded"
    device: str = "auto"
    point_to_box: float | None = None
    undo: bool = True
    max_turns: int = 20
    repeats: int = 1  # trajectories for each picture and target
    keep_unreached: bool = False
    shards: int = 1
    batch_size: int = 4
    hold_out: bool = False  # leave out those whom `open_part` keeps for validation
    limit: int | None = None  # of cases, for a trial
    seed: int = 0
    wording: Wording | None = None  # None: the instructions of the data set
    teacher: TeacherOptions | None = None  # None: thoughts from templates

    def settings(self, repeat: int) -> Settings:
        """The settings of one repetition; each has a seed of its own."""
        verbs = BASE_VERBS | {Verb.UNDO} if self.undo else BASE_VERBS
        return Settings(max_turns=self.max_turns, verbs=verbs, seed=self.seed + repeat)


def shard_path(out: Path, index: int) -> Path:
    """The finished file of a shard."""
    return out / f"trajectories-{index:05d}.jsonl"


def left_out_path(out: Path, index: int) -> Path:
    """What a finished shard left out, and why; only where there is something."""
    return out / f"left-out-{index:05d}.jsonl"


def instructions_path(out: Path, index: int) -> Path:
    """What was made of the instructions of a finished shard: a line for each that was made for it."""
    return out / f"instructions-{index:05d}.jsonl"


class Work:
    """A job with its data set: the cases of every shard, and what is planned for each."""

    def __init__(self, job: Job) -> None:
        """Raises InputError where the data cannot be listed."""
        self.job = job
        if job.hold_out:
            self.dataset = open_part(job.data, "train", job.format, job.options)
        else:
            self.dataset = open_dataset(job.data, job.format, job.options)
        cases = sorted(self.dataset.cases, key=lambda case: _hash(case.key))[: job.limit]
        self.shards: list[list[Case]] = [[] for _ in range(job.shards)]
        for case in cases:  # in the order of hashes, which no listing of a folder changes
            self.shards[_hash(case.key) % job.shards].append(case)
        self.count = len(cases)
        self.digest = list_id(case.key for case in cases)
        absent = sum(len(case.absent) for case in cases)
        self._ratio = sum(len(case.targets) for case in cases) / absent if absent else 0.0

    def planned(self, case: Case, repeat: int) -> Iterator[tuple[Sample, Plan]]:
        """The samples of a case with their plans. Raises InputError where the case cannot be read.

        Absent targets are drawn so that their share comes out as asked for: those that an index
        lists by the ratio of annotated to listed targets, those that turn out empty by the odds.
        """
        teaching, wording, seed = self.job.teaching, self.job.wording, self.job.seed + repeat
        odds = teaching.mix.absent_odds
        opposed = wording.contradictory if wording else 0.0  # their part of the absent ones
        samples = list(samples_of(case, self.job.options, absent=odds > 0 or wording is not None))
        truths = {sample.sample_id: sample.truth for sample in samples if sample.truth is not None}
        sagittal = self.job.options.axis == "sagittal"
        scene = scene_of(samples, case.absent, sagittal=sagittal) if wording and samples else None

        def wanted(sample: Sample, what: str, chance: float) -> bool:
            return bool(generator_for(seed, sample.sample_id, what).random() < chance)

        for sample in samples:
            present = bool(truths[sample.sample_id].any())
            others = [mask for key, mask in truths.items() if key != sample.sample_id and mask.any()]
            chance = odds * (self._ratio if sample.target in case.absent else 1.0) if opposed < 1 else 0.0
            if odds < float("inf") if present else wanted(sample, "absent", chance * (1 - opposed)):
                yield self._worded(sample, scene, others, seed)
            if present and scene and opposed and wanted(sample, "opposed", odds * opposed):
                yield from self._opposed(sample, scene, others, seed)

    def _worded(
        self, sample: Sample, scene: Scene | None, others: Sequence[Mask], seed: int
    ) -> tuple[Sample, Plan]:
        """The planned sample, with an instruction of its own where the data set does not bring one."""
        made = None
        if scene and self.job.wording and self._plain(sample):
            made = worded(sample, scene, self.job.wording, seed)
        if made is None:
            return plan(sample, others, self.job.teaching, seed)
        planned, todo = plan(made[0], others, self.job.teaching, seed)
        todo.target, todo.instruction = made[1].wanted, made[1]
        return planned, todo

    def _opposed(
        self, sample: Sample, scene: Scene, others: Sequence[Mask], seed: int
    ) -> Iterator[tuple[Sample, Plan]]:
        """A contradictory sample beside one that is annotated, where there is one."""
        assert self.job.wording is not None
        made = worded(sample, scene, self.job.wording, seed, opposed=True) if self._plain(sample) else None
        if made is not None:
            planned, todo = plan(made[0], others, self.job.teaching, seed)
            todo.target, todo.instruction = made[1].wanted, made[1]
            yield planned, todo

    def _plain(self, sample: Sample) -> bool:
        """Whether the sample has a name, and no instruction of its own."""
        return sample.instruction == self.job.options.instruction.format(target=sample.target)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def write_shard(work: Work, index: int, tool: Tool, out: Path, tick: Tick) -> None:
    """Make a shard from where its journal stands; nothing is done where the shard is finished."""
    path = out / f"journal-{index:05d}.jsonl"
    with path.open("a+b") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)  # a killed run's worker may still be ending
        if not shard_path(out, index).exists():
            shard = _Shard(work, out, journal)
            with open_teacher(work.job.teacher, out) as teacher:
                for repeat in range(work.job.repeats):
                    shard.make(work.shards[index], repeat, tool, tick, teacher)
            shard.finish(index)
    path.unlink(missing_ok=True)


class _Shard:
    """A shard in the making: its journal and the order in which its lines belong."""

    def __init__(self, work: Work, out: Path, journal: BinaryIO) -> None:
        self._work, self._out, self._journal = work, out, journal
        self._done = _read_journal(journal)
        self._order: list[str] = []
        self._instructions: dict[str, str] = {}  # lines by key

    def make(
        self, cases: Sequence[Case], repeat: int, tool: Tool, tick: Tick, teacher: ChatTeacher | None
    ) -> None:
        job = self._work.job
        settings = job.settings(repeat)

        def waiting() -> Iterator[tuple[Sample, Plan]]:
            for case in cases:
                yield from self._missing(case, repeat)
                tick(1, 0)

        for episode in trajectories(waiting(), tool, job.teaching, settings, job.batch_size, teacher):
            key = f"{episode.sample_id}#{episode.seed}"
            if episode.kind == UNREACHED and not job.keep_unreached:
                self._note(key, _left_out(key, UNREACHED, episode.message))
            else:
                self._note(key, episode_line(episode, "folder", self._out))
            tick(0, 1)

    def _missing(self, case: Case, repeat: int) -> Iterator[tuple[Sample, Plan]]:
        seed = self._work.job.seed + repeat
        try:
            planned = list(self._work.planned(case, repeat))
        except IbisError as error:
            key = f"{case.key}#{seed}"
            self._order.append(key)
            if key not in self._done:
                self._note(key, _left_out(key, "unreadable", str(error)))
            return
        for sample, made in planned:
            key = f"{sample.sample_id}#{seed}"
            self._order.append(key)
            if made.instruction is not None:
                facts = {"sample_id": sample.sample_id, "seed": seed, **made.instruction.record()}
                self._instructions[key] = json.dumps(facts, ensure_ascii=False) + "\n"
            if key not in self._done:
                yield sample, made

    def _note(self, key: str, line: str) -> None:
        self._done[key] = line
        self._journal.write(line.encode())
        self._journal.flush()

    def finish(self, index: int) -> None:
        """Write what was left out, then the shard: once it has its name, all of it is there."""
        lines = [self._done[key] for key in self._order]
        left = [line for line in lines if line.startswith(_LEFT_OUT)]
        if left:
            _replace(left_out_path(self._out, index), left)
        kept = [key for key in self._order if not self._done[key].startswith(_LEFT_OUT)]
        if self._work.job.wording is not None:
            said = [self._instructions[key] for key in kept if key in self._instructions]
            _replace(instructions_path(self._out, index), said)
        _replace(shard_path(self._out, index), [self._done[key] for key in kept])


# --- files ------------------------------------------------------------------------------------


def _left_out(key: str, why: str, detail: str) -> str:
    line = json.dumps({"left_out": key, "why": why, "detail": detail}, ensure_ascii=False) + "\n"
    assert line.startswith(_LEFT_OUT), "lines are told apart by how they begin"
    return line


def _read_journal(journal: BinaryIO) -> dict[str, str]:
    """Lines by key; a torn last line is cut off. The file stands at its end afterwards."""
    journal.seek(0)
    data = journal.read()
    whole = data[: data.rfind(b"\n") + 1]
    journal.truncate(len(whole))
    journal.seek(0, 2)
    return {_key(line): line + "\n" for line in whole.decode("utf-8").split("\n") if line}


def _key(line: str) -> str:
    record = json.loads(line)
    return str(record.get("left_out") or f"{record['sample_id']}#{record['seed']}")


def _replace(path: Path, lines: Sequence[str]) -> None:
    write_whole(path, "".join(lines))
