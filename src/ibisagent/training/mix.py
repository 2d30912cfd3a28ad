"""Other conversations among the trajectories, so that a policy keeps its abilities (`--mix FILE:RATIO`).

A file is JSON (a list) or JSONL of conversations, as LLaMA-Factory and LLaVA write them: `messages`
(role, content) or `conversations` (from, value), with `images` or `image`, and `<image>` where a
picture stands; content may also be blocks. All assistant texts are learned. Pictures go before the
text of their message, are read as everywhere here, and lie below the file's folder. Left out: tools,
video, pictures within the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ibisagent import render
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from ibisagent.seeding import generator_for
from ibisagent.training.trainable import Example, Written
from ibisagent.types import BASE_VERBS, VLM_VIEW, Message, Observation, View

MARKER = "<image>"
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

_BLOCK = 64  # places over which the ratios are kept


@dataclass(frozen=True)
class Line:
    """One message of a conversation."""

    role: str  # system, user or assistant
    text: str  # without markers
    images: tuple[Path, ...]


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with an assistant text; pictures are not read yet."""

    name: str  # such as "vqa.json 17"
    lines: tuple[Line, ...]

    def example(self, view: View) -> Example:
        """Read the pictures, at the policy's `view`. Raises InputError for one that cannot be read."""
        messages = tuple(
            Message(
                line.role,  # type: ignore[arg-type]  # one of the three
                line.text,
                tuple(render.view_image(load_picture(path), None, view) for path in line.images),
            )
            for line in self.lines
        )
        shown = [image for message in messages for image in message.images]
        observation = Observation(
            sample_id=self.name,
            instruction=next(line.text for line in self.lines if line.role == "user"),
            image=shown[-1] if shown else np.zeros((1, 1, 3), np.uint8),
            messages=messages[:-1],
            mask=None,
            clicks=(),
            verbs=BASE_VERBS,
            turn=1,
            attempt=0,
            seed=0,
        )
        return Example(
            observation, tuple(Written(line.text) for line in self.lines if line.role == "assistant")
        )


class Mixer:
    """Which examples of a run come from other files, and which ones; always the same for a seed."""

    def __init__(self, files: Sequence[str], seed: int, view: View = VLM_VIEW) -> None:
        """`files`: FILE:RATIO, each RATIO the share of all examples. Reads no pictures. Raises InputError."""
        self.seed, self.view = seed, view
        named = [parse(file) for file in files]
        self.ratios = [ratio for _, ratio in named]
        if sum(self.ratios) >= 1:
            raise InputError(
                "the ratios of all --mix files add up to less than 1",
                f"{sum(self.ratios):g}",
                "leave a share to the trajectories",
            )
        self.sources = [read_conversations(path) for path, _ in named]

    @property
    def share(self) -> float:
        """Of the trajectories among all examples."""
        return 1 - sum(self.ratios)

    def trajectory(self, place: int) -> int | None:
        """How many trajectories came before the `place`-th example of a run; None where it is none.

        In every block of so many places as many are trajectories as the ratios leave, in random places.
        """
        block, within = divmod(place, _BLOCK)
        before, after = (int((block + more) * _BLOCK * self.share + 1e-6) for more in (0, 1))
        slot = int(generator_for(self.seed, "mix block", block).permutation(_BLOCK)[within])
        return before + slot if slot < after - before else None

    def pick(self, place: int) -> tuple[int, int] | None:
        """Source and conversation for the `place`-th example of a run, or None for a trajectory."""
        if self.trajectory(place) is not None:
            return None
        generator = generator_for(self.seed, "mix", place)
        source = int(generator.choice(len(self.ratios), p=np.array(self.ratios) / sum(self.ratios)))
        return source, int(generator.integers(len(self.sources[source])))

    def draw(self, place: int) -> Example | None:
        """The `place`-th example of a run, or None where a trajectory belongs there."""
        picked = self.pick(place)
        return None if picked is None else self.sources[picked[0]][picked[1]].example(self.view)

    def check(self, problem: Callable[[Example], str | None]) -> dict[str, int]:
        """Read every conversation with its pictures and leave out what cannot be trained.

        problem: `Trainable.problem`. Returns how many were left out, by reason. Raises InputError where
        nothing is left of a file.
        """
        left: dict[str, int] = {}
        for number, source in enumerate(self.sources):
            kept = []
            for conversation in source:
                try:
                    reason = problem(conversation.example(self.view))
                except InputError as error:
                    reason = error.rule
                if reason is None:
                    kept.append(conversation)
                else:
                    left[reason] = left.get(reason, 0) + 1
            if not kept:
                raise InputError(
                    "a --mix file holds conversations that can be trained", "none", "; ".join(left) or None
                )
            self.sources[number] = kept
        return left


def parse(text: str) -> tuple[Path, float]:
    """FILE:RATIO. Raises InputError."""
    file, _, number = text.rpartition(":")
    try:
        ratio = float(number)
    except ValueError:
        ratio = 0.0
    if not file or not 0 < ratio < 1:
        raise InputError("--mix is FILE:RATIO with a ratio between 0 and 1", text, "write vqa.json:0.2")
    return Path(file), ratio


# --- reading ----------------------------------------------------------------------------------


def read_conversations(file: Path) -> list[Conversation]:
    """Every conversation of a file; markers and paths are checked, pictures not read. Raises InputError."""
    folder = file.resolve().parent
    found = []
    for number, row in enumerate(_rows(file), start=1):
        try:
            lines = _lines(row, folder)
        except InputError as error:
            raise InputError(error.rule, f"{error.value} in conversation {number}", error.fix) from None
        found.append(Conversation(f"{file.name} {number}", lines))
    if not found:
        raise InputError("a --mix file holds conversations", "none", "check the file")
    return found


def _rows(file: Path) -> Iterator[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "a --mix file is readable text", f"{file.name}: {type(error).__name__}", "check the path"
        ) from None
    try:
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
    except (ValueError, RecursionError):
        raise InputError(
            "a --mix file is a JSON list, or JSONL with one object a line", file.name, "check the file"
        ) from None


def _lines(row: Any, folder: Path) -> tuple[Line, ...]:
    turns = row.get("messages", row.get("conversations")) if isinstance(row, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError("a conversation has a list `messages` or `conversations`", "none")
    named = row.get("images", row.get("image")) or []
    paths = iter([_inside(name, folder) for name in ([named] if isinstance(named, str) else named)])
    given = 1 if isinstance(named, str) else len(named)
    lines = (
        [Line("system", row["system"], ())] if isinstance(row.get("system"), str) and row["system"] else []
    )
    wanted = 0
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES:
            raise InputError(f"roles are {', '.join(ROLES)}", repr(role), "leave tool calls out")
        text, count = _text(content)
        wanted += count
        images = tuple(islice(paths, count))
        if images and ROLES[role] != "user":
            raise InputError("pictures stand in user messages", role)
        lines.append(Line(ROLES[role], text, images))
    if wanted != given:
        raise InputError(
            "a conversation has as many pictures as markers",
            f"{given} pictures and {wanted} markers",
            f"write one {MARKER} for each picture",
        )
    roles = [line.role for line in lines[lines[0].role == "system" :]] if lines else []
    if len(roles) < 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError("user and assistant take turns, and the assistant ends", ", ".join(roles) or "none")
    if not all(line.text.strip() for line in lines if line.role == "assistant"):
        raise InputError("assistant texts are not empty", "an empty one")
    return tuple(lines)


def _text(content: Any) -> tuple[str, int]:
    """A message's text without markers, and how many there were."""
    if isinstance(content, list):
        blocks = [block if isinstance(block, dict) else {} for block in content]
        kinds = [block.get("type") for block in blocks]
        if set(kinds) - {"text", "image"}:
            raise InputError("content blocks are text or image", repr(kinds))
        texts = [str(block.get("text") or "") for block in blocks if block["type"] == "text"]
        return "".join(texts), kinds.count("image")
    if not isinstance(content, str):
        raise InputError("a message's content is text or blocks", type(content).__name__)
    parts = content.split(MARKER)
    return "".join(part.removeprefix("\n") if index else part for index, part in enumerate(parts)), len(
        parts
    ) - 1


def _inside(name: Any, folder: Path) -> Path:
    """A picture's path, which stays below the file's folder even through links."""
    if not isinstance(name, str) or not name:
        raise InputError("pictures are named by paths", type(name).__name__, "write relative paths")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise InputError("pictures lie below the folder of their --mix file", name, "move them there")
    if not path.is_file():
        raise InputError("every picture of a --mix file is there", name, "check the path")
    return path
