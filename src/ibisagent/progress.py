"""What long work says: a live line where somebody watches, a line now and then where nobody does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
_WIDTH_OF_FILES = 200
_SAY_EVERY = 20.0  # seconds between lines where nobody watches


def open_screen() -> Console:
    """Standard error as a person sees it; tables that go to a file are not cut to a terminal's width."""
    from rich.console import Console

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = _WIDTH_OF_FILES
    return screen


class Progress:
    """What is done of `total`, with rate and time left. Without a console it says nothing."""

    def __init__(self, console: Console | None, name: str, total: int, done: int) -> None:
        from rich import progress as bars

        self._console, self._name, self._total, self._done = console, name, total, done
        self._first = done
        self._began = self._said = time.monotonic()
        self._bar: bars.Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeRemainingColumn(),
                bars.TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        if self._console is not None and self._first:
            self._console.print(f"{self._name}: continued at {self._first} of {self._total}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; each counts when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def advance(self, note: str = "", count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif (
            self._console is not None
            and count
            and (now - self._said > _SAY_EVERY or self._done == self._total)
        ):
            self._said = now
            left = (now - self._began) / max(1, self._done - self._first) * (self._total - self._done)
            self._console.print(f"{self._name} {self._done}/{self._total}, {left / 60:.1f} min left  {note}")
