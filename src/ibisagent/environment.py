"""One episode as a state machine: the only place that knows what an action does (METHOD section 2).

`observe` gives what the policy sees, `submit` takes its text and says what the tool must do,
`receive` takes the tool's reply and closes the turn. `rollout.py` drives many of these at once;
`step` drives one, for training frameworks that bring their own loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ibisagent import render
from ibisagent.actions import parse
from ibisagent.prompts import Exchange, History, conversation, retry_text, turn_text
from ibisagent.seeding import seed_for
from ibisagent.settings import Settings as Settings  # also for callers of this module
from ibisagent.types import (
    Action,
    Attempt,
    Box,
    Click,
    Episode,
    EpisodeStatus,
    Logits,
    Mask,
    Observation,
    Outcome,
    ParsedText,
    Pixels,
    PolicyReply,
    Sample,
    Terminate,
    Tool,
    ToolReply,
    ToolRequest,
    Turn,
    Undo,
    View,
)

REPEAT_RADIUS = 0.005  # two clicks of one sign closer than this (of each side) are the same click

_REPEATED = "The action was already taken; nothing changed."
_NOTHING_TO_UNDO = "There is nothing to undo."


@dataclass(frozen=True)
class ToolState:
    """What stands after a turn: the prompts given so far and what the tool made of them."""

    clicks: tuple[Click, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: Mask | None = None
    score: float | None = None
    low_res_logits: Logits | None = None
    start_mask: Mask | None = None  # as brought by the user, for tools that take masks
    turn: int = 0  # whose mask it is; 0 is the start


class Environment:
    """One episode for one sample. Not thread-safe; holds no model."""

    def __init__(
        self,
        sample: Sample,
        settings: Settings,
        view: View,
        *,
        tool_hears_text: bool = False,
        rollout: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sample = sample
        self.settings = settings
        self.view = view
        self.rollout = rollout
        self._cancelled = cancelled
        self._history = History(settings.history)
        self.kind: Literal["none", "proposal", "file"] = (
            "file" if sample.start_mask is not None else settings.start
        )
        # clicks alone without a proposal: the tool hears the instruction only with one
        self._text_for_tool = sample.instruction if tool_hears_text and self.kind == "proposal" else None
        self._base = render.resize_pixels(sample.picture.pixels, *render.view_size(sample.picture, view))
        self._states: list[ToolState] = [ToolState()]
        self.start = ToolState()
        self._turns: list[Turn] = []
        self._attempts: list[Attempt] = []
        self._exchanges: list[list[Exchange]] = []
        self._pending: tuple[ParsedText, ToolState | None, str] | None = None
        self._status: EpisodeStatus | None = None
        self._message = ""
        self._start_seconds = 0.0
        self._began = time.monotonic()
        self._ended = self._began

    # --- before turn 1 ------------------------------------------------------------------------

    def begin(self) -> ToolRequest | None:
        """Start the clock; the request for a proposal where the episode starts from one."""
        self._began = time.monotonic()
        if self.kind == "proposal":
            return ToolRequest(self.sample.picture, instruction=self._text_for_tool)
        mask = self.sample.start_mask
        if mask is not None and mask.any():  # an empty one says that nothing was found so far
            self._start_from(ToolState(mask=mask, start_mask=mask))
        return None

    def receive_start(self, reply: ToolReply) -> None:
        """Take the tool's proposal. None, or an empty one, means that no mask stands yet."""
        self._start_seconds = reply.seconds
        if reply.error is not None:
            self.end(EpisodeStatus.TOOL_ERROR, reply.error)
        elif reply.mask is not None and reply.mask.any():
            self._start_from(
                ToolState(mask=reply.mask, score=reply.score, low_res_logits=reply.low_res_logits)
            )

    def _start_from(self, start: ToolState) -> None:
        self.start = start
        self._states = [ToolState(), start]

    # --- one turn -----------------------------------------------------------------------------

    @property
    def state(self) -> ToolState:
        """What stands now."""
        return self._states[-1]

    @property
    def done(self) -> bool:
        return self._status is not None

    def end(self, status: EpisodeStatus, message: str) -> None:
        """Close the episode; the first status counts."""
        if self._status is None:
            self._status, self._message = status, message
            self._ended = time.monotonic()

    def check_limits(self) -> bool:
        """Close the episode where it was cancelled or is out of time; True where it is done."""
        limit = self.settings.time_limit
        if self._cancelled():
            self.end(EpisodeStatus.CANCELLED, "The episode was cancelled.")
        elif limit is not None and time.monotonic() - self._began > limit:
            self.end(EpisodeStatus.TIME_LIMIT, f"The time limit of {limit:g} s was reached.")
        return self.done

    def observe(self) -> Observation:
        """What the policy sees for the next attempt."""
        image = self._open_turn()
        number, attempt = len(self._turns) + 1, len(self._attempts)
        sample_id, run_seed = self.sample.sample_id, self.settings.seed
        return Observation(
            sample_id=sample_id,
            instruction=self.sample.instruction,
            image=image,
            messages=conversation(self.settings.system_text, self._exchanges, self._history),
            mask=self.state.mask,
            clicks=self.state.clicks,
            verbs=self.settings.verbs,
            turn=number,
            attempt=attempt,
            seed=seed_for(run_seed, sample_id, self.rollout, number, attempt),
            laterality=self.sample.picture.laterality,
        )

    def _open_turn(self) -> Pixels:
        """The picture of this turn, rendered and put into the conversation when first asked for."""
        if len(self._exchanges) == len(self._turns):
            mask, image = self.state.mask, self._base
            if mask is not None:
                shown = render.resize_mask(mask, *image.shape[:2])
                image = render.paint(image, shown, self.settings.style)
            request = turn_text(self.sample.instruction, mask is not None)
            self._exchanges.append([Exchange(request, image, None)])
        opened = self._exchanges[-1][0].image
        assert opened is not None, "a turn opens with a picture"
        return opened

    def submit(self, reply: PolicyReply) -> ToolRequest | None:
        """Read the policy's text. Returns what the tool must do; None where it has nothing to do.

        Call `receive` afterwards in either case.
        """
        if reply.error is not None:
            self._pending = None
            self.end(EpisodeStatus.POLICY_ERROR, reply.error)
            return None
        self._open_turn()
        # a lone surrogate, which JSON from a server may hold, could not be written to the log
        reply = replace(reply, text=reply.text.encode("utf-8", "replace").decode())
        parsed = parse(reply.text, self.settings.verbs)
        number, attempt = len(self._turns) + 1, len(self._attempts)
        seed = seed_for(self.settings.seed, self.sample.sample_id, self.rollout, number, attempt)
        self._attempts.append(
            Attempt(reply.text, parsed.failure, parsed.format_fault, reply.tokens, reply.seconds, seed)
        )
        turn = self._exchanges[-1]
        turn[-1] = replace(turn[-1], reply=reply.text)
        if parsed.failure is not None and attempt < self.settings.retries:
            turn.append(Exchange(retry_text(parsed.failure, parsed.detail), None, None))
            self._pending = None
            return None
        next_state, note = self._transition(parsed.action)
        self._pending = (parsed, next_state, note)
        if isinstance(parsed.action, Click | Box) and next_state is not None and not note:
            return ToolRequest(
                picture=self.sample.picture,
                clicks=next_state.clicks,
                boxes=next_state.boxes,
                low_res_logits=next_state.low_res_logits,
                start_mask=next_state.start_mask,
                instruction=self._text_for_tool,
            )
        return None

    def receive(self, reply: ToolReply | None) -> Turn | None:
        """Close the turn with the tool's reply (None where none was asked for). None: retry."""
        if self._pending is None:
            return None
        parsed, state, note = self._pending
        self._pending = None
        if reply is not None:
            if reply.error is not None or reply.mask is None:
                note = reply.error or "The tool gave no mask."
                self.end(EpisodeStatus.TOOL_ERROR, note)
                state = None
            elif state is not None:
                state = replace(
                    state,
                    mask=reply.mask,
                    score=reply.score,
                    low_res_logits=reply.low_res_logits,
                    turn=len(self._turns) + 1,
                )
        if state is not None:
            if isinstance(parsed.action, Undo):
                self._states.pop()
            else:
                self._states.append(state)
        turn = Turn(
            number=len(self._turns) + 1,
            attempts=tuple(self._attempts),
            think=parsed.think,
            action=parsed.action,
            answer=parsed.answer,
            mask=self.state.mask,
            score=self.state.score,
            tool_seconds=reply.seconds if reply is not None else 0.0,
            note=note,
        )
        self._attempts = []
        self._turns.append(turn)
        self._end_after(parsed)
        return turn

    def step(self, text: str, tool: Tool) -> Turn | None:
        """`submit` and `receive` for one text with one tool; None where a retry is due."""
        request = self.submit(PolicyReply(text))
        return self.receive(tool.predict([request])[0] if request is not None else None)

    # --- rules --------------------------------------------------------------------------------

    def _transition(self, action: Action | None) -> tuple[ToolState | None, str]:
        """The state after `action` before the tool has answered, and why the tool is not asked."""
        state = self.state
        match action:
            case Click():
                if any(_same_click(action, earlier) for earlier in state.clicks):
                    return None, _REPEATED
                clicked = replace(state, clicks=(*state.clicks, action))
                if not action.positive and state.mask is None:
                    return clicked, "There is no mask yet that a Negative Point could correct."
                return clicked, ""
            case Box():
                if state.boxes and _same_box(action, state.boxes[-1]):
                    return None, _REPEATED
                return replace(state, boxes=(*state.boxes, action)), ""
            case Undo():
                if len(self._states) == 1:
                    return None, _NOTHING_TO_UNDO
                return self._states[-2], ""
            case _:
                return None, ""

    def _end_after(self, parsed: ParsedText) -> None:
        number = len(self._turns)
        if parsed.failure is not None:
            self.end(
                EpisodeStatus.UNPARSABLE,
                f"The policy's text cannot be executed ({parsed.failure}). {parsed.detail}",
            )
        elif isinstance(parsed.action, Terminate):
            self.end(EpisodeStatus.TERMINATED, f"The policy terminated in turn {number}.")
        elif self._turns[-1].note == _REPEATED or self._goes_round():
            self.end(EpisodeStatus.REPEATED_CLICK, f"The policy repeated itself in turn {number}.")
        elif number >= self.settings.max_turns:
            self.end(EpisodeStatus.TURN_LIMIT, f"The limit of {self.settings.max_turns} turns was reached.")

    def _goes_round(self) -> bool:
        """The last four actions are A-B-A-B; four Undos that each take something back are not."""
        last = self._turns[-4:]
        if len(last) < 4 or any(turn.action is None for turn in last):
            return False
        a, b, c, d = (turn.action for turn in last)
        if all(isinstance(turn.action, Undo) for turn in last):
            return last[-1].note == _NOTHING_TO_UNDO
        return _same_action(a, c) and _same_action(b, d)

    # --- the result ---------------------------------------------------------------------------

    def episode(self, fingerprint: dict[str, Any], host: dict[str, Any]) -> Episode:
        """The finished episode. Asserts that it is done."""
        assert self._status is not None, "the episode still runs"
        mask, selected = self.state.mask, self._selected()
        if not self._turns:  # the policy did nothing: what the episode began from is no result of it
            mask, selected = None, None
        outcome = Outcome.SEGMENTED if mask is not None else Outcome.NONE
        if mask is None and self._status is EpisodeStatus.TERMINATED:
            outcome = Outcome.ABSENT
            mask = np.zeros((self.sample.picture.height, self.sample.picture.width), bool)
        elif mask is not None and selected is not None:
            mask = self.start.mask if selected == 0 else self._turns[selected - 1].mask
        return Episode(
            sample_id=self.sample.sample_id,
            rollout=self.rollout,
            seed=self.settings.seed,
            instruction=self.sample.instruction,
            target=self.sample.target,
            picture=self.sample.picture,
            start=self.kind,
            start_mask=self.start.mask,
            start_score=self.start.score,
            turns=(*self._turns, *self._unfinished()),
            status=self._status,
            outcome=outcome,
            mask=mask,
            selected_turn=selected,
            answer=self._turns[-1].answer if self._turns else None,
            message=self._message,
            settings=self.settings.record(),
            fingerprint=fingerprint,
            truth=self.sample.truth,
            start_seconds=self._start_seconds,
            seconds=self._ended - self._began,
            host=host,
        )

    def _unfinished(self) -> list[Turn]:
        """Attempts of a turn that something from outside cut short: text and error are kept."""
        if not self._attempts:
            return []
        state, attempts = self.state, tuple(self._attempts)
        number, note = len(self._turns) + 1, "The episode ended before a text could be executed."
        return [Turn(number, attempts, None, None, None, state.mask, state.score, 0.0, note)]

    def _selected(self) -> int | None:
        """Number of the turn whose mask is the result; 0 is the start."""
        if self.state.mask is None:
            return None
        if self.settings.select == "last":
            return len(self._turns)
        standing = [state for state in self._states if state.mask is not None]  # nothing taken back
        best = max(standing, key=lambda s: (-math.inf if s.score is None else s.score, s.turn))
        return best.turn


def _same_click(a: Click, b: Click) -> bool:
    near = abs(a.x - b.x) <= REPEAT_RADIUS and abs(a.y - b.y) <= REPEAT_RADIUS
    return a.positive == b.positive and near


def _same_box(a: Box, b: Box) -> bool:
    pairs = ((a.x1, b.x1), (a.y1, b.y1), (a.x2, b.x2), (a.y2, b.y2))
    return all(abs(one - other) <= REPEAT_RADIUS for one, other in pairs)


def _same_action(a: Action | None, b: Action | None) -> bool:
    match a, b:
        case Click(), Click():
            return _same_click(a, b)
        case Box(), Box():
            return _same_box(a, b)
        case _:
            return type(a) is type(b)
