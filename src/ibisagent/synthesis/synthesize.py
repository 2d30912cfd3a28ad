"""`ibisagent synthesize DATA --out DIR`: training trajectories from anyone's masks.

The job is dealt to worker processes shard by shard; what is done is on disk at every moment, and
the same command continues after any end. Left out: several machines (run one job per part of the
data, or the exported shards of each).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import IbisError, InputError
from ibisagent.files import locked, out_folder, write_json

if TYPE_CHECKING:
    from ibisagent.synthesis.shards import Job, Work
    from ibisagent.synthesis.teacher import TeacherOptions

_SHARD_CASES = 64  # about so many pictures a shard


@dataclass(frozen=True)
class Synthesize(Reading):
    """Make training trajectories from a data set of pictures and masks."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder or its index file"""
    out: Path
    """folder for the trajectories; the same command continues what was interrupted"""
    split: str | None = "train"
    """only this split of the data set"""
    hold_out: bool = True
    """leave out the training patients, a tenth, that `train rl` and `evaluate --split val` validate on,
    where the data has no val split of its own"""
    instruction: str | None = None
    """the user's words, with {target} in them; by default "Find the {target} in this image." """
    instructions: tuple[str, ...] = ()
    """kinds of instruction with their shares, such as name:0.4 relation:0.3 absent:1; see docs/data.md"""
    tool: str = "embedded"
    """the segmentation tool that makes the masks; see `ibisagent segment --help`"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    point_to_box: float | None = None
    """let a tool that takes only boxes answer clicks with a box of so many percent of the sides"""
    stop_at: float = 0.80
    """IoU at which a trajectory ends"""
    max_turns: int = 20
    """at most so many turns"""
    clicks: Literal["centre", "component", "uniform", "jittered", "people"] = "centre"
    """how clicks are simulated"""
    undo: bool = True
    """take wrong clicks back with Undo; without it they are answered by opposite clicks"""
    plain: float = 0.5
    """share of trajectories that only click and stop"""
    self_correction: float = 0.2
    """share with a wrong click that is noticed and mended"""
    wrong_start: float = 0.1
    """share that begin from a mask on something else"""
    stop: float = 0.1
    """share that begin from a mask that is already good"""
    absent: float = 0.1
    """share on targets that are not in the picture"""
    teacher: str | None = None
    """MODEL@URL of an OpenAI-compatible endpoint that words the thoughts; by default templates do"""
    teacher_budget: tuple[int, int] = (10_000, 10_000_000)
    """at most so many calls and so many tokens (read and written) for the whole job; then templates"""
    teacher_rate: float = 5.0
    """at most so many calls a second"""
    allow_upload: bool = False
    """pictures may be sent to a teacher on another machine"""
    keep_unreached: bool = False
    """keep trajectories that never come to the IoU, as kind "unreached" """
    repeats: int = 1
    """trajectories for each picture and target"""
    limit: int | None = None
    """only so many pictures, for a trial"""
    workers: int = 1
    """processes; each loads the tool and uses one thread"""
    engine: Literal["process", "ray"] = "process"
    """who runs the workers: processes here, or Ray (the cluster of RAY_ADDRESS, or one made here)"""
    batch_size: int = 4
    """episodes that a worker runs at a time"""
    seed: int = 0
    """of everything that is drawn at random"""


def run(command: Synthesize) -> int:
    """Make or continue the trajectories; returns the exit code. Raises InputError."""
    from ibisagent import ray_engine
    from ibisagent.synthesis.manifest import MANIFEST, begin, summary
    from ibisagent.synthesis.shards import Work, shard_path
    from ibisagent.synthesis.teacher import Ledger, ledger_path

    for name in ("workers", "batch_size", "repeats", "every", "max_turns"):
        if getattr(command, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is at least 1", getattr(command, name))
    if command.limit is not None and command.limit < 1:
        raise InputError("--limit is at least 1", command.limit)
    if not 0 < command.stop_at <= 1:
        raise InputError("--stop-at lies above 0 and is at most 1", command.stop_at)
    if command.engine == "ray":
        ray_engine.check_ray()
        command = _absolute(command)
    job = job_of(command)
    work = Work(job)
    job = _dealt(job, work.count)
    work = Work(job)
    if not work.count:
        raise InputError("a data set has pictures", "none", "see `ibisagent data check`")
    for fault in work.dataset.faults[:5]:
        _say(f"{fault.kind}: {fault.where} ({fault.done})")
    if len(work.dataset.faults) > 5:
        _say(f"... and {len(work.dataset.faults) - 5} more; see `ibisagent data check`")
    out_folder(command.out)
    with locked(command.out):
        manifest = begin(command.out, work)
        pending = [index for index in range(job.shards) if not shard_path(command.out, index).exists()]
        if pending:
            cases = sum(len(work.shards[index]) for index in pending) * job.repeats
            with _shown(cases) as tick:
                if command.engine == "ray":
                    ray_engine.write_shards(job, pending, command.out, tick, command.workers)
                elif command.workers == 1:
                    _alone(work, pending, command.out, tick)
                else:
                    _together(job, pending, command.out, tick, min(command.workers, len(pending)))
        manifest |= summary(command.out, job.shards) | {"complete": True}
        if job.teacher is not None:
            manifest["teacher"] = Ledger(ledger_path(command.out)).counts()
        write_json(command.out / MANIFEST, manifest)
    counts = manifest["counts"]
    print(f"{counts['trajectories']} trajectories in {command.out}")
    _say(", ".join(f"{kind} {count}" for kind, count in counts["kinds"].items()))
    _say("".join(f"left out, {why}: {count}\n" for why, count in counts["left_out"].items()).rstrip())
    return 0


def _absolute(command: Synthesize) -> Synthesize:
    """Paths that do not depend on the folder in which a worker is started."""
    pictures = None if command.pictures is None else command.pictures.absolute()
    return replace(command, data=command.data.absolute(), out=command.out.absolute(), pictures=pictures)


def job_of(command: Synthesize) -> Job:
    """The job of a command line. Raises InputError for options that cannot be read."""
    from ibisagent.synthesis.shards import Job
    from ibisagent.synthesis.trajectories import Mix, Teaching
    from ibisagent.synthesis.wording import Wording

    mix = Mix(command.plain, command.self_correction, command.wrong_start, command.stop, command.absent)
    return Job(
        data=command.data,
        format=command.format,
        options=command.read_options(command.split, command.instruction),
        teaching=Teaching(command.stop_at, command.clicks, mix),
        tool=command.tool,
        device=command.device,
        point_to_box=command.point_to_box,
        undo=command.undo,
        max_turns=command.max_turns,
        repeats=command.repeats,
        keep_unreached=command.keep_unreached,
        batch_size=command.batch_size,
        hold_out=command.hold_out and command.split == "train",
        limit=command.limit,
        seed=command.seed,
        wording=Wording.parse(command.instructions) if command.instructions else None,
        teacher=_teacher(command),
    )


def _teacher(command: Synthesize) -> TeacherOptions | None:
    """The teacher's options. Raises InputError before anything is made where it may not be used."""
    from ibisagent.synthesis.teacher import TeacherOptions

    if command.teacher is None:
        return None
    options = TeacherOptions(
        command.teacher, *command.teacher_budget, command.teacher_rate, command.allow_upload
    )
    options.client().close()
    return options


def _dealt(job: Job, cases: int) -> Job:
    return replace(job, shards=max(1, -(-cases // _SHARD_CASES)))


# --- workers ----------------------------------------------------------------------------------

Tick = Callable[[int, int], None]


def _alone(work: Work, pending: list[int], out: Path, tick: Tick) -> None:
    from ibisagent.synthesis.shards import write_shard
    from ibisagent.tools import load_tool

    with _one_thread():
        tool = load_tool(work.job.tool, device=work.job.device, point_to_box=work.job.point_to_box)
        for index in pending:
            write_shard(work, index, tool, out, tick)


def _together(job: Job, pending: list[int], out: Path, tick: Tick, count: int) -> None:
    """Shards by worker processes; where one of them ends badly all are stopped and the run says so."""
    import multiprocessing
    import queue

    context = multiprocessing.get_context("spawn")
    tasks, said = context.Queue(), context.Queue()
    for index in [*pending, *[None] * count]:
        tasks.put(index)
    workers = [
        context.Process(target=_worker, args=(job, out, tasks, said), daemon=True) for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    finished = 0
    try:
        while finished < count:
            try:
                message = said.get(timeout=0.5)
            except queue.Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise InputError(
                        "workers run to their end",
                        "one was stopped or failed",
                        "give it more memory or fewer --workers; the same command continues",
                    ) from None
                continue
            if isinstance(message, IbisError):
                raise message
            if message is None:
                finished += 1
            else:
                tick(*message)
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()


def _worker(job: Job, out: Path, tasks: Any, said: Any) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    _end_with_parent()
    from ibisagent.synthesis.shards import Work, write_shard
    from ibisagent.tools import load_tool

    try:
        with _one_thread():
            work = Work(job)
            tool = load_tool(job.tool, device=job.device, point_to_box=job.point_to_box)
            while (index := tasks.get()) is not None:
                write_shard(work, index, tool, out, lambda cases, made: said.put((cases, made)))
        said.put(None)
    except IbisError as error:
        said.put(InputError(error.rule, error.value, error.fix))


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers: they watch for its end themselves."""
    import multiprocessing
    import os
    import threading
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by a parent"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch and OpenCV: workers share the cores, and sums do not depend on their number."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@contextlib.contextmanager
def _shown(cases: int) -> Iterator[Tick]:
    """Pictures done, trajectories made and a second: live on a terminal, else a line now and then."""
    from ibisagent.progress import Progress, open_screen

    made, began = 0, time.monotonic()
    with Progress(open_screen(), "pictures", cases, 0) as shown:

        def tick(more_cases: int, more_made: int) -> None:
            nonlocal made
            made += more_made
            rate = made / max(time.monotonic() - began, 1e-9)
            shown.advance(f"{made} trajectories, {rate:.1f} a second", more_cases)

        yield tick


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr)
