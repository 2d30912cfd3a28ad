"""The jobs of `synthesize` and `evaluate` over Ray: the one module that knows it.

Work is dealt in shares; each share is one Ray task on one core (and one GPU with `--device cuda`) that
streams its messages back, and Ray decides where it runs and repeats it where a node is lost. What a
share does is the code of the process engine, so results are equal. The environment variable
RAY_ADDRESS names a running cluster; without it Ray is started on this machine for the job. Data and
`--out` must lie at the same path on every node, and ibisagent must be installed there. Left out:
Ray Data, whose blocks are tables; our work is files that are already dealt out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibisagent.errors import IbisError, InputError, MissingExtraError, install

if TYPE_CHECKING:
    from ibisagent.evaluation.cases import Task
    from ibisagent.evaluation.workers import Done, Mark, Work
    from ibisagent.synthesis.shards import Job
    from ibisagent.synthesis.synthesize import Tick

_loaded: dict[str, Any] = {}  # in a Ray worker: the work and tool of the job it was last used for


def check_ray() -> None:
    """Raises MissingExtraError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise MissingExtraError("--engine ray needs Ray", None, install("ray")) from None


def write_shards(job: Job, pending: Sequence[int], out: Path, tick: Tick, workers: int) -> None:
    """Make the shards of a synthesis job, `workers` at a time; progress comes shard by shard."""
    shares = [(job, index, out) for index in pending]
    for cases, made in _stream(_write_shard, shares, workers, job.device):
        tick(cases, made)


def run_tasks(tasks: Sequence[Task], work: Work, workers: int) -> Iterator[Mark | Done]:
    """As `evaluation.workers.run_processes`, over `workers` Ray tasks."""
    shares = [(tasks[start::workers], work) for start in range(workers)]
    yield from _stream(_run_tasks, shares, workers, work.pair.device)


# --- in a Ray worker --------------------------------------------------------------------------


def _write_shard(job: Job, index: int, out: Path) -> Iterator[tuple[int, int]]:
    from ibisagent.synthesis.shards import Work, write_shard
    from ibisagent.tools import load_tool

    if _loaded.get("job") != job:  # Ray keeps its processes for further shards
        tool = load_tool(job.tool, device=job.device, point_to_box=job.point_to_box)
        _loaded.update(job=job, work=Work(job), tool=tool)
    done = [0, 0]

    def tick(cases: int, made: int) -> None:
        done[0] += cases
        done[1] += made

    write_shard(_loaded["work"], index, _loaded["tool"], out, tick)
    yield done[0], done[1]


def _run_tasks(tasks: Sequence[Task], work: Work) -> Iterator[Mark | Done]:
    from ibisagent.evaluation.workers import run_here

    yield from run_here(tasks, work)


def _guarded(function: Callable[..., Iterator[Any]], share: tuple[Any, ...]) -> Iterator[Any]:
    """One thread, as in the process engine; a fault that a person can mend comes back as a value."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield from function(*share)
    except IbisError as error:
        yield InputError(error.rule, None if error.value is None else str(error.value), error.fix)


# --- in this process --------------------------------------------------------------------------


def _stream(
    function: Callable[..., Iterator[Any]], shares: Iterable[tuple[Any, ...]], at_once: int, device: str
) -> Iterator[Any]:
    """The messages of all shares as they come. Raises InputError for a fault that a person can mend."""
    check_ray()
    import ray

    with _cluster(at_once):
        remote = ray.remote(num_cpus=1, num_gpus=int(device == "cuda"))(_guarded)
        waiting = iter(shares)
        running: list[Any] = []  # generators of references to messages
        try:
            while True:
                while len(running) < at_once and (share := next(waiting, None)) is not None:
                    running.append(remote.options(num_returns="streaming").remote(function, share))
                if not running:
                    return
                ready: Any = ray.wait(running, num_returns=1)[0][0]
                try:
                    message = ray.get(next(ready))
                except StopIteration:
                    running.remove(ready)
                    continue
                if isinstance(message, IbisError):
                    raise message
                yield message
        except ray.exceptions.RayTaskError:
            raise  # a fault of ours
        except ray.exceptions.RayError as error:
            raise InputError(
                "Ray's workers run to their end",
                type(error).__name__,
                "give them more memory or fewer --workers; the same command continues",
            ) from None
        finally:
            for task in running:
                ray.cancel(task, force=True)


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """A connection to Ray: one that is there, the cluster of RAY_ADDRESS, or a small one for the job."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    # a task that asked for no GPU sees those of its node, as a process does
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
    try:
        ray.init(
            include_dashboard=False if here else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **here,
        )
    except (ConnectionError, RuntimeError, OSError) as error:
        raise InputError("Ray can be reached or started", type(error).__name__, "see RAY_ADDRESS") from None
    try:
        yield
    finally:
        ray.shutdown()
