"""`ibisagent vqa`: a policy answers questions about pictures, without the loop and without a tool."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.errors import InputError
from ibisagent.files import out_folder, write_json
from ibisagent.pair import PolicyFlags

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
    flags: Annotated[PolicyFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=PolicyFlags)


def run(command: Vqa) -> int:
    """Answer what is not answered yet, then print and write the scores.

    Returns the exit code: 0, or 3 where questions got no answer; the same command asks these again.
    """
    from rich.table import Table

    from ibisagent.evaluation.screen import figure, say_unanswered
    from ibisagent.progress import open_screen

    screen = open_screen()

    summary = answer_all(command)
    table = Table("metric", "value", "95 % interval", "n")
    for metric in summary["metrics"]:
        table.add_row(metric["name"], *figure(metric), str(metric["n"]))
    screen.print(table)
    print(f"answers: {command.out / ANSWERS}\nsummary: {command.out / 'summary.json'}")
    errors = Counter(line["error"] for line in _lines(command.out / ANSWERS) if line["error"] is not None)
    return say_unanswered(errors, "questions", screen)


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
    done = {line["question"] for line in _lines(file) if line["error"] is None}
    waiting = [question for question in questions if question.question_id not in done]
    with file.open("ab", buffering=0) as lines:
        for first in range(0, len(waiting), command.batch_size):
            for record in _ask(policy, waiting[first : first + command.batch_size], command.flags.seed):
                lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    summary = summarize(_lines(file), data)
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
    from ibisagent.policies import load_policy

    policy = command.flags.policy
    if policy.partition(":")[0] not in ("qwen", "chat", "scripted"):
        raise InputError(
            "questions are answered by a language model", policy, "write --policy qwen:... or chat:..."
        )
    return load_policy(policy, command.flags.policy_options())


def _ask(policy: Policy, questions: Sequence[Question], seed: int) -> Iterator[dict[str, Any]]:
    from ibisagent.datasets.cases import hashed
    from ibisagent.evaluation.vqa import answer_of, score_answer
    from ibisagent.types import PolicyReply

    observed: dict[str, Observation] = {}
    replies: dict[str, PolicyReply] = {}
    for question in questions:
        try:
            observed[question.question_id] = _observation(policy, question, seed)
        except InputError as error:  # its rule names no file
            replies[question.question_id] = PolicyReply(error=error.rule)
    if observed:
        replies |= zip(observed, policy.act(list(observed.values())), strict=True)
    for question in questions:
        reply = replies[question.question_id]
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


def _lines(file: Path) -> list[dict[str, Any]]:
    """The last line of every question: one without an answer is asked again."""
    if not file.exists():
        return []
    with file.open("rb") as lines:  # text would also be split at U+2028
        return list({record["question"]: record for record in map(json.loads, lines)}.values())


def _plain(record: Any) -> Any:
    return json.loads(json.dumps(dict(record)))
