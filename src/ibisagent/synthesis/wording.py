"""Which kind of instruction each sample of a job gets: `--instructions KIND:SHARE ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from ibisagent.errors import InputError
from ibisagent.seeding import generator_for
from ibisagent.synthesis.instructions import PRESENT, Instruction, InstructionKind, Scene, instruct, sided
from ibisagent.types import Sample


@dataclass(frozen=True)
class Wording:
    """Shares of the kinds; those for targets that are there and those of the others are drawn apart."""

    shares: tuple[tuple[InstructionKind, float], ...]

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> Wording:
        """From KIND:SHARE. Raises InputError for unknown kinds and shares that are none."""
        shares: dict[InstructionKind, float] = {}
        for pair in pairs:
            kind, _, share = pair.partition(":")
            try:
                value = float(share)
            except ValueError:
                value = float("nan")
            if kind not in get_args(InstructionKind) or kind in shares or not 0 <= value < float("inf"):
                raise InputError(
                    "--instructions are KIND:SHARE, each kind once",
                    repr(pair),
                    f"kinds are {', '.join(get_args(InstructionKind))}; write for example relation:0.3",
                )
            shares[kind] = value  # type: ignore[index]
        if not sum(shares.values()) > 0:
            raise InputError("one kind of instruction has a share above 0", " ".join(pairs))
        return cls(tuple(sorted(shares.items())))

    @property
    def contradictory(self) -> float:
        """How many of the instructions with the answer "absent" are contradictory, from 0 to 1."""
        shares = dict(self.shares)
        both = shares.get("absent", 0.0) + shares.get("contradictory", 0.0)
        return shares.get("contradictory", 0.0) / both if both else 0.0

    def for_present(self, scene: Scene, target: str, rng: np.random.Generator) -> Instruction:
        """An instruction for an annotated target; kinds that it cannot have leave their share to others."""
        shares = {kind: share for kind, share in self.shares if kind in PRESENT and share > 0}
        while shares:
            kinds, weights = list(shares), np.array(list(shares.values()))
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            made = instruct(scene, target, kind, rng)
            if made is not None:
                return made
            del shares[kind]
        made = instruct(scene, target, "name", rng)
        assert made is not None, "a name always says what is annotated"
        return made

    def for_absent(self, scene: Scene, target: str, rng: np.random.Generator) -> Instruction:
        """An instruction for a target known not to be there."""
        made = instruct(scene, target, "absent", rng)
        assert made is not None, "a name always says what is known to be absent"
        return made


def contradiction(scene: Scene, target: str, rng: np.random.Generator) -> Instruction | None:
    """A contradictory instruction that begins from an annotated target; None where the scene gives none.

    For a sided organ its wrong side, else (and for half of those) something of another body region.
    """
    if sided(target) and (not scene.impossible or rng.random() < 0.5):
        made = instruct(scene, target, "contradictory", rng)
        if made is not None:
            return made
    if not scene.impossible:
        return None
    return instruct(scene, scene.impossible[int(rng.integers(len(scene.impossible)))], "contradictory", rng)


def worded(
    sample: Sample, scene: Scene, wording: Wording, seed: int, *, opposed: bool = False
) -> tuple[Sample, Instruction] | None:
    """The sample with an instruction drawn from (seed, sample id); with `opposed` a contradictory one.

    A contradictory sample has an id and an empty truth of its own; None where the scene gives none.
    """
    target, truth = sample.target, sample.truth
    assert target is not None and truth is not None, "instructions need a name and a true mask"
    rng = generator_for(seed, sample.sample_id, "contradictory" if opposed else "instruction")
    if not opposed:
        draw = wording.for_present if truth.any() else wording.for_absent
        made = draw(scene, target, rng)
        return replace(sample, instruction=made.text), made
    found = contradiction(scene, target, rng)
    if found is None:
        return None
    return (
        replace(
            sample,
            sample_id=f"{sample.sample_id}~contradictory",
            instruction=found.text,
            target=found.target,
            truth=np.zeros_like(truth),
        ),
        found,
    )
