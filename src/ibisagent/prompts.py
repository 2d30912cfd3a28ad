"""All text that a policy reads, and which of it each history mode carries (METHOD section 3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ibisagent.actions import verb_list
from ibisagent.errors import InputError
from ibisagent.types import Message, Pixels, Verb

_SYSTEM = """\
You are a careful biomedical image analyst. You find one structure or finding in a picture by \
directing a segmentation tool with clicks, one per reply, and you look at its mask after each.

There are two situations.
1. No mask is painted yet. Click a clear, representative part of the target.
2. A mask is painted in green. Compare it with the target. Click what the mask misses with a \
Positive Point, or what it wrongly includes with a Negative Point.

Every reply has a thought and exactly one action:
<think> what you see and why you act </think> <action> ACTION </action>
ACTION is one of: {verbs}.
x runs to the right and y down, both from 0 to 1 of the picture's width and height, with four decimals.
{undo}{box}When the mask fits, or no click would improve it, terminate and report what you found:
<think> why the mask is good </think> <action> Terminate </action> <answer> one paragraph </answer>
If the target is not in the picture, terminate while no mask is painted and say so in the answer."""

_UNDO = "Undo takes back the last click; with no click left it removes the mask.\n"
_BOX = "Box encloses the target; x1 < x2 and y1 < y2.\n"
_FIRST = "{instruction}\nNo mask is painted yet."
_LATER = (
    "{instruction}\nThe current mask is painted in green. Should it be refined with another "
    "action, or is it good enough to terminate?"
)
_RETRY = (
    "Your last reply could not be executed ({failure}). {detail} Reply again with one thought and one action."
)


def system_prompt(verbs: Collection[Verb]) -> str:
    """The system prompt for the enabled verbs."""
    return _SYSTEM.format(
        verbs=verb_list(verbs),
        undo=_UNDO if Verb.UNDO in verbs else "",
        box=_BOX if Verb.BOX in verbs else "",
    )


def turn_text(instruction: str, mask_painted: bool) -> str:
    """The user's text that goes with a picture."""
    return (_LATER if mask_painted else _FIRST).format(instruction=instruction)


def retry_text(failure: str, detail: str) -> str:
    """What the policy is told after a text that could not be executed."""
    return _RETRY.format(failure=failure, detail=detail)


def prompt_id(system: str) -> str:
    """Short hash over every text that reaches a policy; part of the fingerprint."""
    texts = "\x1f".join((system, _FIRST, _LATER, _RETRY))
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


# --- history ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """Which earlier turns a policy sees: `none`, `last-K`, `first+last-K` or `all`.

    `none` shows the current picture alone. `last-K` and `first+last-K` keep every earlier text
    but only the last K pictures (and the first). `all` only ever appends.
    """

    mode: str = "none"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"none|all|(first\+)?last-[1-9][0-9]{0,3}", str(self.mode)):
            raise InputError(
                "history is none, last-K, first+last-K or all", repr(self.mode), "write for example last-3"
            )

    def pictures_kept(self, count: int) -> set[int]:
        """Indices of the pictures shown, out of `count` so far (the current one included)."""
        if self.mode == "all":
            return set(range(count))
        if self.mode == "none":
            return {count - 1}
        last = int(self.mode.rsplit("-", 1)[1])
        kept = set(range(max(0, count - last), count))
        return kept | {0} if self.mode.startswith("first+") else kept


@dataclass(frozen=True)
class Exchange:
    """One attempt as the conversation holds it; a retry shows no picture again."""

    request: str
    image: Pixels | None
    reply: str | None  # None: the one that is asked for now


def conversation(system: str, turns: Sequence[Sequence[Exchange]], history: History) -> tuple[Message, ...]:
    """The messages for the next reply; `turns` holds the attempts of each turn, the current one last.

    Failed attempts of earlier turns stay only in `all`, where nothing is ever taken out.
    """
    kept = history.pictures_kept(len(turns))
    messages = [Message("system", system)]
    for number, attempts in enumerate(turns):
        earlier = number < len(turns) - 1
        if earlier and history.mode == "none":
            continue
        if earlier and history.mode != "all":
            attempts = [Exchange(attempts[0].request, attempts[0].image, attempts[-1].reply)]
        for attempt in attempts:
            images = (attempt.image,) if attempt.image is not None and number in kept else ()
            messages.append(Message("user", attempt.request, images))
            if attempt.reply is not None:
                messages.append(Message("assistant", attempt.reply))
    return tuple(messages)
