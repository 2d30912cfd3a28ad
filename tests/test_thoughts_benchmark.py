"""The benchmark of thoughts reads what the templates write, and judges hand-made episodes rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import thoughts
from thoughts import Scene, Statement, judge, statements, table, texts

from ibisagent.errors import InputError
from ibisagent.masks import encode_rle, iou
from ibisagent.synthesis import reasoning
from ibisagent.synthesis.clicks import next_click
from ibisagent.synthesis.reasoning import Facts, answer, facts, thought
from ibisagent.types import Action, Mask, Terminate, Undo

SHAPE = (90, 120)
EMPTY = np.zeros(SHAPE, bool)
PLACES = [place for row in reasoning.PLACES for place in row]
FITS = ("well", "badly")


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["liver", "lungs", "left kidney", "portal vein and splenic vein"])
@pytest.mark.parametrize("situation", list(reasoning.VERDICTS))
def test_every_template_is_read_back(target: str, situation: reasoning.Situation) -> None:
    rng = np.random.default_rng(0)
    sizes, errors = [word for _, word in reasoning.SIZES], [word for _, word in reasoning.ERRORS]
    stated: set[str] = set()
    for index in range(60):
        known = Facts(
            target, situation, PLACES[index % 9], sizes[index % 4], errors[index % 3], FITS[index % 2]
        )
        said = [(thought(known, rng), False)]
        said += [(answer(known, rng), True)] if situation in ("good", "absent") else []
        for text, is_answer in said:
            read = statements(text, is_answer)
            assert read is not None, text
            words = {one.kind: one.word for one in read}
            decision = "decision" if situation in ("bare", "good", "elsewhere") else "error type"
            if not (is_answer and situation == "good"):
                assert words.pop(decision) == situation
            expected = {"place": known.place, "size": known.size, "error size": known.error, "fit": known.fit}
            assert words.items() <= expected.items(), text
            assert all(one.about == situation for one in read)
            stated |= words.keys()
    assert stated == (set() if situation == "absent" else {"place", "size", "error size", "fit"})


def test_verdict_and_sentence_may_disagree_and_other_texts_are_not_read() -> None:
    text = "Something is missing. I compare the mask with the liver. The mask fits. It lies at the left of the picture. I stop."
    assert statements(text) == [
        Statement("error type", "missed", "missed"),
        Statement("fit", "well", "missed"),
        Statement("place", "left", "missed"),
    ]
    for other in ("", "No mask yet.", "I see a liver at the left.", "No mask yet. It lies at the top."):
        assert statements(other) is None
    assert statements("The mask covers the liver. It is small.", is_answer=True) is None


# --- judging ----------------------------------------------------------------------------------


def blob(rng: np.random.Generator) -> Mask:
    mask = np.zeros(SHAPE, np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        middle = int(rng.integers(0, SHAPE[1])), int(rng.integers(0, SHAPE[0]))
        axes = int(rng.integers(2, 30)), int(rng.integers(2, 30))
        cv2.ellipse(mask, middle, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask.astype(bool)


def test_a_teacher_who_sees_the_true_mask_is_always_right() -> None:
    """As in synthesis: clicks by METHOD's rule, Terminate on masks that fit, Undo of bad ones."""
    rng = np.random.default_rng(3)
    seen: set[str] = set()
    for index in range(300):
        truth = EMPTY if index % 7 == 0 else blob(rng)
        mask = [None, blob(rng), truth & blob(rng), truth | blob(rng), truth.copy()][index % 5]
        stands = mask is not None and bool(mask.any())
        moves: list[Action] = []
        if not truth.any():
            moves = [Undo() if stands else Terminate()]
        elif not stands or iou(truth, mask if mask is not None else EMPTY) < 0.8:
            click = next_click(truth, mask)
            moves = [click] if click is not None else []
            moves += [Undo()] if mask is not None and stands and iou(truth, mask) < 0.5 else []
        else:
            moves = [Terminate()]
        for action in moves:
            known = facts("spleen", truth, mask if stands else None, action)
            scene = Scene(truth, EMPTY if mask is None else mask)
            said = [(thought(known, rng), False)]
            said += [(answer(known, rng), True)] if isinstance(action, Terminate) else []
            for text, is_answer in said:
                for one in statements(text, is_answer) or []:
                    verdict = judge(one, scene)
                    assert verdict.strict and verdict.tolerant, (verdict, text)
            seen.add(known.situation)
    assert seen == set(reasoning.VERDICTS)


TRUTH = box(0, 0, 30, 40)  # the upper left ninth: a share of 1/9, centre at (1/6, 1/6)


@pytest.mark.parametrize(
    ("kind", "word", "about", "mask", "strict", "tolerant"),
    [
        ("size", "medium-sized", "bare", EMPTY, True, True),
        ("size", "large", "bare", EMPTY, False, True),  # 0.111 against 0.12 / 1.25
        ("size", "small", "bare", EMPTY, False, False),
        ("place", "upper left", "good", TRUTH, True, True),
        ("place", "upper left", "missed", EMPTY, True, True),  # of the target, whatever the mask
        ("place", "upper middle", "good", TRUTH, False, False),
        ("error size", "moderate", "missed", box(0, 0, 30, 30), True, True),  # a quarter
        ("error size", "small", "missed", box(0, 0, 30, 30), False, False),
        ("error size", "large", "missed", box(0, 0, 30, 26), False, True),  # 0.35
        ("error size", "small", "included", box(0, 0, 30, 30), False, False),  # there is none
        ("error type", "missed", "missed", box(0, 0, 30, 30), True, True),
        ("error type", "included", "included", box(0, 0, 30, 30), False, False),
        ("error type", "included", "included", box(0, 10, 30, 33), False, True),  # the shallower one
        ("error type", "missed", "missed", TRUTH, False, False),
        ("fit", "well", "good", box(0, 0, 30, 32), True, True),  # IoU 0.80
        ("fit", "well", "good", box(0, 0, 30, 30), False, True),  # 0.75
        ("fit", "well", "good", box(0, 0, 30, 20), False, False),  # 0.50
        ("fit", "well", "good", EMPTY, False, False),
        ("fit", "badly", "elsewhere", box(0, 0, 30, 19), True, True),
        ("fit", "badly", "elsewhere", box(0, 0, 30, 20), False, True),
        ("fit", "badly", "elsewhere", TRUTH, False, False),
        ("error type", "absent", "absent", EMPTY, False, False),
        ("error type", "phantom", "phantom", box(50, 50, 9, 9), False, False),
        ("decision", "bare", "bare", EMPTY, True, True),
        ("decision", "bare", "bare", TRUTH, False, False),
        ("decision", "good", "good", TRUTH, True, True),
    ],
)
def test_each_statement_is_judged_by_its_definition(
    kind: str, word: str, about: str, mask: Mask, strict: bool, tolerant: bool
) -> None:
    verdict = judge(Statement(kind, word, about), Scene(TRUTH, mask))
    assert (verdict.strict, verdict.tolerant) == (strict, tolerant), verdict.measured


def test_a_place_near_its_border_is_tolerated() -> None:
    truth = box(0, 36, 30, 12)  # centre at (0.35, 1/6), 0.017 right of the left third
    for word, strict, tolerant in (("upper middle", True, True), ("upper left", False, True)):
        verdict = judge(Statement("place", word, "bare"), Scene(truth, EMPTY))
        assert (verdict.strict, verdict.tolerant) == (strict, tolerant)


def test_of_an_absent_target_only_its_absence_is_true() -> None:
    bare, marked = Scene(EMPTY, EMPTY), Scene(EMPTY, TRUTH)
    for scene, right in ((bare, {"absent"}), (marked, {"absent", "phantom", "included"})):
        for word in ("missed", "included", "absent", "phantom"):
            assert judge(Statement("error type", word, word), scene).strict == (word in right)
        for kind, word in (("size", "tiny"), ("place", "centre"), ("fit", "well"), ("fit", "badly")):
            assert not judge(Statement(kind, word, "good"), scene).tolerant


def test_the_place_of_a_target_is_that_of_its_largest_part() -> None:
    scene = Scene(box(0, 0, 10, 10) | box(70, 90, 12, 12), EMPTY)
    verdict = judge(Statement("place", "lower right", "good"), scene)
    assert verdict.strict and verdict.measured == "lower right"


# --- runs -------------------------------------------------------------------------------------


def line(
    case: str, patient: str, turns: list[dict[str, Any]], start: Mask | None = None, truth: Mask | None = None
) -> dict[str, Any]:
    return {
        "case": f"S/{case}",
        "dataset": "S" if patient != "c" else "T",
        "patient": patient,
        "episode": {
            "truth": encode_rle(TRUTH if truth is None else truth),
            "start": {"mask": None if start is None else encode_rle(start)},
            "turns": [
                turn | {"mask": turn["mask"] if turn["mask"] is None else encode_rle(turn["mask"])}
                for turn in turns
            ],
        },
    }


def turn(
    think: str | None, mask: Mask | None, action: dict[str, Any] | None, answer: str | None = None
) -> dict[str, Any]:
    return {"think": think, "answer": answer, "mask": mask, "action": action}


CLICK, STOP = {"verb": "Positive Point", "at": [0.2, 0.2]}, {"verb": "Terminate"}
FIRST = (
    "No mask yet. I look for the liver. It lies at the upper left of the picture. It is small. I start there."
)
MISS = "Something is missing. The mask misses a part of the liver. It lies at the centre of the picture. The error is moderate. I add it."
GOOD = (
    "No click would help much. I compare the mask with the liver. The mask fits. It lies at the upper left of the picture. "
    "It is medium-sized. I stop."
)
FOUND = "The liver is marked. It lies at the left of the picture. It is medium-sized."
NONE = "Nothing to mark. I looked for the spleen and see nothing of the kind in this picture."
LINES = [
    # bare: the place is right and the size wrong; then half is there: type and size right, place wrong
    line("one", "a", [turn(FIRST, box(0, 0, 30, 36), CLICK), turn(GOOD, box(0, 0, 30, 36), STOP, FOUND)]),
    line("two", "b", [turn(MISS, TRUTH, CLICK), turn("Hm.", TRUTH, STOP)], start=box(0, 0, 30, 24)),
    line("three", "c", [turn(GOOD, TRUTH, STOP), turn(None, TRUTH, None)], start=box(60, 60, 20, 20)),
    line("four", "d", [turn(NONE, None, STOP)], truth=EMPTY),
    {"case": "S/five", "dataset": "S", "patient": "e", "episode": None},  # could not be read
]


def run(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_a_run_is_counted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = run(tmp_path / "run", LINES), tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["thoughts.py", str(folder), "--json", str(file)])
    assert thoughts.main() == 1, "the bar does not hold"
    found = json.loads(file.read_text())
    kinds = found["thoughts"]["kinds"]

    def strict(name: str) -> tuple[float, int]:
        return round(kinds[name]["strict"]["value"] * kinds[name]["strict"]["n"]), kinds[name]["strict"]["n"]

    assert strict("size") == (2, 3)  # small is wrong
    assert strict("place") == (3, 4)  # the centre is wrong
    assert strict("error size") == (1, 1) and strict("error type") == (2, 2)
    assert strict("fit") == (1, 2)  # the last mask does not fit
    assert strict("decision") == (3, 3)
    assert strict("all") == (9, 12)
    targets = found["thoughts"]["targets"]
    assert (targets["target present"]["strict"]["n"], targets["target absent"]["strict"]["n"]) == (11, 1)
    assert found["thoughts"]["sets"]["T"]["strict"]["value"] == pytest.approx(2 / 3)
    assert found["thoughts"]["sets"]["T"]["strict"]["low"] is None, "one patient has no interval"
    assert kinds["all"]["strict"]["low"] <= 9 / 12 <= kinds["all"]["strict"]["high"]
    assert found["answers"]["kinds"]["all"]["strict"]["value"] == pytest.approx(1 / 2)  # left is wrong
    assert found["thoughts that state one"]["value"] == pytest.approx(5 / 6)
    assert found["outside the templates"] == 1 and found["patients"] == 4
    wrong = {(one["said"], one["measured"]): one["n"] for one in found["thoughts"]["wrong"]}
    assert wrong == {("small", "medium-sized"): 1, ("centre", "upper left"): 1, ("well", "badly"): 1}
    assert list(found["bar"].values()) == [False, True]
    printed = capsys.readouterr().out
    assert "bar, agreement >= 0.9: NO" in printed and "1 are not written by the templates" in printed


def test_true_thoughts_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = line("one", "a", [turn(GOOD, TRUTH, STOP)], start=TRUTH)
    folder = run(tmp_path / "run", [good])
    monkeypatch.setattr(sys, "argv", ["thoughts.py", str(folder)])
    assert thoughts.main() == 0


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["thoughts.py", str(tmp_path)])
    with pytest.raises(InputError, match=r"samples\.jsonl"):
        thoughts.main()
    with pytest.raises(InputError, match="holds thoughts"):
        table([])
    blind = line("one", "a", [turn(GOOD, TRUTH, STOP)], start=TRUTH)
    blind["episode"]["truth"] = None
    with pytest.raises(InputError, match="true masks"):
        list(texts(blind))
