"""Forty answers scored by hand, written and read in each of the three published layouts."""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ibisagent.cli import main
from ibisagent.errors import InputError
from ibisagent.evaluation.vqa import LAYOUTS, answer_of, score_answer
from ibisagent.evaluation.vqa_run import Vqa, answer_all
from ibisagent.pair import PairOptions, PolicyFlags

E = math.exp
# expected, given, closed, exact match, closed accuracy, token F1, recall, BLEU-1
HAND = [
    ("Yes", "yes", True, 1, 1, 1, 1, 1),
    ("No", "Yes", True, 0, 0, 0, 0, 0),
    ("yes", "Yes.", True, 1, 1, 1, 1, 1),
    ("no", "No, there is none", True, 0, 1, 0.4, 1, 1 / 4),
    ("Yes", "There is, yes", True, 0, 0, 0.5, 1, 1 / 3),
    ("Left", "the left", True, 1, 1, 1, 1, 1),
    ("Left", "right", True, 0, 0, 0, 0, 0),
    ("CT", "ct", False, 1, 1, 1, 1, 1),
    ("Chest X-ray", "x-ray", False, 0, 0, 0.8, 2 / 3, E(-0.5)),
    ("liver", "the liver", False, 1, 1, 1, 1, 1),
    ("liver, spleen", "spleen and liver", False, 0, 0, 0.8, 1, 2 / 3),
    ("right lung", "left lung", False, 0, 0, 0.5, 0.5, 0.5),
    ("lung", "", False, 0, 0, 0, 0, 0),
    ("2.5 cm", "2.5 cm", False, 1, 1, 1, 1, 1),
    ("2.5 cm", "2 5 cm", False, 0, 0, 0.4, 0.5, 1 / 3),
    ("3", "3", False, 1, 1, 1, 1, 1),
    ("3", "three", False, 0, 0, 0, 0, 0),
    ("upper left lobe", "left", False, 0, 0, 0.5, 1 / 3, E(-2)),
    ("left left", "left", False, 0, 0, 2 / 3, 0.5, E(-1)),
    ("lung", "lung lung lung", False, 0, 0, 0.5, 1, 1 / 3),
    ("MRI", "An MRI.", False, 1, 1, 1, 1, 1),
    ("T2 weighted", "T2", False, 0, 0, 2 / 3, 0.5, E(-1)),
    ("no", "not seen", True, 0, 0, 0, 0, 0),
    ("no", "no", True, 1, 1, 1, 1, 1),
    ("yes", "yes yes", True, 0, 1, 2 / 3, 1, 0.5),
    ("Axial", "axial plane", False, 0, 0, 2 / 3, 1, 0.5),
    ("heart", "HEART", False, 1, 1, 1, 1, 1),
    ("heart", "lung", False, 0, 0, 0, 0, 0),
    ("brain tumor", "a tumor of the brain", False, 0, 0, 0.8, 1, 2 / 3),
    ("cardiomegaly", "cardiomegaly is present", False, 0, 0, 0.5, 1, 1 / 3),
    ("right", "Right side", True, 0, 0, 2 / 3, 1, 0.5),
    ("yes", "Yes", True, 1, 1, 1, 1, 1),
    ("a cell", "cell", False, 1, 1, 1, 1, 1),
    ("pneumonia", "no pneumonia", False, 0, 0, 2 / 3, 1, 0.5),
    ("one two three four", "one two", False, 0, 0, 2 / 3, 0.5, E(-1)),
    ("one two", "one two three four", False, 0, 0, 2 / 3, 1, 0.5),
    ("gallbladder", "gall bladder", False, 0, 0, 0, 0, 0),
    ("Kidney", "kidneys", False, 0, 0, 0, 0, 0),
    ("0.5", "0.50", False, 0, 0, 0, 0, 0),
    ("No", "no finding", True, 0, 1, 2 / 3, 1, 0.5),
]  # fmt: skip


def save_picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 20), shade, np.uint8)).save(path)


def write_slake(folder: Path) -> None:
    entries = []
    for index, (answer, _, closed, *_) in enumerate(HAND):
        save_picture(folder / f"imgs/xmlab{index}/source.jpg", index)
        kind = {"answer_type": "CLOSED" if closed else "OPEN", "q_lang": "en", "qid": index, "img_id": index}
        names = {"img_name": f"xmlab{index}/source.jpg", "question": f"Question {index}?", "answer": answer}
        entries += [kind | names, kind | names | {"qid": 1000 + index, "q_lang": "zh"}]
    (folder / "test.json").write_text(json.dumps(entries))
    (folder / "validation.json").write_text(json.dumps(entries[:2]))


def write_vqa_rad(folder: Path) -> None:
    entries = []
    for index, (answer, _, closed, *_) in enumerate(HAND):
        save_picture(folder / f"VQA_RAD Image Folder/synpic{index}.jpg", index)
        entries.append(
            {"qid": index, "phrase_type": "test_para" if index % 3 else "test_freeform",
             "image_name": f"synpic{index}.jpg", "question": f"Question {index}?",
             "answer": int(answer) if answer.isdigit() else answer, "answer_type": "CLOSED " if closed else "OPEN"}
        )  # fmt: skip
        entries.append(entries[-1] | {"phrase_type": "freeform", "answer": "never asked"})
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))


def write_path_vqa(folder: Path) -> None:
    entries = []
    for index, (answer, *_) in enumerate(HAND):
        save_picture(folder / f"images/test/test_{index:04d}.jpg", index)
        kind = "yes/no" if answer.lower() in ("yes", "no") else "number" if answer.isdigit() else "other"
        entries.append(
            {"answer_type": kind, "img_id": f"test_{index:04d}", "label": {"zzz": 0.3, answer: 1},
             "question_id": index, "question_type": "what", "sent": f"Question {index}?"}
        )  # fmt: skip
    (folder / "qas").mkdir()
    (folder / "qas" / "test_vqa.pkl").write_bytes(pickle.dumps(entries))


WRITERS: dict[str, Callable[[Path], None]] = {
    "slake": write_slake,
    "vqa-rad": write_vqa_rad,
    "path-vqa": write_path_vqa,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_scores_equal_those_by_hand(layout: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    WRITERS[layout](tmp_path / "data")
    replies = tmp_path / "replies.txt"
    replies.write_text("".join(f"<think> Hm. </think> <answer> {given} </answer>\n" for _, given, *_ in HAND))
    command = Vqa(
        tmp_path / "data", layout, out=tmp_path / "out", flags=PolicyFlags(policy=f"scripted:@{replies}")
    )  # type: ignore[arg-type]
    summary = answer_all(command)
    records = [json.loads(line) for line in (tmp_path / "out" / "samples-vqa.jsonl").read_text().splitlines()]
    assert len(records) == 40 == summary["questions"] and summary["failed"] == 0
    for record, (expected, given, closed, *scores) in zip(records, HAND):
        if layout == "path-vqa":
            closed = expected.lower() in ("yes", "no")
        assert (record["expected"], record["answer"], record["closed"]) == (expected, given, closed)
        assert list(record["scores"].values()) == pytest.approx(scores, abs=1e-9), (expected, given)
    flags = [record["closed"] for record in records]
    means = {metric["name"]: metric for metric in summary["metrics"]}
    closed_rows = [row for row, flag in zip(HAND, flags) if flag]
    open_rows = [row for row, flag in zip(HAND, flags) if not flag]
    accuracy = means["closed questions: closed accuracy"]
    assert accuracy["value"] == pytest.approx(np.mean([row[4] for row in closed_rows]))
    assert accuracy["n"] == len(closed_rows) and accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    for column, name in ((3, "exact match"), (5, "token f1"), (6, "token recall"), (7, "BLEU-1")):
        metric = means[f"open questions: {name}"]
        assert metric["value"] == pytest.approx(np.mean([row[column] for row in open_rows])), name
    assert answer_all(command) == summary, "the same command again asks nothing"


def test_splits_languages_and_answers_are_read_as_published(tmp_path: Path) -> None:
    write_slake(tmp_path)
    assert len(list(LAYOUTS["slake"](tmp_path, "test", "zh"))) == 40
    assert [q.question_id for q in LAYOUTS["slake"](tmp_path, "val", "en")] == ["0"]
    write_vqa_rad(tmp_path)
    assert {q.answer for q in LAYOUTS["vqa-rad"](tmp_path, "train", "en")} == {"never asked"}
    with pytest.raises(InputError, match="in English"):
        list(LAYOUTS["vqa-rad"](tmp_path, "test", "zh"))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    (tmp_path / "qas").mkdir()
    (tmp_path / "qas" / "test_vqa.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(InputError, match="a pickle holds only plain values"):
        list(LAYOUTS["path-vqa"](tmp_path, "test", "en"))


def test_missing_or_odd_lists_are_named(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        with pytest.raises(InputError):
            list(LAYOUTS[layout](tmp_path, "test", "en"))
    (tmp_path / "test.json").write_text('[{"q_lang": "en"}]')
    with pytest.raises(InputError, match="every question has"):
        list(LAYOUTS["slake"](tmp_path, "test", "en"))


def test_only_language_models_are_asked(tmp_path: Path) -> None:
    write_slake(tmp_path)
    command = Vqa(tmp_path, "slake", out=tmp_path / "out")
    with pytest.raises(InputError, match="language model"):
        answer_all(command)
    with pytest.raises(InputError, match="something to answer"):
        answer_all(replace(command, language="fr"))


def test_a_missing_picture_is_an_error_of_its_question_and_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every question is answered "yes"; the picture of question 3 comes back only for the second call."""
    data, out, replies = tmp_path / "data", tmp_path / "out", tmp_path / "replies.txt"
    data.mkdir()
    write_slake(data)
    picture = data / "imgs/xmlab3/source.jpg"
    picture.rename(tmp_path / "away.jpg")
    replies.write_text("<answer> yes </answer>\n" * 40)
    words = ["vqa", str(data), "--layout", "slake", "--out", str(out), "--policy", f"scripted:@{replies}"]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "1 questions got no answer: The picture must exist (1); the same command asks them again" in said
    file = out / "samples-vqa.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["question"] for line in lines if line["error"] is not None] == ["3"] and len(lines) == 40
    assert lines[3]["scores"]["token_f1"] == 0.0 and "xmlab3" not in file.read_text()
    assert json.loads((out / "summary.json").read_text())["failed"] == 1
    (tmp_path / "away.jpg").rename(picture)
    assert main(words) == 0 and "no answer" not in capsys.readouterr().err
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert again[:40] == lines and [line["question"] for line in again[40:]] == ["3"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["failed"] == 0 and summary["questions"] == 40
    right = sum(expected.lower() == "yes" for expected, *_ in HAND)
    exact = {metric["name"]: metric for metric in summary["metrics"]}["all questions: exact match"]
    assert exact["value"] == pytest.approx(right / 40) and exact["n"] == 40


def test_only_options_that_are_used_are_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = {one.name for one in fields(PairOptions)} - {one.name for one in fields(PolicyFlags)}
    assert loop == {
        "tool", "start", "max_turns", "history", "select", "verbs", "retries", "system_prompt", "style",
        "time_limit", "point_to_box",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        main(["vqa", "--help"])
    shown = capsys.readouterr().out
    assert "--max-new-tokens" in shown and "--adapter" in shown
    for name in loop:
        assert f"--{name.replace('_', '-')} " not in shown, name
    with pytest.raises(InputError, match="--temperature is 0 or more"):
        PolicyFlags(temperature=-1.0).policy_options()


def test_the_answer_is_taken_out_of_the_text() -> None:
    assert answer_of("<think> a </think> <answer> left lung </answer>") == "left lung"
    assert answer_of("<think> a\nb </think> Left.") == "Left."
    assert score_answer("the", "a").exact_match == 1.0
