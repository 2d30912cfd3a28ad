"""`ibisagent train audit`: no scripted cheat may earn what the oracle earns.

Oracle and cheats (policies/scripted.py) play the same real samples through the true environment;
every episode is scored under the default profile and, beside it, under `paper`. The audit fails
where a cheat's 95 % interval reaches the oracle's under the default profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError
from ibisagent.rewards import PROFILES, score_episode
from ibisagent.seeding import seed_for

if TYPE_CHECKING:
    from rich.table import Table

    from ibisagent.datasets.cases import ReadOptions
    from ibisagent.evaluation.cases import Task
    from ibisagent.settings import Settings
    from ibisagent.types import Episode, Prompt, Sample, Tool, ToolReply, ToolRequest

Asked: TypeAlias = "tuple[Task, str | None]"  # a picture and which of its targets; None: the instruction's
ORACLE = "oracle"
NO_CHEATS = frozenset({ORACLE, "noisy-oracle"})  # rules that try their best
RESAMPLES = 2000


@dataclass(frozen=True)
class TrainAudit(Reading):
    """Check on real pictures that no scripted cheat earns as much reward as the oracle."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder, a folder of sets, or its index file"""
    samples: int = 240
    """how many, spread evenly over the sets"""
    absent: float = 0.15
    """the share of samples whose target is known not to be in the picture"""
    tool: str = "classical"
    """the tool that answers the clicks, as for segment"""
    start: Literal["none", "proposal"] = "none"
    """where episodes start"""
    max_turns: int = 20
    """at most so many turns"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    seed: int = 0
    """of the draw of samples, of the rules and of the intervals"""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Played:
    """One episode of one rule, as far as the audit needs it."""

    dataset: str
    patient: str
    rewards: Mapping[str, float] | None  # by profile; None: the episode is excluded
    iou: float
    turns: int
    terminated: bool


@dataclass(frozen=True)
class Row:
    """One rule over all samples."""

    rule: str
    rewards: Mapping[str, Estimate]  # by profile
    iou: float
    turns: float
    terminated: float  # share
    excluded: int  # episodes that ended by an outside fault


def run(command: TrainAudit) -> int:
    """Play, print the table, and return 0 where the default profile holds, else 1.

    Raises InputError for data or a tool that cannot be used.
    """
    from rich.console import Console

    from ibisagent.evaluation.cases import plan
    from ibisagent.policies.scripted import RULES
    from ibisagent.progress import Progress, open_screen
    from ibisagent.settings import Settings
    from ibisagent.tools import load_tool
    from ibisagent.types import BASE_VERBS, Verb

    if command.samples < 1 or not 0 <= command.absent < 1 or command.max_turns < 1:
        raise InputError(
            "--samples and --max-turns are at least 1, --absent is a share below 1",
            f"{command.samples}, {command.max_turns}, {command.absent:g}",
        )
    found = plan(command.data, "train", absent="hard", format=command.format, options=command.read_options())
    cases = draw_cases(found.tasks, found.options, command.samples, command.absent, command.seed)
    settings = Settings(
        max_turns=command.max_turns,
        verbs=BASE_VERBS | {Verb.UNDO},
        start=command.start,
        seed=command.seed,
    )
    rules = [rule for rule in RULES if rule == ORACLE or rule not in NO_CHEATS]
    tool = load_tool(command.tool, device=command.device)
    with Progress(open_screen(), "samples", len(cases), 0) as progress:
        played = play(_read(progress.over(cases), found.options), rules, tool, settings)
    rows = [summarise(rule, played[rule], command.seed) for rule in rules]
    absent = sum(not _is_there(case) for case in cases)
    console = Console(width=120, highlight=False)
    console.print(
        f"{len(cases)} training samples of {len({task.entry.dataset for task, _ in cases})} sets, "
        f"{absent} of them absent targets; tool {tool.name}, start {command.start}, "
        f"at most {command.max_turns} turns, seed {command.seed}"
    )
    console.print(_table(rows))
    winners = cheats_that_win(rows, "shaped")
    shown = ", ".join(winners) or "none"
    console.print(f"shaped (default): cheats whose interval reaches the oracle's: {shown}")
    console.print(f"paper (for comparison): {', '.join(cheats_that_win(rows, 'paper')) or 'none'}")
    return 1 if winners else 0


# --- samples ------------------------------------------------------------------------------------


def draw_cases(
    tasks: Sequence[Task], options: ReadOptions, count: int, absent: float, seed: int
) -> list[Asked]:
    """`count` questions, each a picture and one of its targets.

    Present targets come evenly from all sets; absent ones, a share of `absent`, evenly from those
    sets whose index lists any, where none does only present ones are drawn. Masks are read: targets
    that are not what the index says of them, and broken files, are passed over. Which is a function
    of `seed` and the question alone. Raises InputError where there are too few.
    """
    present: dict[str, list[Asked]] = {}
    missing: dict[str, list[Asked]] = {}
    for task in tasks:
        for target in task.targets:
            pools = present if _is_there((task, target)) else missing
            pools.setdefault(task.entry.dataset, []).append((task, target))
    lost = _evenly(missing, round(count * absent), options, seed)
    drawn = _evenly(present, count - len(lost), options, seed) + lost
    if len(drawn) < count:
        raise InputError("the data must hold enough training cases", len(drawn), f"ask for less than {count}")
    return drawn


def _is_there(case: Asked) -> bool:
    return case[1] in {target.name for target in case[0].entry.targets}


def _evenly(pools: Mapping[str, list[Asked]], count: int, options: ReadOptions, seed: int) -> list[Asked]:
    """Up to `count` cases, one from each pool by turns, in an order keyed by seed and case."""
    queues = [
        sorted(pool, key=lambda case: seed_for(seed, "audit", case[0].entry.key, case[1] or ""))
        for _, pool in sorted(pools.items())
    ]
    drawn: list[Asked] = []
    while len(drawn) < count and any(queues):
        for queue in queues:
            while queue and not _is_as_listed(queue[-1], options):
                queue.pop()
            drawn += [queue.pop()] if queue else []
    return drawn[:count]


def _is_as_listed(case: Asked, options: ReadOptions) -> bool:
    """Whether the mask can be read and says of the target's presence what the index says."""
    try:
        [sample] = _read([case], options)
    except InputError:
        return False
    assert sample.truth is not None, "data sets bring true masks"
    return bool(sample.truth.any()) == _is_there(case)


def _read(cases: Iterable[Asked], options: ReadOptions) -> Iterator[Sample]:
    from ibisagent.evaluation.cases import samples

    for task, target in cases:
        yield next(sample for sample in samples(task, options) if sample.target == target)


# --- playing ------------------------------------------------------------------------------------


def play(
    samples: Iterable[Sample], rules: Sequence[str], tool: Tool, settings: Settings
) -> dict[str, list[Played]]:
    """Every rule on every sample, sample by sample: episodes by rule, in the order of the samples."""
    from ibisagent.policies.scripted import RULES, ScriptedPolicy
    from ibisagent.rollout import collect, rollout
    from ibisagent.types import View

    played: dict[str, list[Played]] = {rule: [] for rule in rules}
    for sample in samples:
        assert sample.truth is not None, "data sets bring true masks"
        remembered = _Remembered(tool)
        for rule in rules:
            policy = ScriptedPolicy(rule, RULES[rule], {sample.sample_id: sample.truth})
            policy.view = View(max_pixels=1024)  # rules read the mask in the picture frame, no picture
            [episode] = collect(rollout([sample], policy, remembered, settings))
            played[rule].append(_played(sample, episode))
    return played


def _played(sample: Sample, episode: Episode) -> Played:
    from ibisagent.masks import iou
    from ibisagent.types import EpisodeStatus

    assert sample.truth is not None
    scored = {name: score_episode(episode, profile).total for name, profile in PROFILES.items()}
    rewards = {name: total for name, total in scored.items() if total is not None}
    last = episode.turns[-1].mask if episode.turns else None
    return Played(
        dataset=sample.dataset or "",
        patient=sample.patient or sample.sample_id,
        rewards=rewards or None,
        iou=iou(np.zeros_like(sample.truth) if last is None else last, sample.truth),
        turns=len(episode.turns),
        terminated=episode.status is EpisodeStatus.TERMINATED,
    )


class _Remembered:
    """A tool that answers the same request once: many rules begin with the same clicks."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self.name = tool.name
        self.prompts: frozenset[Prompt] = tool.prompts
        self.set_image = tool.set_image
        self.propose = tool.propose
        self.fingerprint = tool.fingerprint
        self._replies: dict[tuple[object, ...], ToolReply] = {}

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: ToolRequest) -> ToolReply:
        arrays = [
            None if array is None else array.tobytes()
            for array in (request.low_res_logits, request.start_mask)
        ]
        picture = request.picture
        seen = (picture.content_id, picture.spacing, picture.laterality)
        key = (*seen, request.clicks, request.boxes, request.instruction, *arrays)
        if key not in self._replies:
            [reply] = self._tool.predict([request])
            if reply.error is not None:
                return reply
            self._replies[key] = reply
        return self._replies[key]


# --- summing up ---------------------------------------------------------------------------------


def estimate(values: Sequence[float], sets: Sequence[str], patients: Sequence[str], seed: int) -> Estimate:
    """Mean over cases with the 95 % percentile bootstrap over patients, stratified by set.

    The three sequences run in parallel, one entry a case, at least one. With a single patient both
    ends are the mean.
    """
    from ibisagent.evaluation.intervals import Resampler, mean, mean_columns

    found = Resampler(sets, patients, RESAMPLES, seed).interval(mean_columns(values), mean)
    assert found.value is not None, "there is at least one case"
    if found.low is None or found.high is None:  # a single patient
        return Estimate(found.value, found.value, found.value)
    return Estimate(found.value, found.low, found.high)


def summarise(rule: str, played: Sequence[Played], seed: int) -> Row:
    """One row of the table. Raises InputError where no episode could be scored."""
    counted = [(one, one.rewards) for one in played if one.rewards is not None]
    if not counted:
        raise InputError(
            "the audit needs episodes that end by the policy", "tool errors only", "check --tool"
        )
    sets, patients = [one.dataset for one, _ in counted], [one.patient for one, _ in counted]
    return Row(
        rule=rule,
        rewards={
            profile: estimate([rewards[profile] for _, rewards in counted], sets, patients, seed)
            for profile in PROFILES
        },
        iou=float(np.mean([one.iou for one, _ in counted])),
        turns=float(np.mean([one.turns for one, _ in counted])),
        terminated=float(np.mean([one.terminated for one, _ in counted])),
        excluded=len(played) - len(counted),
    )


def cheats_that_win(rows: Sequence[Row], profile: str) -> list[str]:
    """The rules whose interval reaches the oracle's; the first row is the oracle's."""
    oracle = rows[0]
    assert oracle.rule == ORACLE, "the oracle comes first"
    bar = oracle.rewards[profile].low
    return [row.rule for row in rows[1:] if row.rewards[profile].high >= bar]


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table("rule", "reward, shaped", "reward, paper", "IoU", "turns", "terminated", "excluded")
    winners = {profile: cheats_that_win(rows, profile) for profile in rows[0].rewards}
    for row in rows:
        rewards = [
            f"{row.rewards[profile]}{' !' if row.rule in winners[profile] else ''}"
            for profile in ("shaped", "paper")
        ]
        figures = f"{row.iou:.3f}", f"{row.turns:.1f}", f"{row.terminated:.0%}", str(row.excluded)
        table.add_row(row.rule, *rewards, *figures)
    return table
