"""The scores of one case, from its episode and true mask: what is written beside each episode."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ibisagent.actions import click_pixel
from ibisagent.errors import EpisodeFormatError
from ibisagent.masks import error_regions
from ibisagent.metrics import OBJECT_IOU, Overlap, match_objects, overlap, surface_distances
from ibisagent.types import Box, Click, Episode, EpisodeStatus, Mask, Outcome, Sample, Verb

SCHEMA = "ibisagent.sample/1"
TOLERANCE = 2.0  # of NSD, in the unit of the surface distances

_CONFIDENCE = re.compile(
    r"\b(?:confidence|certainty)(?: level| score)?(?: is| of)?[\s:=]+(\d+(?:\.\d+)?)(\s*%| percent)?"
    r"|(\d+(?:\.\d+)?)\s*(?:%|percent) (?:confident|certain|sure|confidence|certainty)\b",
    re.IGNORECASE,
)


Absence = Literal["hard", "easy", "contradictory"]  # see `cases`, and `perturb` for the words


@dataclass(frozen=True)
class Surface:
    """Surface distances of one case."""

    unit: str  # "mm" where the spacing is known, else "px"
    nsd: float  # at TOLERANCE
    hd95: float
    assd: float


@dataclass(frozen=True)
class CaseScore:
    """Everything that aggregates need to know of one case. Holds no name, path or patient id."""

    case: str  # sample id, such as SET/HASH/TARGET
    dataset: str
    split: str
    target: str
    modality: str | None
    site: str | None
    patient: str  # hash; cases of one patient are drawn together
    unreadable: str = ""  # why there is no episode; all below is then meaningless
    present: bool = True  # the true mask is not empty
    absence: Absence | Literal[""] = ""  # why the true mask is empty
    status: str = ""
    outcome: str = ""
    truth_pixels: int = 0
    predicted_pixels: int | None = None  # None: no prediction (outcome none)
    intersection: int = 0
    surface: Surface | None = None  # None: no prediction, or a mask is empty
    objects: tuple[int, int, int] | None = (
        None  # TP, FP, FN at OBJECT_IOU; without a prediction all are missed
    )
    ious: tuple[float, ...] = ()  # before turn 1, then after each turn
    turn_verbs: tuple[str, ...] = ()  # the action of each turn; "" where none could be read
    clicks_in_error: tuple[bool, ...] = ()  # of each click: positive in FN, or negative in FP
    first_click_inside: bool | None = None  # in the target; None: no click, or a negative one
    tool_score: float | None = None  # the tool's own estimate of the result's IoU
    stated_confidence: float | None = None  # in [0, 1], where the policy's last text states one
    tokens: int = 0
    seconds: float = 0.0  # wall time of the episode; in a batch, that of its neighbours too
    policy_seconds: float = 0.0
    tool_seconds: float = 0.0

    @property
    def turns(self) -> int:
        return len(self.turn_verbs)

    @property
    def clicks(self) -> int:
        return sum(verb in _CLICKS for verb in self.turn_verbs)

    def overlap(self) -> Overlap | None:
        """Pixel counts of truth and prediction; None where there is no prediction."""
        if self.predicted_pixels is None:
            return None
        return Overlap(self.intersection, self.truth_pixels, self.predicted_pixels)

    def iou(self) -> float:
        """IoU of the result; 0 without a prediction, 1 where both masks are empty."""
        counts = self.overlap()
        return 0.0 if counts is None else counts.iou() or 0.0

    def ious_by_click(self) -> tuple[float, ...]:
        """IoU before the first click or box and after each; Undo counts with the click before it."""
        values = [self.ious[0]] if self.ious else []
        for verb, value in zip(self.turn_verbs, self.ious[1:], strict=True):
            if verb in _CLICKS:
                values.append(value)
            elif values:
                values[-1] = value
        return tuple(values)


_CLICKS = (str(Verb.POSITIVE), str(Verb.NEGATIVE), str(Verb.BOX))


def score(sample: Sample, patient: str, episode: Episode, absence: Absence = "hard") -> CaseScore:
    """Score one finished episode. `sample.truth` must be known; `patient` is already hashed.

    `absence` says how hard an absent target is; where the target is present it is not used.
    """
    truth = sample.truth
    assert truth is not None, "only samples with a true mask can be scored"
    predicted = episode.mask if episode.outcome is not Outcome.NONE else None
    empty = np.zeros_like(truth)
    counts = overlap(truth, empty if predicted is None else predicted)
    first = next((turn.action for turn in episode.turns if isinstance(turn.action, Click)), None)
    found = match_objects(truth, empty if predicted is None else predicted, OBJECT_IOU)
    steps = [episode.start_mask, *(turn.mask for turn in episode.turns)]
    return CaseScore(
        **_names(sample, patient),
        present=bool(truth.any()),
        absence="" if truth.any() else absence,
        status=str(episode.status),
        outcome=str(episode.outcome),
        truth_pixels=counts.truth,
        predicted_pixels=None if predicted is None else counts.predicted,
        intersection=counts.intersection,
        surface=None if predicted is None else _surface(sample, truth, predicted),
        objects=(found.true_positives, found.false_positives, found.false_negatives),
        ious=tuple(overlap(truth, empty if mask is None else mask).iou() or 0.0 for mask in steps),
        turn_verbs=tuple(_verb(turn.action) for turn in episode.turns),
        clicks_in_error=_clicks_in_error(truth, episode),
        first_click_inside=_inside(truth, first) if first is not None and first.positive else None,
        tool_score=_selected_score(episode),
        stated_confidence=_stated_confidence(episode),
        tokens=sum(attempt.tokens for turn in episode.turns for attempt in turn.attempts),
        seconds=episode.seconds,
        policy_seconds=sum(turn.policy_seconds for turn in episode.turns),
        tool_seconds=episode.start_seconds + sum(turn.tool_seconds for turn in episode.turns),
    )


def unreadable(sample_facts: dict[str, Any], reason: str) -> CaseScore:
    """The record of a case whose picture or mask could not be read."""
    return CaseScore(**sample_facts, unreadable=reason)


def to_record(scored: CaseScore) -> dict[str, Any]:
    """Plain JSON values, rounded to a microsecond where they are times."""
    record = dataclasses.asdict(scored)
    for key in ("seconds", "policy_seconds", "tool_seconds"):
        record[key] = round(record[key], 6)
    return {"schema": SCHEMA, **record}


def from_record(record: dict[str, Any]) -> CaseScore:
    """The inverse of `to_record`; fields that are not scores, such as the episode, are ignored.

    Raises EpisodeFormatError for another schema or a field that does not hold.
    """
    if record.get("schema") != SCHEMA:
        raise EpisodeFormatError(f"this version reads {SCHEMA}", repr(record.get("schema")))
    try:
        added = ("absence", "stated_confidence")  # missing in older lines, which then have the default
        values = {
            field.name: record[field.name]
            for field in dataclasses.fields(CaseScore)
            if field.name in record or field.name not in added
        }
        for key in ("ious", "turn_verbs", "clicks_in_error"):
            values[key] = tuple(values[key])
        values["surface"] = values["surface"] and Surface(**values["surface"])
        values["objects"] = values["objects"] and tuple(values["objects"])
        return CaseScore(**values)
    except (KeyError, TypeError) as error:
        raise EpisodeFormatError(f"a sample has every field of {SCHEMA}", str(error)) from None


def unanswered(line: Mapping[str, Any]) -> str | None:
    """Why a line of a sample file holds no answer, as one sentence; None where it holds one.

    No answer: a picture that cannot be read, a policy or tool that failed, or an episode that was
    ended from outside before anything stood. The same case may be answered when it is asked again.
    """
    if line.get("unreadable"):
        return str(line["unreadable"])
    status = line.get("status")
    failed = status in (EpisodeStatus.POLICY_ERROR, EpisodeStatus.TOOL_ERROR)
    ended = status in (EpisodeStatus.TIME_LIMIT, EpisodeStatus.CANCELLED)
    if not failed and not (ended and line.get("outcome") == Outcome.NONE):
        return None
    return str(line["episode"]["result"]["message"] if line.get("episode") else status)


def _names(sample: Sample, patient: str) -> dict[str, Any]:
    return {
        "case": sample.sample_id,
        "dataset": sample.dataset or "",
        "split": sample.split or "",
        "target": sample.target or "",
        "modality": sample.modality,
        "site": sample.site,
        "patient": patient,
    }


def _surface(sample: Sample, truth: Mask, predicted: Mask) -> Surface | None:
    spacing = sample.picture.spacing
    distances = surface_distances(truth, predicted, spacing)
    if distances is None:
        return None
    unit = "mm" if spacing is not None else "px"
    return Surface(unit, distances.nsd(TOLERANCE), distances.hd95(), distances.assd())


def _verb(action: object) -> str:
    match action:
        case None:
            return ""
        case Click():
            return str(Verb.POSITIVE if action.positive else Verb.NEGATIVE)
        case Box():
            return str(Verb.BOX)
        case _:
            return type(action).__name__


def _clicks_in_error(truth: Mask, episode: Episode) -> tuple[bool, ...]:
    inside = []
    before = episode.start_mask
    for turn in episode.turns:
        if isinstance(turn.action, Click):
            missed, added = error_regions(truth, before)
            inside.append(_inside(missed if turn.action.positive else added, turn.action))
        before = turn.mask
    return tuple(inside)


def _inside(region: Mask, click: Click) -> bool:
    row, column = click_pixel(click, region.shape[0], region.shape[1])
    return bool(region[row, column])


def _selected_score(episode: Episode) -> float | None:
    if episode.selected_turn is None:
        return None
    if episode.selected_turn == 0:
        return episode.start_score
    return episode.turns[episode.selected_turn - 1].score


def stated_confidence(text: str) -> float | None:
    """The last confidence that a text states, as "confidence: 0.8" or "80 % sure"; None without one.

    A bare number above 1 is taken as per cent; what is beyond 100 % is no confidence.
    """
    stated = None
    for match in _CONFIDENCE.finditer(text):
        value = float(match[1] or match[3])
        if match[2] or match[3] or value > 1:
            value /= 100
        stated = value if value <= 1 else stated
    return stated


def _stated_confidence(episode: Episode) -> float | None:
    attempts = episode.turns[-1].attempts if episode.turns else ()
    return stated_confidence(attempts[-1].text) if attempts else None
