"""The only grammar: from policy text to action and back (docs/method.md, section 2).

    <think> free text </think> <action> Positive Point (0.5000, 0.2500) </action>
    <think> ... </think> <action> Terminate </action> <answer> one paragraph </answer>

Action and format are judged apart: a text with one readable action is executed even where its
format is at fault. What cannot be read gets a named failure; nothing is ever guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ibisagent.errors import InputError
from ibisagent.types import (
    BASE_VERBS,
    Action,
    Box,
    Click,
    FormatFault,
    ParsedText,
    ParseFailure,
    Terminate,
    Undo,
    Verb,
)

GRAMMAR_VERSION = 1
DECIMALS = 4  # written; any number is read

_TAG = re.compile(r"<\s*(/?)\s*(think|action|answer)\s*>")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_CALL = re.compile(r"(Positive\s+Point|Negative\s+Point|Box)\s*\((.*)\)", re.DOTALL)


# --- coordinates ------------------------------------------------------------------------------


def coordinate_from_pixel(pixel: int, side: int) -> float:
    """Centre of `pixel` (0 to side - 1) in [0, 1]: (pixel + 0.5) / side."""
    return (pixel + 0.5) / side


def pixel_from_coordinate(coordinate: float, side: int) -> int:
    """Pixel (0 to side - 1) that holds `coordinate` in [0, 1]: min(floor(x * side), side - 1)."""
    return min(int(coordinate * side), side - 1)


def click_pixel(click: Click, height: int, width: int) -> tuple[int, int]:
    """Row and column of a click in a frame of `height` x `width` pixels."""
    return pixel_from_coordinate(click.y, height), pixel_from_coordinate(click.x, width)


def click_at(row: int, column: int, height: int, width: int, positive: bool) -> Click:
    """The click at the centre of a pixel."""
    return Click(coordinate_from_pixel(column, width), coordinate_from_pixel(row, height), positive)


# --- writing ----------------------------------------------------------------------------------


def verb_of(action: Action) -> Verb:
    """The word of the grammar for an action."""
    match action:
        case Click(positive=True):
            return Verb.POSITIVE
        case Click():
            return Verb.NEGATIVE
        case Box():
            return Verb.BOX
        case Undo():
            return Verb.UNDO
        case Terminate():
            return Verb.TERMINATE


def format_action(action: Action) -> str:
    """Canonical text of an action, such as `Positive Point (0.5000, 0.2500)`."""
    verb = verb_of(action)
    match action:
        case Click():
            return f"{verb} ({action.x:.{DECIMALS}f}, {action.y:.{DECIMALS}f})"
        case Box():
            corners = (action.x1, action.y1, action.x2, action.y2)
            return f"{verb} ({', '.join(f'{value:.{DECIMALS}f}' for value in corners)})"
        case _:
            return str(verb)


def format_text(think: str, action: Action, answer: str | None = None) -> str:
    """Canonical policy text on one line. `answer` belongs to Terminate and to nothing else."""
    if (answer is not None) != isinstance(action, Terminate):
        raise InputError(
            "an answer goes with Terminate and with no other action",
            f"{verb_of(action)} {'with' if answer is not None else 'without'} an answer",
        )
    for part in (think, answer or ""):
        if _TAG.search(part):
            raise InputError("thoughts and answers hold no tags of the grammar", repr(part[:40]))
    text = f"<think> {think.strip()} </think> <action> {format_action(action)} </action>"
    return text if answer is None else f"{text} <answer> {answer.strip()} </answer>"


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    tag: str
    content: str


def _blocks(text: str) -> tuple[list[_Block], bool, bool]:
    """Closed tag pairs in order; whether text or a stray tag lies outside; an open <action>."""
    blocks: list[_Block] = []
    outside = False
    position = 0  # end of what has been understood
    opened: re.Match[str] | None = None
    tags = list(_TAG.finditer(text))
    last_close = {tag[2]: tag.start() for tag in tags if tag[1]}
    for tag in tags:
        closing, name = bool(tag[1]), tag[2]
        if opened is None:
            # a thought or answer that never closes must not hide the action after it
            stray = closing or (name != "action" and last_close.get(name, -1) < tag.start())
            outside |= bool(text[position : tag.start()].strip()) or stray
            opened = None if stray else tag
        elif closing and name == opened[2]:
            blocks.append(_Block(name, text[opened.end() : tag.start()].strip()))
            opened = None
        else:  # a tag inside another: part of its content
            continue
        position = tag.end()
    if opened is None:
        return blocks, outside or bool(text[position:].strip()), False
    return blocks, True, True  # only an action can be open here: other tags that never close are stray


def _read_action(content: str, verbs: Collection[Verb]) -> tuple[Action | None, ParseFailure | None, str]:
    if content in ("Terminate", "Termination"):
        return Terminate(), None, ""
    if content == "Undo":
        if Verb.UNDO not in verbs:
            return None, ParseFailure.VERB_NOT_ENABLED, "Undo is not available here."
        return Undo(), None, ""
    call = _CALL.fullmatch(content)
    if call is None:
        return None, ParseFailure.UNKNOWN_VERB, f"The action must be one of: {verb_list(verbs)}."
    verb = Verb(" ".join(call[1].split()))
    if verb not in verbs:
        return None, ParseFailure.VERB_NOT_ENABLED, f"{verb} is not available here."
    wanted = 4 if verb is Verb.BOX else 2
    numbers = [part.strip() for part in call[2].split(",")]
    if len(numbers) != wanted or not all(_NUMBER.fullmatch(number) for number in numbers):
        return None, ParseFailure.BAD_COORDINATES, f"{verb} needs {wanted} decimal numbers."
    values = [float(number) for number in numbers]
    if not all(0.0 <= value <= 1.0 for value in values):
        detail = "Coordinates are fractions of the picture's width and height, from 0 to 1."
        return None, ParseFailure.OUT_OF_RANGE, detail
    if verb is not Verb.BOX:
        return Click(values[0], values[1], verb is Verb.POSITIVE), None, ""
    if values[0] >= values[2] or values[1] >= values[3]:
        return None, ParseFailure.EMPTY_BOX, "Box needs x1 < x2 and y1 < y2."
    return Box(*values), None, ""


def _format_fault(tags: list[str], outside: bool, terminates: bool) -> FormatFault | None:
    thinks, answers = tags.count("think"), tags.count("answer")
    if thinks != 1:
        return FormatFault.SEVERAL_THINKS if thinks else FormatFault.MISSING_THINK
    if tags[0] != "think":
        return FormatFault.MISPLACED_THINK
    if answers > 1:
        return FormatFault.SEVERAL_ANSWERS
    if terminates and answers == 0:
        return FormatFault.MISSING_ANSWER
    if answers and (not terminates or tags[-1] != "answer"):
        return FormatFault.MISPLACED_ANSWER
    return FormatFault.TEXT_OUTSIDE_TAGS if outside else None


def parse(text: str, verbs: Collection[Verb] = BASE_VERBS) -> ParsedText:
    """Read one policy text. Never raises: what cannot be executed has a named `failure`."""
    blocks, outside, action_open = _blocks(text)
    thoughts = [block.content for block in blocks if block.tag == "think"]
    answers = [block.content for block in blocks if block.tag == "answer"]
    actions = [block.content for block in blocks if block.tag == "action"]
    action: Action | None = None
    failure: ParseFailure | None
    if action_open:
        failure, detail = ParseFailure.UNCLOSED_ACTION, "The <action> tag is not closed."
    elif not actions:
        failure, detail = ParseFailure.NO_ACTION, "There is no <action> ... </action>."
    elif len(actions) > 1:
        failure, detail = ParseFailure.SEVERAL_ACTIONS, "Write exactly one <action>."
    else:
        action, failure, detail = _read_action(actions[0], verbs)
    fault = (
        FormatFault.NOT_EXECUTABLE
        if failure
        else _format_fault([block.tag for block in blocks], outside, isinstance(action, Terminate))
    )
    return ParsedText(
        think=thoughts[0] if thoughts else None,
        action=action,
        answer=answers[-1] if answers else None,
        failure=failure,
        format_fault=fault,
        detail=detail,
    )


def verb_list(verbs: Collection[Verb]) -> str:
    """How the enabled actions are written, for prompts and error texts."""
    forms = {
        Verb.POSITIVE: "Positive Point (x, y)",
        Verb.NEGATIVE: "Negative Point (x, y)",
        Verb.UNDO: "Undo",
        Verb.BOX: "Box (x1, y1, x2, y2)",
        Verb.TERMINATE: "Terminate",
    }
    return ", ".join(form for verb, form in forms.items() if verb in verbs)
