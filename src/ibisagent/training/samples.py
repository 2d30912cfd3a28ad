"""What reinforcement learning plays on: questions drawn evenly from the sets, and held-out patients.

A draw is a function of (seed, round, place), whatever the number of processes. Targets that the
policy does not know are never asked for. Whether a target is in a picture is known once its mask is
read: a draw, and validation, go on to the next case where it is not as they want it, or where the
files cannot be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.reading import Reading
from ibisagent.errors import IbisError, InputError
from ibisagent.evaluation.cases import Task, plan, samples
from ibisagent.fingerprint import list_id
from ibisagent.seeding import generator_for, seed_for
from ibisagent.types import Episode, Policy, Sample, Tool

# how often a picture is changed by each kind of evaluation/perturb.py, at a random strength up to 1
AUGMENTATIONS = {"shift": 0.5, "rotation": 0.2, "contrast": 0.4, "noise": 0.2, "blur": 0.15}
_TRIES = 1000  # cases that a draw looks at
_TRIES_IN_A_SET = 100  # before it draws another set
_TRIES_FOR_EMPTY = 4  # cases in which it looks for an empty mask where no target is listed as absent


class Drawer:
    """Training samples by (round, place), and the validation samples of a data set."""

    def __init__(
        self,
        data: Path,
        absent: float,
        augment: bool,
        policy: Policy,
        seed: int,
        reading: Reading | None = None,
        validate: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        """`absent`: the share of questions for targets that are not in the picture, where there are any.

        Validation is the data's "val" split or else a tenth of the training patients, who are then
        never trained on; without `validate` everything is. `say` is told, once, of every case whose files
        cannot be used. Raises InputError where nothing is left.
        """
        self._absent, self._augment, self._seed, self._say = absent, augment, seed, say
        reading = reading or Reading()
        how: dict[str, Any] = {"format": reading.format, "options": reading.read_options()}
        trained = plan(data, "train", absent="hard", hold_out=validate, **how)
        held = plan(data, "val", **how) if validate else None
        cases = [name for part in (trained, held) if part for task in part.tasks for name in task.case_ids()]
        self.digest = list_id(cases)  # of all cases
        self._options = trained.options
        self.unknown: Counter[str] = Counter()  # targets that the policy does not know: cases
        self.unusable: set[str] = set()  # case ids met so far whose files cannot be used
        self._empty: dict[str, bool] = {}  # case id -> whether its mask is, once it was read
        present: dict[str, list[Task]] = {}
        lost: dict[str, list[Task]] = {}
        for task in self._known(trained.tasks, policy):
            pools = present if task.entry.targets else lost
            pools.setdefault(task.entry.dataset, []).append(task)
        self._present = [present[name] for name in sorted(present)]
        self._lost = [lost[name] for name in sorted(lost)]
        self._held = self._known(held.tasks, policy) if held else []
        self._held_options = held.options if held else trained.options
        self.validation_sets = sorted({task.entry.dataset for task in self._held})
        if not self._present or (validate and not self._held):
            raise InputError(
                "there are targets that the policy knows, for training and validation",
                f"{len(self._present)} and {len(self.validation_sets)} sets with some",
                "check DATA and --policy",
            )

    def left_out(self) -> dict[str, int]:
        """How many cases are not played on, so far, by reason."""
        unknown = f"cases of targets that the policy does not know: {', '.join(sorted(self.unknown))}"
        found = {unknown: self.unknown.total(), "cases whose files cannot be used": len(self.unusable)}
        return {reason: count for reason, count in found.items() if count}

    def draw(self, number: int, place: int) -> Sample:
        """The question at a place of a round. Raises InputError where no case can be used for it."""
        rng = generator_for(self._seed, "question", number, place)
        absent = rng.random() < self._absent
        pools = self._lost if absent and self._lost else self._present
        pool: list[Task] = []
        for attempt in range(_TRIES):
            if attempt % _TRIES_IN_A_SET == 0:
                pool = pools[int(rng.integers(len(pools)))]
            task = pool[int(rng.integers(len(pool)))]
            empty = absent and (bool(self._lost) or attempt < _TRIES_FOR_EMPTY)
            sample = self._read(task, self._options, empty)
            if sample is not None:
                # a case that is drawn twice in a round is played with other seeds
                sample = replace(sample, sample_id=f"{sample.sample_id}~{place}")
                return self._changed(sample, rng) if self._augment else sample
        raise InputError(
            "training pictures can be read, and show targets",
            f"none among {_TRIES} that were drawn",
            "see `ibisagent data check`",
        )

    def _read(self, task: Task, options: ReadOptions, empty: bool = False) -> Sample | None:
        """The sample of a task of one target; None where its mask is not as wanted, or cannot be used."""
        [name] = task.case_ids()
        if name in self.unusable or self._empty.get(name, empty) != empty:
            return None
        try:
            sample = next(samples(task, options))
        except IbisError as error:
            self.unusable.add(name)
            target = f", {task.targets[0]}" if task.targets[0] else ""
            self._say(f"left out: {task.entry.where}{target}: {error}")
            return None
        self._empty[name] = sample.truth is None or not sample.truth.any()
        return sample if self._empty[name] == empty else None

    def _changed(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from ibisagent.evaluation.perturb import draw

        for kind, share in AUGMENTATIONS.items():
            wanted, strength, seed = rng.random(), float(rng.random()), int(rng.integers(2**31))
            if wanted < share:
                change = draw(kind, sample, strength, seed)
                changed = sample if change is None else change.apply(sample)
                if sample.truth is None or changed.truth is None or changed.truth.any() == sample.truth.any():
                    sample = changed
        return sample

    def validation(self, per_set: int | None, rank: int = 0, world: int = 1) -> Iterator[Sample]:
        """Cases that show their target, at most `per_set` of each set, in a fixed order; one process's share.

        Every process reads the others' cases too until it knows which of them show their target.
        """
        taken: Counter[str] = Counter()
        for task in sorted(self._held, key=_validation_order):
            name = task.entry.dataset
            if per_set is not None and taken[name] >= per_set:
                continue
            mine = taken.total() % world == rank
            seen = self._empty.get(task.case_ids()[0]) is False
            sample = self._read(task, self._held_options) if mine or not seen else None
            taken[name] += sample is not None or (seen and not mine)
            if mine and sample is not None:
                yield sample

    def oracle_episodes(self, tool: Tool, per_set: int = 40) -> Iterator[Episode]:
        """The oracle's episodes on training cases, which say what can be reached with this tool."""
        from ibisagent.policies.scripted import RULES, ScriptedPolicy
        from ibisagent.rollout import collect, rollout
        from ibisagent.settings import Settings

        for pool in self._present:
            step = max(1, len(pool) // per_set)
            spread = (task for first in range(step) for task in pool[first::step])
            found = (sample for task in spread if (sample := self._read(task, self._options)))
            for sample in islice(found, len(pool[::step])):
                assert sample.truth is not None, "a sample that shows its target has a true mask"
                policy = ScriptedPolicy("oracle", RULES["oracle"], {sample.sample_id: sample.truth})
                yield from collect(rollout([sample], policy, tool, Settings()))

    def _known(self, tasks: Sequence[Task], policy: Policy) -> list[Task]:
        """A task for each target that the policy knows; the cases of the others are counted.

        The policy reads the instruction as the data set words it.
        """
        known = []
        for task in tasks:
            for target in task.targets:
                if target is None or policy.supports(f"Find the {target} in this image.").known:
                    known.append(_only(task, target))
                elif any(own.name == target for own in task.entry.targets):
                    self.unknown[target] += 1
        return known


def _only(task: Task, target: str | None) -> Task:
    """The task of one target, so that no other mask is read; with a target where it is annotated."""
    own = tuple(found for found in task.entry.targets if found.name == target)
    entry = replace(task.entry, targets=own, absent=() if own or target is None else (target,))
    return replace(task, entry=entry, targets=(target,))


def _validation_order(task: Task) -> int:
    return seed_for("validation", task.entry.key, task.targets[0] or "")
