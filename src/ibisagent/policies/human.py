"""A person at the terminal as the policy: short commands in, the one grammar out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ibisagent.actions import format_text, parse
from ibisagent.errors import InputError
from ibisagent.types import (
    BASE_VERBS,
    Action,
    Click,
    Observation,
    PolicyReply,
    Support,
    Terminate,
    Undo,
    Verb,
    View,
)

HELP = "+ X Y | - X Y | undo | done [FINDING] | quit   (X right, Y down, 0 to 1)"


class HumanPolicy:
    """Asks until a line can be executed. What is no short command goes to the parser as it is."""

    name = "human"
    view = View()
    verbs = BASE_VERBS | {Verb.UNDO}

    def __init__(self, ask: Callable[[str], str] = input) -> None:
        """`ask` shows its argument and returns a line; it may raise EOFError."""
        self._ask = ask
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def supports(self, instruction: str) -> Support:
        return Support(known=True)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        return [self._one(observation) for observation in observations]

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}

    def _one(self, observation: Observation) -> PolicyReply:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ibisagent-")
        picture = Path(self._folder.name) / "current.png"
        Image.fromarray(observation.image).save(picture)
        print(f"{observation.instruction}\nThe picture as it stands: {picture}\n{HELP}", file=sys.stderr)
        while True:
            print(f"turn {observation.turn}> ", end="", file=sys.stderr, flush=True)
            try:
                line = self._ask("").strip()
            except EOFError:
                line = "quit"
            if line == "quit":
                return PolicyReply(error="The person at the terminal left.")
            found = parse(text_of(line), observation.verbs)
            if found.action is not None:
                return PolicyReply(text_of(line))
            print(f"That is no command ({found.failure}). {HELP}", file=sys.stderr)


def text_of(line: str) -> str:
    """The policy text for a command such as `+ 0.41 0.30`; other lines are returned as they are."""
    words = line.split()
    action: Action
    if words == ["undo"]:
        return format_text("Taken back by hand.", Undo())
    if words and words[0] == "done":
        finding = " ".join(words[1:]) or "Accepted by hand."
        try:
            return format_text("Accepted by hand.", Terminate(), finding)
        except InputError:  # tags in the finding: the parser names the fault
            return line
    if len(words) == 3 and words[0] in ("+", "-"):
        try:
            action = Click(float(words[1]), float(words[2]), words[0] == "+")
        except ValueError:
            return line
        return format_text("Clicked by hand.", action)
    return line
