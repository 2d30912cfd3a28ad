"""The data that flows through everything: pictures, actions, observations, turns, episodes.

Frames. A *mask* is a bool array HxW in the picture frame (the stored pixels, after EXIF
transpose and MONOCHROME1 inversion; see METHOD section 4 in docs/method.md). A *click* is
normalised: x to the right and y down, both in [0, 1] of that frame. Pixels live only inside
tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ibisagent.errors import InputError

Mask: TypeAlias = NDArray[np.bool_]  # HxW, picture frame
Pixels: TypeAlias = NDArray[np.uint8]  # HxWx3, RGB in [0, 255]
Logits: TypeAlias = NDArray[np.float32]  # hxw, the tool's own low-resolution grid

# Is image left the patient's right? known: the file says so; mirrored: it says that it is the patient's
# left; assumed: it says nothing, and it is taken so.
Laterality: TypeAlias = Literal["known", "mirrored", "assumed"]

MAX_SIDE = 8192  # pixels a side of any picture (METHOD section 2)


# --- pictures and samples ---------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """One picture as policy and tool may see it. Carries no file name and no identity."""

    pixels: Pixels  # HxWx3 uint8 RGB, picture frame, already windowed
    spacing: tuple[float, float] | None = None  # mm between rows, mm between columns
    laterality: Laterality = "assumed"
    assumptions: tuple[str, ...] = ()  # what was assumed while reading, one sentence each
    modality: str | None = None  # such as "CT", where the file says so
    source: str = ""  # which part of the file is shown, such as "axial slice 20 of 0 to 39"

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def true_aspect(self) -> float:
        """Width over height in millimetres; in pixels where the spacing is unknown."""
        row, column = self.spacing or (1.0, 1.0)
        return (self.width * column) / (self.height * row)

    @cached_property
    def content_id(self) -> str:
        """SHA-256 over shape and pixels; part of the key of every embedding cache."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """A picture, what is asked about it and, in data sets, the true mask."""

    sample_id: str
    picture: Picture
    instruction: str
    target: str | None = None  # canonical name, such as "left kidney"
    truth: Mask | None = None  # None: unknown. All False: the target is absent
    start_mask: Mask | None = None  # for `--start FILE`
    dataset: str | None = None
    split: str | None = None
    patient: str | None = None  # groups the cases of one patient; never shown
    modality: str | None = None
    site: str | None = None


# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Click:
    """A point prompt: x right, y down, both in [0, 1]; negative clicks exclude."""

    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class Box:
    """A box prompt with x1 < x2 and y1 < y2, all in [0, 1]."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Undo:
    """Take back the last click or box; with none left, the starting mask."""


@dataclass(frozen=True)
class Terminate:
    """The current mask is the answer; with no mask, the target is not present."""


Action: TypeAlias = Click | Box | Undo | Terminate


class Verb(StrEnum):
    """The words of the grammar. The first three are always on."""

    POSITIVE = "Positive Point"
    NEGATIVE = "Negative Point"
    TERMINATE = "Terminate"
    UNDO = "Undo"
    BOX = "Box"


BASE_VERBS = frozenset({Verb.POSITIVE, Verb.NEGATIVE, Verb.TERMINATE})


class ParseFailure(StrEnum):
    """Why a text holds no action that can be executed."""

    NO_ACTION = "no_action"  # no <action> tag
    SEVERAL_ACTIONS = "several_actions"  # more than one <action>
    UNCLOSED_ACTION = "unclosed_action"  # the text ends inside <action>
    UNKNOWN_VERB = "unknown_verb"  # the tag holds no valid verb alone
    VERB_NOT_ENABLED = "verb_not_enabled"  # Undo or Box where it is off
    BAD_COORDINATES = "bad_coordinates"  # not two (four) plain decimal numbers
    OUT_OF_RANGE = "out_of_range"  # outside [0, 1], or in pixels
    EMPTY_BOX = "empty_box"  # x1 >= x2 or y1 >= y2


class FormatFault(StrEnum):
    """What is wrong around an action that can be executed all the same."""

    MISSING_THINK = "missing_think"
    SEVERAL_THINKS = "several_thinks"
    MISPLACED_THINK = "misplaced_think"
    MISSING_ANSWER = "missing_answer"  # Terminate without <answer>
    MISPLACED_ANSWER = "misplaced_answer"  # an <answer> before the end, or not last
    SEVERAL_ANSWERS = "several_answers"
    TEXT_OUTSIDE_TAGS = "text_outside_tags"
    NOT_EXECUTABLE = "not_executable"  # there is a ParseFailure


@dataclass(frozen=True)
class ParsedText:
    """What one policy text says. Either `action` or `failure` is set, never both."""

    think: str | None
    action: Action | None
    answer: str | None
    failure: ParseFailure | None
    format_fault: FormatFault | None  # the first one; None means S_format = 1
    detail: str = ""  # one sentence for the policy's retry

    @property
    def format_ok(self) -> bool:
        return self.format_fault is None


# --- observations and policies ----------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """At which size a policy wants to see pictures; aspect follows the millimetres."""

    max_pixels: int = 262_144  # reference training: 512 px
    max_side: int | None = None  # longest side; the picture is enlarged to it where set
    multiple: int = 1  # both sides are rounded to a multiple of this

    def __post_init__(self) -> None:
        bounds = {"max_pixels": MAX_SIDE**2, "max_side": MAX_SIDE, "multiple": 1024}
        for name, most in bounds.items():
            value = getattr(self, name)
            if value is None and name == "max_side":
                continue
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name} of a view is a whole number from 1 to {most}", repr(value))


VLM_VIEW = View(max_pixels=262_144, multiple=28)  # Qwen2.5-VL's: no resizing by its image processor


@dataclass(frozen=True)
class Message:
    """One entry of the conversation; images come before the text."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Pixels, ...] = ()


@dataclass(frozen=True)
class Observation:
    """What a policy gets for one turn. Holds nothing of the true mask."""

    sample_id: str
    instruction: str
    image: Pixels  # the current picture, mask painted, at the policy's View
    messages: tuple[Message, ...]  # the conversation as the history mode carries it
    mask: Mask | None  # the painted mask in the picture frame; None: no mask stands
    clicks: tuple[Click, ...]  # those that stand, oldest first
    verbs: frozenset[Verb]
    turn: int  # from 1
    attempt: int  # from 0; > 0 after a parse failure
    seed: int  # keyed by (run seed, sample id, rollout, turn, attempt)
    laterality: Laterality = "assumed"  # the picture's


@dataclass(frozen=True)
class PolicyReply:
    """A policy's text, or the error that kept it from writing one."""

    text: str = ""
    error: str | None = None  # a sentence; the episode ends with `policy_error`
    tokens: int = 0  # tokens written
    seconds: float = 0.0  # share of the batch's wall time
    token_ids: tuple[int, ...] | None = None  # as sampled, end token included; for training


@dataclass(frozen=True)
class Support:
    """Whether a policy knows what is asked; else why not, and what it does know."""

    known: bool
    target: str | None = None  # canonical name where the policy has names
    reason: str = ""


@runtime_checkable
class Policy(Protocol):
    """Text from observations, in batches. One bad item never spoils the others."""

    name: str  # the spec that loads it, without local paths
    view: View
    verbs: frozenset[Verb]  # those that it was taught

    def supports(self, instruction: str) -> Support: ...

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]: ...

    def fingerprint(self) -> Mapping[str, Any]: ...


# --- tools ------------------------------------------------------------------------------------

Prompt: TypeAlias = Literal["point", "box", "mask", "text"]


@dataclass(frozen=True)
class ToolRequest:
    """Everything a tool needs for one mask; all clicks so far, not only the new one."""

    picture: Picture
    clicks: tuple[Click, ...] = ()
    boxes: tuple[Box, ...] = ()  # the last one counts where a tool takes one
    low_res_logits: Logits | None = None  # the tool's own, from its last reply
    start_mask: Mask | None = None  # the mask that the episode began from, if any
    instruction: str | None = None  # only where the tool may hear it (`--start proposal`)


@dataclass(frozen=True)
class ToolReply:
    """A mask in the picture frame, or the error that kept the tool from making one."""

    mask: Mask | None = None
    score: float | None = None  # the tool's own estimate of the IoU, [0, 1]
    low_res_logits: Logits | None = None
    error: str | None = None  # a sentence; the episode ends with `tool_error`
    seconds: float = 0.0


@runtime_checkable
class Tool(Protocol):
    """A promptable segmentation model. Stateless but for its bounded embedding cache."""

    name: str
    prompts: frozenset[Prompt]

    def set_image(self, pictures: Sequence[Picture]) -> None:
        """Encode what is not cached yet; a later predict on these is cheap."""
        ...

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """One mask per request, in order. Raises ToolError only if all failed."""
        ...

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """First masks from `instruction` alone; only where "text" is in `prompts`.

        Neither mask nor error: the tool has no proposal, and the episode starts without one.
        """
        ...

    def fingerprint(self) -> Mapping[str, Any]: ...


# --- turns and episodes -----------------------------------------------------------------------


class EpisodeStatus(StrEnum):
    """How an episode ended."""

    TERMINATED = "terminated"
    TURN_LIMIT = "turn_limit"
    REPEATED_CLICK = "repeated_click"
    UNPARSABLE = "unparsable"
    TOOL_ERROR = "tool_error"
    POLICY_ERROR = "policy_error"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    UNSUPPORTED_TARGET = "unsupported_target"

    def is_policy_fault(self) -> bool:
        """Faults of the policy's own: in RL the rollout stays in its group."""
        return self in (self.UNPARSABLE, self.TURN_LIMIT, self.REPEATED_CLICK)

    def is_outside_fault(self) -> bool:
        """Faults that the policy did not cause: the rollout leaves its group."""
        return self in (self.TOOL_ERROR, self.POLICY_ERROR, self.TIME_LIMIT, self.CANCELLED)


class Outcome(StrEnum):
    """What an episode says about the target."""

    SEGMENTED = "segmented"
    ABSENT = "absent"
    NONE = "none"


@dataclass(frozen=True)
class Attempt:
    """One policy text within a turn, as written."""

    text: str
    failure: ParseFailure | None
    format_fault: FormatFault | None
    tokens: int
    seconds: float
    seed: int


@dataclass(frozen=True)
class Turn:
    """One policy action and the tool's reply. The last attempt is the one that counts."""

    number: int  # from 1
    attempts: tuple[Attempt, ...]
    think: str | None
    action: Action | None  # None: no attempt could be read
    answer: str | None
    mask: Mask | None  # after the action, picture frame; None: no mask stands
    score: float | None  # the tool's own, of that mask
    tool_seconds: float
    note: str = ""  # why the action was not sent to the tool, or the error met
    rewards: Mapping[str, float] = field(default_factory=dict)  # filled by a rubric

    @property
    def policy_seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.attempts)


@dataclass(frozen=True)
class Episode:
    """All turns for one sample, with all that is needed to replay and re-render them."""

    sample_id: str
    rollout: int
    seed: int  # of the run
    instruction: str
    target: str | None
    picture: Picture
    start: Literal["none", "proposal", "file"]
    start_mask: Mask | None  # the mask before turn 1
    start_score: float | None
    turns: tuple[Turn, ...]
    status: EpisodeStatus
    outcome: Outcome
    mask: Mask | None  # the result; None where the outcome is none
    selected_turn: int | None  # whose mask it is; 0 is the start; None without a mask
    answer: str | None
    message: str  # one sentence for people: why it ended so
    settings: Mapping[str, Any]  # history, verbs, select, max_turns, retries
    fingerprint: Mapping[str, Any]
    truth: Mask | None = None  # kept in training and evaluation data
    kind: str | None = None  # of a trajectory: plain, self_correction, ...
    start_seconds: float = 0.0  # encoding and proposal
    seconds: float = 0.0  # wall time of the whole episode
    host: Mapping[str, Any] = field(default_factory=dict)
