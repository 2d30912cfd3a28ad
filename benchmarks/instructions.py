"""Instructions on real training data: how many of each kind, and whether each has one right answer.

    IBISAGENT_DATA=... python benchmarks/instructions.py [--share 0.2]

For every sample of the training split one instruction of each kind is made where there is one. Texts
of relations are read again, pixel by pixel, by tests/synthesis/instruction_oracle.py, which knows
nothing of how they were made; of the other kinds it is counted what the words can mean and what of
that is annotated. `understood` is the share that `ibisagent.targets.understand`, and with it the
embedded policy, reads as the target; `misread` the share that it takes for another one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "synthesis"))

from instruction_oracle import right_answers

from ibisagent.datasets.biomedparse import data_root, list_datasets
from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset
from ibisagent.seeding import generator_for
from ibisagent.synthesis.instructions import PRESENT, Instruction, Scene, instruct, scene_of
from ibisagent.synthesis.wording import contradiction
from ibisagent.targets import understand

KINDS = (*PRESENT, "absent", "contradictory")


@dataclass(frozen=True)
class Bench:
    """Count and check instructions on the training split."""

    sets: tuple[str, ...] = ()
    """only these"""
    share: float = 1.0
    """of the pictures of every set"""
    seed: int = 0
    """of what is drawn"""


def sound(made: Instruction, scene: Scene) -> bool:
    """Whether the text has the one right answer that it should have."""
    if made.kind == "relation":
        candidates, readings = right_answers(made.text, dict(scene.masks))
        known = all(name in scene.masks or name in scene.absent for name in candidates)
        return known and bool(readings) and all(reading == {made.target} for reading in readings)
    side = made.meaning.side
    meant = [name for name in made.meaning.candidates if side is None or name.startswith(side)]
    there = {name for name in meant if name in scene.masks}
    known = all(name in scene.masks or name in scene.absent or name in scene.impossible for name in meant)
    return known and there == ({made.target} if made.kind in PRESENT else set())


def main() -> None:
    bench = tyro.cli(Bench, description=__doc__)
    root = data_root()
    total: Counter[str] = Counter()
    read: dict[str, Counter[str]] = defaultdict(Counter)
    relations: Counter[str] = Counter()
    wrong = 0
    began = time.perf_counter()
    print(f"{'set':<16}{'samples':>8}" + "".join(f"{kind:>14}" for kind in KINDS))
    for name in bench.sets or list_datasets(root):
        options = ReadOptions(split="train")
        cases = open_dataset(root / name, None, options).cases
        counts: Counter[str] = Counter()
        samples_seen = 0
        for case in cases[: max(1, round(bench.share * len(cases)))]:
            samples = list(samples_of(case, options, absent=True))
            scene = scene_of(samples, case.absent)
            for sample in samples:
                target = sample.target
                assert target is not None and sample.truth is not None
                rng = generator_for(bench.seed, sample.sample_id, "bench")
                present = bool(sample.truth.any())
                samples_seen += present
                found = [instruct(scene, target, kind, rng) for kind in (PRESENT if present else ("absent",))]
                found += [contradiction(scene, target, rng)] if present else []
                for made in found:
                    if made is not None:
                        counts[made.kind] += 1
                        if not sound(made, scene):
                            wrong += 1
                            print(f"not sound: {made.text} ({made.target}, {sample.sample_id})")
                        relations[str(made.meaning.relation)] += made.kind == "relation"
                        seen = understand(made.text)
                        right = seen.target == made.target
                        read[made.kind][
                            "understood" if right else "misread" if seen.known else "refused"
                        ] += 1
        total += counts
        print(f"{name:<16}{samples_seen:>8}" + "".join(f"{counts[kind]:>14}" for kind in KINDS))
    print(f"{'all':<16}{'':>8}" + "".join(f"{total[kind]:>14}" for kind in KINDS))
    for kind in KINDS:
        shares = {what: count / max(total[kind], 1) for what, count in sorted(read[kind].items())}
        print(f"{kind:<14}" + ", ".join(f"{what} {share:.3f}" for what, share in shares.items()))
    print("relations: " + ", ".join(f"{what} {count}" for what, count in relations.most_common() if count))
    made_count = total.total()
    print(
        f"{made_count} instructions in {time.perf_counter() - began:.0f} s; without one right answer: {wrong}"
    )
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
