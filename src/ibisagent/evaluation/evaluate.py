"""`ibisagent evaluate`: every case of a data set through the one loop, then summary and report.

Left out on purpose: training, choosing of anything, and resizing of masks.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import IbisError, InputError
from ibisagent.files import out_folder, write_json
from ibisagent.pair import STARTS, PairOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ibisagent.evaluation.cases import Plan, Task
    from ibisagent.evaluation.collector import Policies
    from ibisagent.evaluation.perturb import Perturbation
    from ibisagent.evaluation.scoring import CaseScore
    from ibisagent.evaluation.workers import Done, Mark, Work, Wrap

_MOST_UNANSWERED = 20  # cases in a row that policy or tool do not answer at all


@dataclass(frozen=True)
class Evaluate(Reading):
    """Measure a policy and a tool on data sets: samples.jsonl, summary.json and report.html."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder, a folder of sets, or its index file"""
    split: str = "test"
    """test, train, val or all; where the data has no val, it is a tenth of the training patients"""
    out: Path = Path("ibisagent-evaluation")
    """folder for the results; the same command continues a run that was stopped"""
    datasets: tuple[str, ...] = ()
    """only these sets"""
    per_set: int | None = None
    """at most so many cases of each set, drawn by hash"""
    absent: Literal["none", "hard", "easy", "both"] = "none"
    """ask also for absent targets: hard, those that the data set lists as absent from the picture; easy, one
    target of another set that shows another part of the body"""
    without: tuple[str, ...] = ()
    """targets that are not asked for"""
    perturb: str | None = None
    """change every picture or instruction: noise, blur, contrast, rotation, shift, mirror, paraphrase,
    wrong-place, denied, contradictory or wrong-first-click"""
    strength: float = 1.0
    """of --perturb; 0 changes nothing"""
    instruction: str = "Find the {target} in this image."
    """what is asked; {target} is filled in"""
    batch_size: int = 8
    """episodes that advance together"""
    workers: int = 1
    """processes; more than one use one thread each"""
    engine: Literal["process", "ray"] = "process"
    """who runs the workers: processes here, or Ray (the cluster of RAY_ADDRESS, or one made here)"""
    shard: str | None = None
    """k/n: only the k-th of n shares of the pictures; shares in one folder make one result"""
    empty: Literal["one", "zero", "skip"] = "one"
    """what IoU and Dice are where both masks are empty"""
    missing: Literal["zero", "skip"] = "zero"
    """what a case without a prediction counts"""
    reproduce: Literal["paper"] | None = None
    """print the paper's Table 1 with our figures beside; DATA then holds BiomedParseData or MeCoVQA"""
    pair: Annotated[PairOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PairOptions)


def run(command: Evaluate) -> int:
    """Run what is not done yet, then write summary and report.

    Returns the exit code: 0, or 3 where cases got no answer; the same command asks these again.
    Raises InputError for options or data that cannot be used, or a folder of another run.
    """
    from ibisagent.evaluation.screen import show_unanswered
    from ibisagent.progress import open_screen

    if command.reproduce is not None:
        from ibisagent.evaluation import paper

        return paper.run(command)
    screen = open_screen()
    summary = evaluate(command, screen)
    if summary is not None:
        from ibisagent.evaluation.screen import show

        show(summary, screen)
        for name in ("samples.jsonl", "summary.json", "report.html"):
            if (command.out / name).exists():
                print(f"{name.partition('.')[0]}: {command.out / name}")
    return show_unanswered([command.out], screen, _own_cases(command))


def _own_cases(command: Evaluate) -> frozenset[str] | None:
    """The cases of the shard that a command runs; None: it runs all."""
    from ibisagent.evaluation.cases import shard

    share = _shard(command)
    if share is None:
        return None
    return frozenset(name for task in shard(plan_of(command).tasks, *share) for name in task.case_ids())


def evaluate(
    command: Evaluate, screen: Console | None = None, wrap: Wrap | None = None
) -> dict[str, Any] | None:
    """The summary of a run, made as far as it was not there; None while other shards are missing.

    `wrap` puts a baseline around the policy (module-level, since worker processes load it).
    """
    from ibisagent.evaluation.cases import shard
    from ibisagent.evaluation.samples import claim, mend, read_asked, samples_file
    from ibisagent.evaluation.workers import Work
    from ibisagent.fingerprint import list_id

    share = _shard(command)
    _check(command)
    if command.engine == "ray":  # its workers may be started in another folder
        from ibisagent.ray_engine import check_ray

        check_ray()
        pictures = None if command.pictures is None else command.pictures.absolute()
        command = replace(command, data=command.data.absolute(), pictures=pictures)
    change = _perturbation(command)
    if change is not None and change.wraps:
        from ibisagent.evaluation.perturb import WrongFirstClick

        if wrap is not None:
            raise InputError("a wrong first click is put before the agent alone", change.kind)
        wrap = WrongFirstClick
    planned = plan_of(command)
    tasks, cases = planned.tasks, sorted(name for task in planned.tasks for name in task.case_ids())
    out_folder(command.out)
    facts = {
        "split": command.split,
        "cases": len(cases),
        "case_list": list_id(cases),
        "instruction": command.instruction,
        "reading": planned.options.record(),
        "index_faults": planned.faults,
        **({} if change is None else {"perturbation": change.record()}),
    }
    claim(command.out, "data", facts)
    file = samples_file(command.out, share)
    mend(file)
    done, silent = read_asked(command.out)
    waiting = _waiting(tasks if share is None else shard(tasks, *share), {score.case for score in done})
    waiting.sort(key=lambda task: silent.issuperset(task.case_ids()))  # what was never asked comes first
    began = time.perf_counter()
    work = Work(command.pair, planned.options, command.batch_size, wrap, change)
    _finish(command, waiting, file, done, silent, screen, work)
    seconds = time.perf_counter() - began
    count = sum(len(task.targets) for task in waiting)
    return _write_summary(command, cases, planned, change, (count, seconds), screen)


def plan_of(command: Evaluate) -> Plan:
    """The cases that a command asks for. Raises InputError for data that cannot be read."""
    from ibisagent.evaluation.cases import plan

    return plan(
        command.data,
        command.split,
        command.datasets,
        absent=command.absent,
        without=command.without,
        per_set=command.per_set,
        format=command.format,
        options=command.read_options(instruction=command.instruction),
    )


def _perturbation(command: Evaluate) -> Perturbation | None:
    from ibisagent.evaluation.perturb import Perturbation

    if command.perturb is None:
        return None
    return Perturbation(command.perturb, command.strength, command.pair.seed)


def _check(command: Evaluate) -> None:
    for name, value in (("batch-size", command.batch_size), ("workers", command.workers)):
        if value < 1:
            raise InputError(f"--{name} is at least 1", value)
    if command.per_set is not None and command.per_set < 1:
        raise InputError("--per-set is at least 1", command.per_set)
    if command.pair.start not in STARTS:
        raise InputError("a data set has no one mask to begin from", "a file", f"--start {', '.join(STARTS)}")
    if command.pair.policy == "human":
        raise InputError("a whole data set is not asked of a person", "human", "name another --policy")


def _shard(command: Evaluate) -> tuple[int, int] | None:
    if command.shard is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", command.shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError("--shard is k/n with 1 <= k <= n", command.shard, "write for example 1/4")
    return int(match[1]), int(match[2])


def _waiting(tasks: Sequence[Task], done: set[str]) -> list[Task]:
    """What is left of the tasks when finished cases are taken out."""
    left = [
        replace(
            task,
            targets=tuple(
                target for target, name in zip(task.targets, task.case_ids(), strict=True) if name not in done
            ),
        )
        for task in tasks
    ]
    return [task for task in left if task.targets]


def _finish(
    command: Evaluate,
    waiting: Sequence[Task],
    file: Path,
    done: Sequence[CaseScore],
    silent: Collection[str],
    screen: Console | None,
    work: Work,
) -> None:
    """Run the waiting cases and write each line as it comes. The pair is checked in any case.

    Cases that were asked before and stayed `silent` may all fail again.
    """
    from ibisagent.evaluation.collector import Policies
    from ibisagent.evaluation.samples import claim
    from ibisagent.evaluation.workers import Mark, run_here, run_processes

    count = sum(len(task.targets) for task in waiting)
    workers = min(command.workers, len(waiting))
    if command.engine == "ray" and waiting:
        from ibisagent.ray_engine import run_tasks

        messages = run_tasks(waiting, work, workers)
    else:
        messages = run_processes(waiting, work, workers) if workers > 1 else run_here(waiting, work)
    # A case may fail for its own sake, but not every one of a run that has just begun.
    most = _MOST_UNANSWERED if done else min(count, _MOST_UNANSWERED)
    held: list[str] = []
    with file.open("ab", buffering=0) as lines:
        for message in _shown(messages, count, done, screen, Policies(command.empty, command.missing)):
            if isinstance(message, Mark):
                claim(command.out, "pair", message.facts)
            elif message.silent is None or message.score.case in silent:
                lines.write("".join([*held, message.line]).encode())
                held.clear()
            else:
                held.append(message.line)
                if len(held) == most:
                    raise IbisError(
                        "policy and tool answer",
                        f"{most} cases in a row without an answer, the last one: {message.silent}",
                        "mend what that says and run the same command: these cases are then run again",
                    )
        lines.write("".join(held).encode())


def _shown(
    messages: Iterator[Mark | Done],
    count: int,
    done: Sequence[CaseScore],
    screen: Console | None,
    policies: Policies,
) -> Iterator[Mark | Done]:
    """The messages, with progress: done, time left, rate, and the table's mean IoU of what is there."""
    from ibisagent.evaluation.collector import Collector
    from ibisagent.evaluation.workers import Done
    from ibisagent.progress import Progress

    def counted(cases: Sequence[CaseScore]) -> list[float]:
        found = Collector(cases, policies)
        pairs = zip(found.overlaps("iou"), found.reasons, strict=True)
        return [value for value, reason in pairs if value is not None and not reason]

    ious = counted(done)
    finished, began = 0, time.perf_counter()
    with Progress(screen, "cases", len(done) + count, len(done)) as shown:
        for message in messages:
            yield message
            if isinstance(message, Done):
                finished += 1
                ious += counted([message.score])
                mean = f", mean IoU {sum(ious) / len(ious):.3f}" if ious else ""
                shown.advance(f"{finished / (time.perf_counter() - began):.2f}/s{mean}")


def _write_summary(
    command: Evaluate,
    planned: Sequence[str],
    plan: Plan,
    change: Perturbation | None,
    timing: tuple[int, float],
    screen: Console | None,
) -> dict[str, Any] | None:
    """Summary and report, once every planned case is there."""
    from ibisagent.evaluation.collector import Policies
    from ibisagent.evaluation.report import evaluation_html
    from ibisagent.evaluation.samples import read_run, read_scores
    from ibisagent.evaluation.summary import SCHEMA, summarize
    from ibisagent.rollout import host_record

    scores = read_scores(command.out)
    missing = len(planned) - len({score.case for score in scores} & set(planned))
    if missing:
        if screen is not None:
            screen.print(
                f"{missing} of {len(planned)} cases belong to other shards; the summary comes with the last"
            )
        return None
    scores = [score for score in scores if score.case in set(planned)]
    count, seconds = timing
    summary = {
        "schema": SCHEMA,
        "run": read_run(command.out),
        **summarize(scores, Policies(command.empty, command.missing)),
        "times": {
            "cases_of_last_call": count,
            "seconds_of_last_call": round(seconds, 3),
            "workers": command.workers,
            "batch_size": command.batch_size,
            "peak_memory_of_one_process_mb": _peak_memory(),
        },
        "host": host_record(),
    }
    write_json(command.out / "summary.json", summary)
    page = evaluation_html(summary, command.out, plan.tasks, command.instruction, (plan.options, change))
    (command.out / "report.html").write_text(page, encoding="utf-8")
    return summary


def _peak_memory() -> float | None:
    """Megabytes of the largest process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)
