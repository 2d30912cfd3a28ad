"""Questions about pictures: SLAKE, VQA-RAD and PathVQA in their published layouts, and the scores.

Closed questions have one of a few answers (yes, no, left, ...), open ones are free. Text is
compared after normalisation: lower case, punctuation to spaces, articles left out. Per item: exact
match; multiset token F1 and recall; BLEU-1 (clipped unigram precision times the brevity penalty, no
smoothing). "Closed accuracy" also takes an answer that begins with the expected yes or no.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibisagent.errors import InputError
from ibisagent.safe_pickle import load_pickle

_ARTICLES = frozenset(("a", "an", "the"))
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One question about one picture."""

    question_id: str  # within its data set and split
    picture: Path
    question: str
    answer: str
    closed: bool


@dataclass(frozen=True)
class AnswerScore:
    """The scores of one answer, each in [0, 1]."""

    exact_match: float
    closed_accuracy: float
    token_f1: float
    token_recall: float
    bleu_1: float


def score_answer(expected: str, given: str) -> AnswerScore:
    """Score `given` (the answer alone, see `answer_of`) against `expected`."""
    gold, said = tokens(expected), tokens(given)
    exact = float(gold == said)
    begins = bool(said) and len(gold) == 1 and gold[0] in ("yes", "no") and said[0] == gold[0]
    shared = sum((Counter(gold) & Counter(said)).values())
    precision = shared / len(said) if said else 0.0
    recall = shared / len(gold) if gold else 0.0
    if not gold and not said:
        return AnswerScore(1.0, 1.0, 1.0, 1.0, 1.0)
    brevity = min(1.0, math.exp(1 - len(gold) / len(said))) if said else 0.0
    return AnswerScore(
        exact_match=exact,
        closed_accuracy=max(exact, float(begins)),
        token_f1=2 * precision * recall / (precision + recall) if shared else 0.0,
        token_recall=recall,
        bleu_1=brevity * precision,
    )


def tokens(text: str) -> list[str]:
    """The words of a text that are compared; a decimal point within a number is kept."""
    words = re.findall(r"\d+\.\d+|\w+", text.lower())
    return [word for word in words if word not in _ARTICLES]


def answer_of(text: str) -> str:
    """What a policy answers: the content of its `<answer>`, else its text without its thoughts."""
    found = _ANSWER.search(text)
    return (found[1] if found else _THINK.sub("", text)).strip()


# --- layouts ----------------------------------------------------------------------------------


def read_slake(folder: Path, split: str = "test", language: str = "en") -> Iterator[Question]:
    """SLAKE: {split}.json and imgs/; `language` is its q_lang, en or zh. validate is also found."""
    names = ("validate.json", "validation.json") if split in ("val", "validate") else (f"{split}.json",)
    for entry in _json_list(folder, names):
        if _text(entry, "q_lang") == language:
            yield Question(
                question_id=_text(entry, "qid"),
                picture=folder / "imgs" / _text(entry, "img_name"),
                question=_text(entry, "question"),
                answer=_text(entry, "answer"),
                closed=_closed(entry),
            )


def read_vqa_rad(folder: Path, split: str = "test", language: str = "en") -> Iterator[Question]:
    """VQA-RAD: one JSON of all items; those whose phrase_type begins with "test" are the test split.

    The published answer types may end in a space, and answers may be numbers.
    """
    _english(language)
    for entry in _json_list(folder, ("VQA_RAD Dataset Public.json",)):
        in_test = _text(entry, "phrase_type").startswith("test")
        if in_test == (split == "test"):
            yield Question(
                question_id=f"{_text(entry, 'qid')}-{_text(entry, 'phrase_type')}",
                picture=folder / "VQA_RAD Image Folder" / _text(entry, "image_name"),
                question=_text(entry, "question"),
                answer=_text(entry, "answer"),
                closed=_closed(entry),
            )


def read_path_vqa(folder: Path, split: str = "test", language: str = "en") -> Iterator[Question]:
    """PathVQA: qas/{split}_vqa.pkl, read without running anything, and images/{split}/.

    Of several labelled answers the one with the highest weight is expected (ties: alphabetical).
    """
    _english(language)
    file = folder / "qas" / f"{split}_vqa.pkl"
    try:
        entries = load_pickle(file.read_bytes())
    except OSError:
        raise InputError("PathVQA has its questions in qas/", f"no {file.name}", "check the folder") from None
    if not isinstance(entries, list):
        raise InputError("PathVQA's questions are a list", type(entries).__name__)
    for entry in entries:
        labels = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(labels, dict) or not labels:
            raise InputError("every question of PathVQA has labelled answers", "one without")
        name = _text(entry, "img_id")
        yield Question(
            question_id=_text(entry, "question_id"),
            picture=folder / "images" / split / f"{name}.jpg",
            question=_text(entry, "sent"),
            answer=str(min(labels, key=lambda answer: (-float(labels[answer]), str(answer)))),
            closed=_text(entry, "answer_type") == "yes/no",
        )


LAYOUTS: dict[str, Callable[[Path, str, str], Iterator[Question]]] = {
    "slake": read_slake,
    "vqa-rad": read_vqa_rad,
    "path-vqa": read_path_vqa,
}


def _json_list(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise InputError(
            "the folder holds the list of questions", f"no {' or '.join(names)}", "check the folder"
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError("the list of questions is readable JSON", type(error).__name__) from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("the list of questions is a JSON list of objects", type(entries).__name__)
    return entries


def _text(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        raise InputError(f"every question has {key!r}", f"only {', '.join(sorted(map(str, entry)))}")
    return str(entry[key]).strip()


def _closed(entry: dict[str, Any]) -> bool:
    kind = _text(entry, "answer_type").upper()
    if kind not in ("OPEN", "CLOSED"):
        raise InputError("answer_type is OPEN or CLOSED", repr(kind))
    return kind == "CLOSED"


def _english(language: str) -> None:
    if language != "en":
        raise InputError("this data set is in English", language, "leave --language out")
