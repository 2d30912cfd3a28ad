"""Thoughts from a teacher: any OpenAI-compatible endpoint words what the simulator does.

The teacher gets the painted picture, the instruction, the action and what was measured of the step,
and writes the thought that leads there. A text that tells what the student cannot see (`leaks`) is
asked for once more, then the template stays. Every answer is kept on disk by the content of its
question, so an interrupted job pays nothing twice; calls, tokens and pace are bounded for a whole job
by a ledger beside them, whatever the number of workers. Left out: budgets over several machines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ibisagent.actions import format_action
from ibisagent.errors import InputError, PolicyError
from ibisagent.files import write_whole
from ibisagent.policies.chat import chat_messages, parse_chat_spec
from ibisagent.policies.chat_client import ChatClient, ChatOptions
from ibisagent.seeding import seed_for
from ibisagent.synthesis.leaks import MAX_CHARACTERS, fault, tidy
from ibisagent.types import Action, Click, Message, Pixels, Undo

_SYSTEM = f"""\
You write the inner thought of an image analyst who marks one structure in a biomedical picture by \
clicking; a tool turns the clicks into a mask, which is painted in green. You are told what the analyst \
does next and what was found out about this step. Look at the picture and write, in the first person \
and in one to three plain sentences, what can be seen that leads to this action: where the structure \
lies and how it looks, what the mask misses or wrongly covers. Where the instruction describes the \
structure without naming it, say which one is meant.

The thought must read as if the analyst knew only the picture and the instruction. Never mention a \
ground truth, annotation, label, reference, correct or given mask, score or percentage, and never that \
you were told anything. Write no coordinates or other numbers, no tags, no markup, no lists, and at \
most {MAX_CHARACTERS * 6 // 7} characters. Contradict nothing of what was found out. Answer with \
the thought alone."""
_AGAIN = "That cannot be used: {fault}. Write the thought again, by the same rules."

PROMPT_ID = hashlib.sha256(f"{_SYSTEM}\x1f{_AGAIN}".encode()).hexdigest()[:16]
CHAT = ChatOptions(temperature=0.7, max_tokens=400, concurrency=8)
_LEDGER = "ledger.json"
_FAILURES = 12  # calls in a row without an answer after which the job stops
_PIXELS_A_TOKEN = 784  # for the estimate of what a picture costs to read
_CHARACTERS_A_TOKEN = 4

COUNTS = ("asked", "written", "cached", "rejected", "failed", "fell_back", "tokens_written", "tokens_read")
"""What the ledger adds up: calls sent; thoughts that came new and from the cache; texts that were not
usable; calls without an answer; thoughts left to the template; tokens as the server counts those that
it wrote, and an estimate of those that it read."""


@dataclass(frozen=True)
class TeacherOptions:
    """Which teacher, and what it may cost; plain values, so that workers can be given it."""

    spec: str  # MODEL@URL
    calls: int = 10_000  # of the whole job
    tokens: int = 10_000_000  # written and read, of the whole job
    rate: float = 5.0  # calls a second
    allow_upload: bool = False  # pictures may go to another machine
    chat: ChatOptions = CHAT

    def __post_init__(self) -> None:
        if self.calls < 1 or self.tokens < 1:
            raise InputError(
                "--teacher-budget is CALLS and TOKENS, at least 1 each", f"{self.calls} {self.tokens}"
            )
        if not 0 < self.rate < float("inf"):
            raise InputError("--teacher-rate is a number of calls a second above 0", self.rate)
        parse_chat_spec(self._plain)

    @property
    def _plain(self) -> str:
        return self.spec.removeprefix("chat:")

    @property
    def model(self) -> str:
        """The model's name without a local path."""
        model = parse_chat_spec(self._plain)[0]
        return PurePosixPath(model).name if model.startswith("/") else model

    def client(self) -> ChatClient:
        """A client for it. Raises InputError for a host that is not loopback without `allow_upload`."""
        return ChatClient(*parse_chat_spec(self._plain), allow_upload=self.allow_upload, options=self.chat)

    def record(self) -> dict[str, str]:
        """What the thoughts depend on; what they may cost is not part of it."""
        return {"model": self.model, "prompt": PROMPT_ID}


@dataclass(frozen=True)
class Ask:
    """One step whose thought is wanted."""

    instruction: str
    image: Pixels  # as the student sees it, mask painted
    painted: bool  # whether a mask stands
    action: Action
    target: str  # what the instruction means
    thought: str  # the template's: true of this step, and the thought where the teacher gives none
    seed: int

    def text(self) -> str:
        """The user's text of the question."""
        if isinstance(self.action, Click):
            meaning = "to add what is there" if self.action.positive else "to take out what is there"
            does = f"clicks at {format_action(self.action)}, x to the right and y down from 0 to 1, {meaning}"
        elif isinstance(self.action, Undo):
            does = "takes the last click (or, without one, the mask) back"
        else:
            does = "stops here"
        return "\n".join(
            (
                f"Instruction: {self.instruction}",
                f"The instruction means: {self.target}",
                "A mask is painted in green." if self.painted else "No mask is painted yet.",
                f"The analyst {does}.",
                f"What was found out, in plain words: {self.thought}",
            )
        )


class Ledger:
    """Counts of a job on disk, under a lock that all its processes share."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[dict[str, float]]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
            yield record
            write_whole(self._path, json.dumps(record))

    def reserve(self, tokens: int, options: TeacherOptions) -> float | None:
        """Book a call and the most it can cost; the seconds to wait for its turn, None over the budget."""
        with self._open() as record:
            spent = record.get("tokens_written", 0) + record.get("tokens_read", 0) + record.get("booked", 0)
            if record.get("asked", 0) >= options.calls or spent + tokens > options.tokens:
                return None
            now = time.time()
            turn = min(max(now, record.get("next", 0.0)), now + 3600)  # a clock that was set back
            record["next"] = turn + 1 / options.rate
            record["asked"] = record.get("asked", 0) + 1
            record["booked"] = record.get("booked", 0) + tokens
            return turn - now

    def add(self, **counts: int) -> None:
        """Add to the counts."""
        with self._open() as record:
            for name, count in counts.items():
                record[name] = record.get(name, 0) + count

    def counts(self) -> dict[str, int]:
        """The counts of `COUNTS`; what was booked for calls that never came back counts as read."""
        with self._open() as record:
            found = {name: int(record.get(name, 0)) for name in COUNTS}
            found["tokens_read"] += int(record.get("booked", 0))
        return found


class ChatTeacher:
    """Writes thoughts; one for each process, all of a job share cache and ledger in `folder`."""

    def __init__(self, options: TeacherOptions, folder: Path) -> None:
        """Raises InputError for an endpoint that may not be used."""
        self._options, self._folder = options, folder
        self._client = options.client()
        self.ledger = Ledger(folder / _LEDGER)
        self.name = f"chat:{options.model}"
        self._failures = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def thoughts(self, asks: Sequence[Ask]) -> list[str | None]:
        """A thought for each step, in order; None where the template must do.

        Raises InputError where the teacher has not answered many times in a row.
        """
        if not asks:
            return []
        pool = ThreadPoolExecutor(min(self._options.chat.concurrency, len(asks)))
        try:
            return list(pool.map(self._thought, asks))
        finally:  # interrupted, nothing that waits is sent any more
            pool.shutdown(wait=False, cancel_futures=True)

    def _thought(self, ask: Ask) -> str | None:
        path = self._folder / self._place(ask)
        known = _read(path)
        if known is None:
            try:
                known = self._write(ask)
            except (PolicyError, _Spent):
                self.ledger.add(fell_back=1)
                return None
            _store(path, known)
            self.ledger.add(**({"written": 1} if known["text"] else {"fell_back": 1}))
        else:
            self.ledger.add(**({"cached": 1} if known["text"] else {"fell_back": 1}))
        text: str | None = known["text"]
        return text

    def _place(self, ask: Ask) -> str:
        """Where the answer to a question lies: a hash of all that the teacher is given."""
        options = self._options
        key = [
            options.record(),
            options.chat.temperature,
            options.chat.max_tokens,
            ask.text(),
            ask.image.shape,
        ]
        digest = hashlib.sha256(json.dumps(key).encode() + ask.image.tobytes()).hexdigest()
        return f"{digest[:2]}/{digest[2:]}.json"

    def _write(self, ask: Ask) -> dict[str, Any]:
        """Ask, and once more after a text that is not usable; both turned down, the text is None."""
        messages = [Message("system", _SYSTEM), Message("user", ask.text(), (ask.image,))]
        faults: list[str] = []
        for attempt in range(2):
            text = self._call(messages, seed_for(ask.seed, "teacher", attempt))
            found = fault(tidy(text))
            if found is None:
                return {"text": tidy(text), "rejected": faults}
            self.ledger.add(rejected=1)
            faults.append(found)
            messages += [Message("assistant", text[:4000]), Message("user", _AGAIN.format(fault=found))]
        return {"text": None, "rejected": faults}

    def _call(self, messages: Sequence[Message], seed: int) -> str:
        """One call within budget and pace. Raises _Spent, PolicyError, InputError."""
        size = sum(len(message.text) for message in messages) // _CHARACTERS_A_TOKEN
        size += (
            sum(image.shape[0] * image.shape[1] for m in messages for image in m.images) // _PIXELS_A_TOKEN
        )
        booked = size + self._options.chat.max_tokens
        with self._lock:
            if self._failures >= _FAILURES:
                raise _Spent
        wait = self.ledger.reserve(booked, self._options)
        if wait is None:
            raise _Spent
        time.sleep(wait)
        try:
            text, tokens = self._client.complete(chat_messages(messages), seed)
        except PolicyError as error:  # what it cost is unknown: it stays booked
            self.ledger.add(failed=1)
            with self._lock:
                self._failures += 1
                if self._failures >= _FAILURES:
                    fix = "see to it; the same command continues"
                    raise InputError(
                        f"the teacher answers ({_FAILURES} calls failed)", str(error), fix
                    ) from None
            raise
        with self._lock:
            self._failures = 0
        written = tokens or len(text) // _CHARACTERS_A_TOKEN + 1
        self.ledger.add(booked=-booked, tokens_written=written, tokens_read=size)
        return text


class _Spent(Exception):
    """Nothing more may be asked."""


@contextmanager
def open_teacher(options: TeacherOptions | None, out: Path) -> Iterator[ChatTeacher | None]:
    """The teacher of a job whose trajectories lie in `out`; None without options."""
    if options is None:
        yield None
        return
    teacher = ChatTeacher(options, ledger_path(out).parent)
    try:
        yield teacher
    finally:
        teacher.close()


def ledger_path(out: Path) -> Path:
    """The ledger of a job; the teacher's answers lie beside it."""
    return out / "teacher" / _LEDGER


def _read(path: Path) -> dict[str, Any] | None:
    """A stored answer; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text = record.get("text", 0) if isinstance(record, dict) else 0
    return record if text is None or (isinstance(text, str) and fault(text) is None) else None


def _store(path: Path, record: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(record, ensure_ascii=False) + "\n")
