"""`ibisagent vqa`: a policy answers questions about pictures, without the loop and without a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.errors import InputError
from ibisagent.files import out_folder, write_json
from ibisagent.pair import PairOptions

if TYPE_CHECKING:
    from ibisagent.evaluation.vqa import Question
    from ibisagent.types import Observation, Policy

SCHEMA = "ibisagent.vqa/1"
ANSWERS = "samples-vqa.jsonl"
SYSTEM = "You answer questions about biomedical images. Answer in as few words as possible."


@dataclass(frozen=True)
class Vqa:
    """Let a policy answer the questions of SLAKE, VQA-RAD or PathVQA and score the answers."""

    data: Annotated[Path, tyro.conf.Positional]
    """folder of the data set in its published layout"""
    layout: Literal["slake", "vqa-rad", "path-vqa"]
    """which data set it is"""
    split: str = "test"
    """as the data set names it"""
    language: str = "en"
    """of the questions; SLAKE also has zh"""
    out: Path = Path("ibisagent-vqa")
    """folder for the answers; the same command continues a run that was stopped"""
    batch_size: int = 8
    """questions asked together"""
    pair: Annotated[PairOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PairOptions)


def run(command: Vqa) -> int:
    """Answer what is not answered yet, then print and write the scores. Returns the exit code, 0."""
    from rich.table import Table

    from ibisagent.evaluation.screen import figure
    from ibisagent.progress import open_screen

    summary = answer_all(command)
    table = Table("metric", "value", "95 % interval", "n")
    for metric in summary["metrics"]:
        table.add_row(metric["name"], *figure(metric), str(metric["n"]))
    open_screen().print(table)
    print(f"answers: {command.out / ANSWERS}\nsummary: {command.out / 'summary.json'}")
    return 0


def answer_all(command: Vqa) -> dict[str, Any]:
    """The summary as plain JSON values, also written to the folder.

    Raises InputError for data that cannot be read, and for a policy that only segments.
    """
    from ibisagent.evaluation.samples import claim, mend
    from ibisagent.evaluation.vqa import LAYOUTS

    if command.batch_size < 1:
        raise InputError("--batch-size is at least 1", command.batch_size)
    questions = list(LAYOUTS[command.layout](command.data, command.split, command.language))
    if not questions:
        raise InputError("there is something to answer", f"no question in split {command.split!r}")
    policy = _load(command)
    out_folder(command.out)
    data = {"layout": command.layout, "split": command.split, "language": command.language}
    claim(command.out, "data", {**data, "questions": len(questions), "system": SYSTEM})
    claim(command.out, "pair", {"policy": policy.name, "fingerprint": _plain(policy.fingerprint())})
    file = command.out / ANSWERS
    mend(file)
    done = {line["question"] for line in _lines(file)}
    waiting = [question for question in questions if question.question_id not in done]
    with file.open("ab", buffering=0) as lines:
        for first in range(0, len(waiting), command.batch_size):
            for record in _ask(policy, waiting[first : first + command.batch_size], command.pair.seed):
                lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    summary = summarize(list(_lines(file)), data)
    write_json(command.out / "summary.json", summary)
    return summary


def summarize(records: Sequence[dict[str, Any]], data: dict[str, str]) -> dict[str, Any]:
    """Means over closed and open questions, with intervals over pictures; failed ones count 0."""
    from ibisagent.evaluation.intervals import Resampler, mean, mean_columns
    from ibisagent.evaluation.vqa import AnswerScore

    records = sorted(records, key=lambda record: str(record["question"]))
    resampler = Resampler(["all"] * len(records), [record["picture"] for record in records])
    metrics = []
    for kind, wanted in (("closed", (True,)), ("open", (False,)), ("all", (True, False))):
        for score in (item.name for item in fields(AnswerScore)):
            if (kind == "closed") != (score == "closed_accuracy") and score != "exact_match":
                continue
            values = [r["scores"][score] if r["closed"] in wanted else None for r in records]
            interval = resampler.interval(mean_columns(values), mean)
            n = sum(value is not None for value in values)
            name = f"{kind} questions: {score.replace('_', ' ').replace('bleu 1', 'BLEU-1')}"
            metrics.append({"name": name, **asdict(interval), "n": n, "unit": ""})
    failed = sum(record["error"] is not None for record in records)
    return {"schema": SCHEMA, "data": data, "questions": len(records), "failed": failed, "metrics": metrics}


def _load(command: Vqa) -> Policy:
    from ibisagent.policies import PolicyOptions, load_policy

    pair = command.pair
    if pair.policy.partition(":")[0] not in ("qwen", "chat", "scripted"):
        raise InputError(
            "questions are answered by a language model", pair.policy, "write --policy qwen:... or chat:..."
        )
    options = PolicyOptions(
        adapter=pair.adapter,
        device=pair.device,
        dtype=pair.dtype,
        temperature=pair.temperature,
        max_new_tokens=pair.max_new_tokens,
        allow_upload=pair.allow_upload,
    )
    return load_policy(pair.policy, options)


def _ask(policy: Policy, questions: Sequence[Question], seed: int) -> Iterator[dict[str, Any]]:
    from ibisagent.datasets.cases import hashed
    from ibisagent.evaluation.vqa import answer_of, score_answer

    replies = policy.act([_observation(policy, question, seed) for question in questions])
    for question, reply in zip(questions, replies, strict=True):
        given = "" if reply.error is not None else answer_of(reply.text)
        yield {
            "schema": SCHEMA,
            "question": question.question_id,
            "picture": hashed("vqa", question.picture.name, question.picture.parent.name),
            "closed": question.closed,
            "expected": question.answer,
            "answer": given,
            "text": reply.text,
            "error": reply.error,
            "scores": asdict(score_answer(question.answer, given)),
        }


def _observation(policy: Policy, question: Question, seed: int) -> Observation:
    from ibisagent import render
    from ibisagent.images import load_picture
    from ibisagent.seeding import seed_for
    from ibisagent.types import BASE_VERBS, Message, Observation

    picture = load_picture(question.picture)
    image = render.view_image(picture, None, policy.view)
    messages = (Message("system", SYSTEM), Message("user", question.question, (image,)))
    return Observation(
        sample_id=question.question_id,
        instruction=question.question,
        image=image,
        messages=messages,
        mask=None,
        clicks=(),
        verbs=BASE_VERBS,
        turn=1,
        attempt=0,
        seed=seed_for(seed, "vqa", question.question_id),
        laterality=picture.laterality,
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        with file.open("rb") as lines:  # text would also be split at U+2028
            yield from map(json.loads, lines)


def _plain(record: Any) -> Any:
    return json.loads(json.dumps(dict(record)))
