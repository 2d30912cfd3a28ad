"""Runs cases through the one loop, in this process or in several, and gives one line per case.

A case's line depends on the case alone: policies and tools make replies that do not depend on
their batch, and seeds are keyed by case. So a run that was killed, sharded or spread over
processes gives the same lines, in another order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from ibisagent.agent import Agent
from ibisagent.datasets.cases import ReadOptions
from ibisagent.episodes import episode_line
from ibisagent.errors import IbisError, InputError
from ibisagent.evaluation import scoring
from ibisagent.evaluation.cases import Task, case_id, samples
from ibisagent.evaluation.perturb import Perturbation
from ibisagent.evaluation.scoring import CaseScore
from ibisagent.fingerprint import fingerprint
from ibisagent.pair import PairOptions, load_pair
from ibisagent.types import Mask, Policy, Sample

_POLL = 1.0  # seconds between looks at whether the other side still lives

Wrap = Callable[[Policy, dict[str, Mask]], Policy]  # what a baseline puts around the policy


@dataclass(frozen=True)
class Work:
    """How every case is run. Pickled to the worker processes."""

    pair: PairOptions
    options: ReadOptions  # how pictures and masks are read, and what is asked
    batch_size: int = 8
    wrap: Wrap | None = None  # a module-level callable, or a dataclass with __call__
    change: Perturbation | None = None  # of every sample


@dataclass(frozen=True)
class Mark:
    """What made the cases: agrees between all runs that share a folder."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """One finished case."""

    score: CaseScore
    line: str  # JSON, newline included
    silent: str | None = None  # why policy or tool did not answer; None for a picture that cannot be read


class _Truths(dict[str, Mask]):
    """True masks by case, filled while the run goes on; so never taken for "none given"."""

    def __bool__(self) -> bool:
        return True


def run_here(tasks: Iterable[Task], work: Work) -> Iterator[Mark | Done]:
    """The mark of the pair first, then each case as it ends."""
    truths = _Truths()
    agent = load_pair(work.pair, truths)
    if work.wrap is not None:
        agent = Agent(work.wrap(agent.policy, truths), agent.tool, agent.settings)
    yield Mark(_mark(agent))
    failed: list[Done] = []
    origins: dict[str, Task] = {}

    def feed() -> Iterator[Sample]:
        for task in tasks:
            try:
                found = list(samples(task, work.options))  # a picture is read whole or not
            except (InputError, OSError, ValueError) as error:
                failed.extend(_unreadable(task, error))
                continue
            for sample in found:
                sample = sample if work.change is None else work.change(sample)
                assert sample.truth is not None
                truths[sample.sample_id] = sample.truth
                origins[sample.sample_id] = task
                yield sample

    for event in agent.stream(feed(), batch_size=work.batch_size):
        yield from failed
        failed.clear()
        if event.episode is not None:
            name = event.sample.sample_id
            task = origins.pop(name)
            words = work.change is not None and work.change.kind == "contradictory"
            absence = "contradictory" if words else task.absence(event.sample.target)
            scored = scoring.score(event.sample, task.patient, event.episode, absence)
            episode = json.loads(episode_line(replace(event.episode, truth=truths.pop(name)), "none"))
            record = {**scoring.to_record(scored), "episode": episode}
            yield Done(scored, _line(record), scoring.unanswered(record))
    yield from failed


def run_processes(tasks: Iterable[Task], work: Work, workers: int) -> Iterator[Mark | Done]:
    """As `run_here`, over `workers` processes of one thread each; every process sends its mark.

    Raises IbisError where a process dies or meets one; nothing that was yielded is lost.
    """
    context = multiprocessing.get_context("spawn")
    inbox: Any = context.Queue()
    outbox: Any = context.Queue()
    for task in [*tasks, *[None] * workers]:
        inbox.put(task)
    with _one_thread():
        processes = [
            context.Process(target=_work, args=(inbox, outbox, work), daemon=True) for _ in range(workers)
        ]
        for process in processes:
            process.start()
    running = workers
    try:
        while running:
            try:
                message = outbox.get(timeout=_POLL)
            except queue.Empty:
                _check(processes)
                continue
            if message is None:
                running -= 1
            elif isinstance(message, Mark | Done):
                yield message
            elif isinstance(message, IbisError):
                raise message
            else:
                raise RuntimeError(f"a worker process failed:\n{message}")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        inbox.cancel_join_thread()


def _work(inbox: Any, outbox: Any, work: Work) -> None:
    """What a worker process does. Ends when its parent is gone."""
    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for message in run_here(_tasks(inbox), work):
            outbox.put(message)
    except IbisError as error:
        outbox.put(error)
    except Exception:
        outbox.put(traceback.format_exc())
    outbox.put(None)


def _tasks(inbox: Any) -> Iterator[Task]:
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            task = inbox.get(timeout=_POLL)
        except queue.Empty:
            continue
        if task is None:
            return
        yield cast(Task, task)


def _check(processes: list[Any]) -> None:
    for process in processes:
        if process.exitcode not in (None, 0):
            raise IbisError(
                "worker processes run to their end",
                f"exit code {process.exitcode}",
                "run the same command again to continue; if memory was short, with fewer --workers",
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started within use one thread for their arithmetic."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _mark(agent: Agent) -> dict[str, Any]:
    settings = agent.settings
    made = fingerprint(
        agent.policy, agent.tool, settings.system_text, settings.verbs, settings.history, settings.style
    )
    record = {**settings.record(), "start": settings.start, "seed": settings.seed}
    facts = {"policy": agent.policy.name, "tool": agent.tool.name, "settings": record, "fingerprint": made}
    return cast(dict[str, Any], json.loads(json.dumps(facts)))


def _unreadable(task: Task, error: Exception) -> Iterator[Done]:
    """The lines of a picture that cannot be read; the reason names no file."""
    reason = error.rule if isinstance(error, InputError) else "the picture is a readable file"
    entry = task.entry
    for target in task.targets:
        facts = {
            "case": case_id(entry, target),
            "dataset": entry.dataset,
            "split": entry.split,
            "target": target or "",
            "modality": entry.modality,
            "site": entry.site,
            "patient": task.patient,
        }
        scored = scoring.unreadable(facts, reason)
        yield Done(scored, _line({**scoring.to_record(scored), "episode": None}))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
