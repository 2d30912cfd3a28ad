"""How episodes run: the options of the loop, checked once, written into every episode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ibisagent import render
from ibisagent.errors import InputError
from ibisagent.prompts import History, system_prompt
from ibisagent.types import BASE_VERBS, Verb


def _whole(value: object, least: int | None = None) -> bool:
    """A whole number, not below `least`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and (least is None or value >= least)  # type: ignore[operator]


@dataclass(frozen=True)
class Settings:
    """How episodes run. Everything here is written into the episode."""

    max_turns: int = 20  # METHOD section 2
    retries: int = 1  # further attempts after a text that cannot be executed
    history: str = "none"
    verbs: frozenset[Verb] = BASE_VERBS
    start: Literal["none", "proposal"] = "none"  # a sample that brings a mask starts from that
    select: Literal["last", "best"] = "last"  # best: by the tool's own score
    time_limit: float | None = None  # seconds for one episode
    seed: int = 0
    style: render.Style = "fill"
    system: str | None = None  # replaces the system prompt

    def __post_init__(self) -> None:
        limit = self.time_limit
        rules: list[tuple[str, object, bool]] = [
            ("max_turns is at least 1", self.max_turns, _whole(self.max_turns, 1)),
            ("retries is at least 0", self.retries, _whole(self.retries, 0)),
            ("verbs are those of the grammar", self.verbs, BASE_VERBS <= self.verbs <= set(Verb)),
            ("start is none or proposal", self.start, self.start in ("none", "proposal")),
            ("select is last or best", self.select, self.select in ("last", "best")),
            ("style is fill or contour", self.style, self.style in ("fill", "contour")),
            ("seed is a whole number", self.seed, _whole(self.seed)),
            ("the system prompt is text", self.system, isinstance(self.system, str | None)),
            (
                "time_limit is a number of seconds above 0",
                limit,
                limit is None or (isinstance(limit, int | float) and 0 < limit < math.inf),
            ),
        ]
        for rule, value, holds in rules:
            if not holds:
                raise InputError(rule, repr(value))
        History(self.history)

    @property
    def system_text(self) -> str:
        return self.system if self.system is not None else system_prompt(self.verbs)

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "max_turns": self.max_turns,
            "retries": self.retries,
            "history": self.history,
            "verbs": sorted(str(verb) for verb in self.verbs),
            "select": self.select,
            "time_limit": self.time_limit,
            "style": self.style,
            "system": self.system,
        }
