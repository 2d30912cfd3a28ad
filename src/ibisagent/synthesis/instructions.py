"""Instructions of eight kinds, each with exactly one right answer that is checked against the masks.

name, synonym and question say what is wanted; side says it by the patient's side; function describes
it; relation says where it lies or how large it is among others. absent asks for what is known not to
be there, contradictory for what cannot be ("the left kidney on the patient's right", an organ of
another body region): the right answer to both is that nothing is there. An instruction carries its
`Meaning`, and `answer` works out what that picks in a scene; nothing is said whose answer is in doubt.
Left out: several targets at once, and sizes or distances in millimetres.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ibisagent.synthesis import instruction_words as words
from ibisagent.synthesis.reasoning import PLURAL
from ibisagent.synthesis.relations import REFERENCES, Relation, clearly_left, one_piece, pick
from ibisagent.types import Mask, Sample

InstructionKind = Literal[
    "name", "synonym", "question", "side", "function", "relation", "absent", "contradictory"
]
PRESENT: tuple[InstructionKind, ...] = ("name", "synonym", "question", "side", "function", "relation")
ABSENT = "absent"  # what `answer` says where nothing in the picture is meant

_MIRRORED: dict[str, Relation] = {  # the patient's left is at image right
    "patient left": "right",
    "patient right": "left",
    "patient leftmost": "rightmost",
    "patient rightmost": "leftmost",
}
_TRIES = 4  # choices of candidates and references for one relation
_LISTED = 3  # at most so many structures in a list to choose from


@dataclass(frozen=True)
class Meaning:
    """What an instruction says: of `candidates`, the one for which `relation` holds."""

    candidates: tuple[str, ...]  # everything that the words can mean, in the picture or not
    relation: str | None = None  # a Relation, or one with "patient" before it; None: that is all
    references: tuple[str, ...] = ()
    side: str | None = None  # left or right of the patient's body


@dataclass(frozen=True)
class Instruction:
    """A text for the policy, and what it asks for."""

    text: str
    kind: InstructionKind
    target: str  # canonical name of what is asked for, also where it is not there
    wanted: str  # how thoughts speak of it
    meaning: Meaning

    def record(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "target": self.target,
            "relation": self.meaning.relation,
            "candidates": list(self.meaning.candidates),
            "references": list(self.meaning.references),
            "side": self.meaning.side,
        }


@dataclass(frozen=True)
class Scene:
    """All that is known of one picture."""

    masks: Mapping[str, Mask]  # every annotated target that is there, bool HxW
    absent: frozenset[str] = frozenset()  # targets known not to be there
    modality: str | None = None
    site: str | None = None
    known_sides: bool = False  # the file says which side is which
    sagittal: bool = False

    @cached_property
    def whole(self) -> frozenset[str]:
        """Annotated targets that are one piece with a name in the singular: what relations speak of."""
        return frozenset(name for name, mask in self.masks.items() if name not in PLURAL and one_piece(mask))

    @property
    def impossible(self) -> tuple[str, ...]:
        """Targets of other body regions, which this picture cannot show."""
        names = words.IMPOSSIBLE.get(self.site or "", ())
        return tuple(name for name in names if name not in self.masks)

    @cached_property
    def radiological(self) -> bool | None:
        """Whether the patient's right is at image left; None where nothing in the picture tells."""
        modality = (self.modality or "").upper().replace("-", "").replace("XRAY", "CR")
        if self.sagittal or not modality.startswith(("CT", "MR", "CR", "DX")):
            return None
        votes = []
        for right, left in words.RIGHT_TO_LEFT:
            if right in self.masks and left in self.masks:
                votes.append(clearly_left(self.masks[right], self.masks[left]))
                if clearly_left(self.masks[left], self.masks[right]):
                    return False
        usual = self.known_sides or self.site in words.SIDED_SITES
        return True if usual and (True in votes or self.known_sides) else None


def scene_of(samples: Sequence[Sample], absent: Collection[str] = (), *, sagittal: bool = False) -> Scene:
    """The scene of one picture from all its samples with true masks; `absent` are further known ones."""
    truths = [(sample.target, sample.truth) for sample in samples]
    first = samples[0]
    return Scene(
        masks={name: truth for name, truth in truths if name and truth is not None and truth.any()},
        absent=frozenset(absent)
        | {name for name, truth in truths if name and truth is not None and not truth.any()},
        modality=first.modality or first.picture.modality,
        site=first.site.lower() if first.site else None,
        known_sides=first.picture.laterality == "known",
        sagittal=sagittal,
    )


# --- the check --------------------------------------------------------------------------------


def answer(meaning: Meaning, scene: Scene) -> str | None:
    """The one target that is meant, ABSENT where nothing in the picture is, None where that is in doubt.

    In doubt is what may be there without a mask, what fits two structures, and what fits one only
    just. A side that contradicts a name rules the structure out.
    """
    candidates = meaning.candidates
    if meaning.side is not None:
        if scene.radiological is False:
            return None
        other = "left" if meaning.side == "right" else "right"
        candidates = tuple(name for name in candidates if not name.startswith(f"{other} "))
    known = {*scene.masks, *scene.absent, *scene.impossible}
    if not known.issuperset(candidates) or not set(scene.masks).issuperset(meaning.references):
        return None
    present = {name: scene.masks[name] for name in candidates if name in scene.masks}
    if not present:
        return ABSENT if meaning.relation is None else None
    if meaning.relation is None:
        return next(iter(present)) if len(present) == 1 else None
    relation = _MIRRORED.get(meaning.relation, meaning.relation)
    if meaning.relation in _MIRRORED and not scene.radiological:
        return None
    if not scene.whole.issuperset({*present, *meaning.references}):
        return None
    return pick(relation, present, [scene.masks[name] for name in meaning.references])  # type: ignore[arg-type]


# --- making -----------------------------------------------------------------------------------


def instruct(
    scene: Scene, target: str, kind: InstructionKind, rng: np.random.Generator
) -> Instruction | None:
    """An instruction of that kind for `target`; None where there is none with this one right answer.

    `target` is annotated, or known to be absent (then `kind` is "absent" or "contradictory").
    """
    right = target if kind in PRESENT else ABSENT
    makers = (_named, _synonym, _question, _described, _by_side) if kind == "absent" else (_MAKERS[kind],)
    for index in rng.permutation(len(makers)):
        for text, wanted, meaning in makers[index](scene, target, rng):
            if answer(meaning, scene) == right:
                return Instruction(text, kind, target, wanted, meaning)
    return None


_Made = Iterator[tuple[str, str, Meaning]]  # text, how thoughts speak of the target, meaning


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _is(target: str) -> str:
    return "are" if target in PLURAL else "is"


def _named(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    yield _one(words.NAMES, rng).format(target), target, Meaning((target,))


def _question(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    yield _one(words.QUESTIONS, rng).format(target, **{"is": _is(target)}), target, Meaning((target,))


def _synonym(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    if target in words.SYNONYMS:
        name = _one(words.SYNONYMS[target], rng)
        text = _one((*words.NAMES, *words.QUESTIONS), rng).format(name, **{"is": _is(target)})
        yield text, target, Meaning((target,))


def sided(target: str) -> tuple[str, str] | None:
    """Side and organ of a target that exists on both sides of the patient."""
    side, _, organ = target.partition(" ")
    return (side, organ) if organ in words.PAIRED else None


def _by_side(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    if found := sided(target):
        side, organ = found
        text = _one(words.SIDED, rng).format(organ=organ, side=side)
        yield text, target, Meaning(words.GROUPS[organ], side=side)


def _described(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    form = _one(words.DESCRIBED, rng)
    if found := sided(target):
        side, organ = found
        phrase = _one(words.FUNCTIONS[organ], rng)
        both = words.GROUPS[organ]
        there = target if target in scene.masks else organ  # absent, neither of the two is there
        yield form.format(phrase, **{"is": "is"}), there, Meaning(both)
        text = form.format(f"{phrase}, on the patient's {side}", **{"is": "is"})
        yield text.replace("the the", "the"), target, Meaning(both, side=side)
    elif target in words.FUNCTIONS:
        phrase = _one(words.FUNCTIONS[target], rng)
        yield form.format(phrase, **{"is": _is(target)}), target, Meaning((target,))


def _related(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    """Relations in random order, each with some choices of candidates and references."""
    if target not in scene.whole:
        return
    others = sorted(scene.whole - {target})
    groups = [noun for noun, members in words.GROUPS.items() if target in members]
    relations = [*REFERENCES, *(_MIRRORED if scene.radiological else ())]
    for index in rng.permutation(len(relations)):
        relation = relations[index]
        count = REFERENCES[_MIRRORED.get(relation, relation)]  # type: ignore[arg-type]
        for _ in range(_TRIES * max(1, 4 * (count - 1))):  # few pairs have something between them
            drawn = [others[place] for place in rng.permutation(len(others))]
            if len(drawn) < count:
                break
            references, rest = tuple(drawn[:count]), drawn[count:]
            if groups and rng.random() < 0.5:
                noun = _one(groups, rng)
                members = tuple(name for name in words.GROUPS[noun] if name not in references)
                asked = f"Find the {noun} that {{}}.", f"Where is the {noun} that {{}}?"
            else:
                members = (target, *rest[: int(rng.integers(1, _LISTED))])
                members = tuple(members[place] for place in rng.permutation(len(members)))
                if len(members) < 2:
                    continue
                listed = _listed(members)
                asked = f"Of {listed}, find the one that {{}}.", f"Mark which of {listed} {{}}."
            phrase = _one(words.PHRASES[relation], rng).format(*(f"the {name}" for name in references))
            yield _one(asked, rng).format(phrase), target, Meaning(members, relation, references)


def _listed(names: Sequence[str]) -> str:
    *most, last = (f"the {name}" for name in names)
    return f"{', '.join(most)} and {last}"


def _opposed(scene: Scene, target: str, rng: np.random.Generator) -> _Made:
    """The name with the wrong side, or something of another body region."""
    form = _one((*words.NAMES, *words.QUESTIONS), rng)
    if found := sided(target):
        other = "left" if found[0] == "right" else "right"
        wanted = _one(words.OPPOSED, rng).format(name=target, side=other)
        yield form.format(wanted, **{"is": "is"}), wanted, Meaning((target,), side=other)
    elif target in scene.impossible:
        yield form.format(target, **{"is": _is(target)}), target, Meaning((target,))


_MAKERS = {
    "name": _named,
    "synonym": _synonym,
    "question": _question,
    "side": _by_side,
    "function": _described,
    "relation": _related,
    "contradictory": _opposed,
}
