"""Every instruction has exactly one right answer, by a brute-force reading of its text."""

from collections import Counter

import numpy as np
import pytest
from conftest import disc
from instruction_oracle import GROUPS, right_answers

from ibisagent.errors import InputError
from ibisagent.synthesis import instruction_words as words
from ibisagent.synthesis.instructions import (
    ABSENT,
    PRESENT,
    Meaning,
    Scene,
    answer,
    instruct,
    scene_of,
)
from ibisagent.synthesis.wording import Wording, contradiction, worded
from ibisagent.targets import TARGETS, understand
from ibisagent.types import Picture, Sample

ABDOMEN = (
    *(
        "aorta",
        "esophagus",
        "gallbladder",
        "inferior vena cava",
        "left adrenal gland",
        "left kidney",
        "liver",
    ),
    *("pancreas", "portal vein and splenic vein", "right adrenal gland", "right kidney", "spleen", "stomach"),
)
PLACES = {  # column and row in a 120x120 abdomen, in the radiological convention
    **{"aorta": (62, 75), "inferior vena cava": (50, 74), "left kidney": (88, 78), "right kidney": (28, 78)},
    **{
        "liver": (28, 45),
        "spleen": (98, 50),
        "stomach": (78, 40),
        "pancreas": (62, 52),
        "gallbladder": (36, 24),
    },
    **{"left adrenal gland": (76, 62), "right adrenal gland": (42, 62), "esophagus": (66, 62)},
    **{"portal vein and splenic vein": (55, 60)},
}


def ellipse(row, column, high, wide, size=120):
    rows, columns = np.mgrid[:size, :size]
    return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1


def abdomen(seed, mirrored=False):
    """Some organs near their places, some known to be absent, some neither; a few in two pieces."""
    rng = np.random.default_rng(seed)
    masks, absent, taken = {}, [], np.zeros((120, 120), bool)
    for index in rng.permutation(len(ABDOMEN)):
        name = ABDOMEN[index]
        lot = rng.random()
        if lot < 0.55:
            column, row = PLACES[name] + rng.normal(0, 5, 2)
            mask = ellipse(row, column, *rng.uniform(3, 14, 2))
            if rng.random() < 0.1:
                mask |= ellipse(110, column, 3, 3)
            mask &= ~taken
            if mask.any():
                taken |= mask
                masks[name] = mask[:, ::-1] if mirrored else mask
        elif lot < 0.9:
            absent.append(name)
    return Scene(masks, frozenset(absent), "CT", "abdomen")


def made_in(scene, seed=0):
    for target in scene.masks:
        for kind in PRESENT:
            made = instruct(scene, target, kind, np.random.default_rng([seed, *map(ord, target + kind)]))
            if made is not None:
                yield made
    for target in sorted(scene.absent):
        made = instruct(scene, target, "absent", np.random.default_rng([seed, *map(ord, target)]))
        if made is not None:
            yield made


@pytest.fixture(scope="module")
def cases():
    scenes = [abdomen(seed) for seed in range(45)]
    return [(scene, list(made_in(scene, seed))) for seed, scene in enumerate(scenes)]


def test_every_relation_has_one_right_answer_in_every_plain_reading(cases):
    counts = Counter()
    for scene, instructions in cases:
        for made in instructions:
            if made.kind != "relation":
                continue
            candidates, readings = right_answers(made.text, scene.masks)
            for reading in readings:
                assert reading == {made.target}, made.text
            assert set(candidates) == set(made.meaning.candidates), made.text
            assert all(name in scene.masks or name in scene.absent for name in candidates), made.text
            counts[made.meaning.relation] += 1
    assert counts.total() > 150 and len(counts) >= 15, counts
    assert counts["patient left"] + counts["patient leftmost"] > 5


def test_the_other_kinds_mean_one_structure_and_no_other_is_in_doubt(cases):
    counts = Counter()
    for scene, instructions in cases:
        for made in instructions:
            if made.kind == "relation":
                continue
            counts[made.kind] += 1
            there = {name for name in made.meaning.candidates if name in scene.masks}
            side = made.meaning.side
            there = {name for name in there if side is None or name.startswith(side)}
            unknown = set(made.meaning.candidates) - {*scene.masks, *scene.absent}
            if side is not None:
                unknown = {name for name in unknown if name.startswith(side)}
            assert not unknown, made.text
            assert there == (set() if made.kind == "absent" else {made.target}), made.text
    assert set(counts) == {"name", "synonym", "question", "side", "function", "absent"}
    assert min(counts.values()) > 20


def test_sides_are_the_patients_and_only_said_where_the_picture_follows_the_convention():
    for seed in range(8):
        scene, mirrored = abdomen(seed), abdomen(seed, mirrored=True)
        if scene.radiological:
            assert mirrored.radiological is False
        for made in made_in(mirrored, seed):
            if mirrored.radiological is False:
                assert "patient" not in made.text, made.text
    masks = {"liver": disc(96, 96, 40, 25, 15), "spleen": disc(96, 96, 40, 75, 10)}
    assert Scene(masks, site="abdomen", modality="CT").radiological is True
    assert Scene(masks, site="abdomen", modality="CT", sagittal=True).radiological is None
    assert Scene(masks, site="abdomen", modality="ultrasound").radiological is None
    assert Scene(masks, site="cell", modality="CT").radiological is None
    assert Scene({"liver": masks["liver"]}, site="abdomen", modality="CT").radiological is None
    assert Scene({"liver": masks["liver"]}, modality="MRI-T1", known_sides=True).radiological is True
    swapped = {"liver": masks["spleen"], "spleen": masks["liver"]}
    assert Scene(swapped, site="abdomen", modality="CT", known_sides=True).radiological is False
    left = Meaning(("liver", "spleen"), "patient leftmost")
    assert answer(left, Scene(masks, site="abdomen", modality="CT")) == "spleen"
    assert answer(left, Scene(swapped, site="abdomen", modality="CT")) is None
    assert answer(Meaning(("liver", "spleen"), "leftmost"), Scene(swapped)) == "spleen", "image left"


def test_what_may_be_there_without_a_mask_is_never_asked_for():
    masks = {"left kidney": disc(96, 96, 50, 70, 10), "aorta": disc(96, 96, 50, 48, 5)}
    kidneys = Meaning(("left kidney", "right kidney"))
    assert answer(kidneys, Scene(masks)) is None, "the right kidney may be there"
    assert answer(kidneys, Scene(masks, frozenset({"right kidney"}))) == "left kidney"
    both = masks | {"right kidney": disc(96, 96, 50, 20, 10)}
    assert answer(kidneys, Scene(both)) is None, "two fit"
    assert answer(Meaning(("left kidney", "right kidney"), side="right"), Scene(both)) == "right kidney"
    assert answer(Meaning(("left kidney", "right kidney"), "right", ("aorta",)), Scene(both)) == "left kidney"
    assert answer(Meaning(("left kidney", "right kidney"), "right", ("aorta",)), Scene(masks)) is None
    assert answer(Meaning(("liver",)), Scene(masks)) is None
    assert answer(Meaning(("liver",)), Scene(masks, frozenset({"liver"}))) == ABSENT
    assert answer(Meaning(("left kidney",), "left", ("liver",)), Scene(masks)) is None, "no such reference"


def test_contradictory_ones_mean_nothing_in_the_picture():
    counts = Counter()
    for seed in range(30):
        scene = abdomen(seed)
        for target in scene.masks:
            made = contradiction(scene, target, np.random.default_rng(seed))
            assert made is not None and made.kind == "contradictory"
            assert answer(made.meaning, scene) == ABSENT
            if made.meaning.side is None:
                assert made.target in words.IMPOSSIBLE["abdomen"] and made.target not in scene.masks
            else:
                other = "left" if made.meaning.side == "right" else "right"
                assert made.target.startswith(other) and made.wanted in made.text
                assert (
                    f"{made.meaning.side} side" in made.text or f"patient's {made.meaning.side}" in made.text
                )
            counts[made.meaning.side is None] += 1
    assert min(counts[True], counts[False]) > 10
    nowhere = Scene({"nerve": disc(96, 96, 40, 40, 10)}, site="elbow")
    assert contradiction(nowhere, "nerve", np.random.default_rng(0)) is None


def test_instructions_are_seeded_and_varied():
    scene = abdomen(3)
    for target in scene.masks:
        once, again = (
            [instruct(scene, target, kind, np.random.default_rng(5)) for kind in PRESENT] for _ in "ab"
        )
        assert once == again
    texts = {instruct(scene, "liver", "relation", np.random.default_rng(seed)).text for seed in range(40)}
    assert len(texts) >= 15


def test_the_tables_hold_what_they_say():
    functions = [phrase for phrases in words.FUNCTIONS.values() for phrase in phrases]
    assert len(functions) == len(set(functions)), "a function fits one structure"
    for target in TARGETS:
        assert target in words.FUNCTIONS or target.split(" ", 1)[1] in words.FUNCTIONS
    for target, names in words.SYNONYMS.items():
        for name in names:
            assert understand(f"Find the {name} in this image.").target == target, name
    for site, targets in words.IMPOSSIBLE.items():
        assert set(targets) <= set(TARGETS), site
    for noun, members in words.GROUPS.items():
        assert set(members) == GROUPS[noun]
    for function in functions:  # the policy that knows names must not take a description for another name
        for organ in words.FUNCTIONS:
            if function in words.FUNCTIONS[organ]:
                found = understand(f"Find the {function}.").target
                assert found is None or found.endswith(organ), function


def test_what_the_embedded_policy_reads(cases):
    read = Counter()
    for _, instructions in cases:
        for made in instructions:
            if made.kind in ("name", "synonym", "question", "side"):
                assert understand(made.text).target == made.target, made.text
                read[made.kind] += 1
    assert len(read) == 4


# --- shares -----------------------------------------------------------------------------------


def sample_of(target, truth, shape=(120, 120)):
    picture = Picture(np.zeros((*shape, 3), np.uint8))
    return Sample(f"SET/1/{target}", picture, "", target, truth, dataset="SET", modality="CT", site="Abdomen")


def test_kinds_come_by_their_shares_and_others_step_in():
    scene = abdomen(3)
    wording = Wording.parse(("function:3", "name:1"))
    kinds = Counter(
        wording.for_present(scene, "liver", np.random.default_rng(seed)).kind for seed in range(400)
    )
    assert set(kinds) == {"function", "name"} and 0.68 < kinds["function"] / 400 < 0.82
    only = Wording.parse(("side:1",))
    assert only.for_present(scene, "liver", np.random.default_rng(0)).kind == "name", "a liver has no side"
    unknown = Scene({"femur": disc(96, 96, 40, 40, 10)})
    assert wording.for_present(unknown, "femur", np.random.default_rng(1)).target == "femur"
    assert Wording.parse(("absent:1", "contradictory:3")).contradictory == 0.75
    assert Wording.parse(("name:1",)).contradictory == 0.0


def test_a_sample_gets_its_instruction_and_a_contradictory_twin():
    scene = abdomen(3)
    liver = sample_of("liver", scene.masks["liver"])
    wording = Wording.parse(("relation:1",))
    changed, made = worded(liver, scene, wording, 7)
    assert changed.instruction == made.text and changed.target == "liver" and changed.truth is liver.truth
    assert worded(liver, scene, wording, 7)[1] == made and worded(liver, scene, wording, 8)[1] != made
    twin, said = worded(liver, scene, wording, 7, opposed=True)
    assert twin.sample_id == "SET/1/liver~contradictory" and not twin.truth.any()
    assert twin.target == said.target and said.kind == "contradictory"
    gone = sample_of("spleen", np.zeros((120, 120), bool))
    whole = scene_of([liver, gone], ["pancreas"])
    assert (
        set(whole.masks) == {"liver"} and whole.absent == {"spleen", "pancreas"} and whole.site == "abdomen"
    )
    assert worded(gone, whole, wording, 7)[1].kind == "absent"


@pytest.mark.parametrize(
    "pairs",
    [("name",), ("name:x",), ("names:1",), ("name:1", "name:2"), ("name:-1",), ("name:0",), ("name:inf",)],
)
def test_bad_shares_are_named(pairs):
    with pytest.raises(InputError, match="instruction"):
        Wording.parse(pairs)
