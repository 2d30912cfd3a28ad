"""What reinforcement learning plays on: questions drawn evenly from the sets, and held-out patients.

A draw is a function of (seed, round, place), whatever the number of processes. Targets that the
policy does not know are never asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError
from ibisagent.evaluation.cases import Task, plan, samples
from ibisagent.fingerprint import list_id
from ibisagent.seeding import generator_for, seed_for
from ibisagent.types import Episode, Policy, Sample, Tool

# how often a picture is changed by each kind of evaluation/perturb.py, at a random strength up to 1
AUGMENTATIONS = {"shift": 0.5, "rotation": 0.2, "contrast": 0.4, "noise": 0.2, "blur": 0.15}


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
    ) -> None:
        """`absent`: the share of questions for targets that are listed as absent, where any are.

        Validation is the data's "val" split or else a tenth of the training patients, who are then
        never trained on; without `validate` everything is. Raises InputError where nothing is left.
        """
        self._absent, self._augment, self._seed = absent, augment, seed
        reading = reading or Reading()
        how: dict[str, Any] = {"format": reading.format, "options": reading.read_options()}
        trained = plan(data, "train", absent="hard", hold_out=validate, **how)
        held = plan(data, "val", **how) if validate else None
        cases = [name for part in (trained, held) if part for task in part.tasks for name in task.case_ids()]
        self.digest = list_id(cases)  # of all cases
        self._options = trained.options
        present: dict[str, list[tuple[Task, str | None]]] = {}
        lost: dict[str, list[tuple[Task, str | None]]] = {}
        for task, target in _known(trained.tasks, policy):
            there = target in {own.name for own in task.entry.targets}
            pools = present if there else lost
            pools.setdefault(task.entry.dataset, []).append((task, target))
        self._present = [present[name] for name in sorted(present)]
        self._lost = [lost[name] for name in sorted(lost)]
        self._held = _known(held.tasks, policy) if held else []
        self._held_options = held.options if held else trained.options
        self.validation_sets = sorted({task.entry.dataset for task, _ in self._held})
        if not self._present or (validate and not self._held):
            raise InputError(
                "there are targets that the policy knows, for training and validation",
                f"{len(self._present)} and {len(self.validation_sets)} sets with some",
                "check DATA and --policy",
            )

    def draw(self, number: int, place: int) -> Sample:
        """The question at a place of a round."""
        rng = generator_for(self._seed, "question", number, place)
        pools = self._lost if self._lost and rng.random() < self._absent else self._present
        pool = pools[int(rng.integers(len(pools)))]
        task, target = pool[int(rng.integers(len(pool)))]
        sample = next(found for found in samples(task, self._options) if found.target == target)
        # a case that is drawn twice in a round is played with other seeds
        sample = replace(sample, sample_id=f"{sample.sample_id}~{place}")
        return self._changed(sample, rng) if self._augment else sample

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
        """Validation cases in a fixed order, at most `per_set` of each set; one process's share."""
        taken: dict[str, int] = {}
        kept = []
        for task, target in sorted(self._held, key=lambda case: seed_for("validation", *_id(case))):
            taken[task.entry.dataset] = taken.get(task.entry.dataset, 0) + 1
            if per_set is None or taken[task.entry.dataset] <= per_set:
                kept.append((task, target))
        for task, target in kept[rank::world]:
            yield next(found for found in samples(task, self._held_options) if found.target == target)

    def oracle_episodes(self, tool: Tool, per_set: int = 40) -> Iterator[Episode]:
        """The oracle's episodes on training cases, which say what can be reached with this tool."""
        from ibisagent.policies.scripted import RULES, ScriptedPolicy
        from ibisagent.rollout import collect, rollout
        from ibisagent.settings import Settings

        for pool in self._present:
            for task, target in pool[:: max(1, len(pool) // per_set)]:
                sample = next(found for found in samples(task, self._options) if found.target == target)
                if sample.truth is None:
                    continue
                policy = ScriptedPolicy("oracle", RULES["oracle"], {sample.sample_id: sample.truth})
                yield from collect(rollout([sample], policy, tool, Settings()))


def _known(tasks: Sequence[Task], policy: Policy) -> list[tuple[Task, str | None]]:
    """The targets that the policy knows; it reads the instruction as the data set words it."""
    return [
        (task, target)
        for task in tasks
        for target in task.targets
        if target is None or policy.supports(f"Find the {target} in this image.").known
    ]


def _id(case: tuple[Task, str | None]) -> tuple[str, str]:
    return case[0].entry.key, case[1] or ""
