"""The episode log: one versioned JSON object per line, with all that replay needs.

Schema `ibisagent.episode/1`. Masks are COCO RLE in the picture frame. The picture itself is
either embedded (PNG, base64) or lies once per content in a `pictures` folder beside the log,
named by its SHA-256. File names, paths and identities of patients are never written.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from ibisagent.actions import format_action, parse
from ibisagent.errors import EpisodeFormatError
from ibisagent.files import write_whole
from ibisagent.masks import decode_rle, encode_rle
from ibisagent.types import (
    MAX_SIDE,
    Action,
    Attempt,
    Box,
    Click,
    Episode,
    EpisodeStatus,
    FormatFault,
    Mask,
    Outcome,
    ParseFailure,
    Picture,
    Terminate,
    Turn,
    Undo,
    Verb,
)

SCHEMA = "ibisagent.episode/1"
PICTURES = "pictures"  # folder beside the log

PictureStore = Literal["embed", "folder", "none"]


# --- writing ----------------------------------------------------------------------------------


def write_episodes(path: str | Path, episodes: Iterable[Episode], pictures: PictureStore = "embed") -> int:
    """Write episodes to `path` (replaced as a whole); returns how many."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for episode in episodes:
                file.write(episode_line(episode, pictures, path.parent))
                count += 1
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def episode_line(episode: Episode, pictures: PictureStore = "embed", folder: Path | None = None) -> str:
    """One JSON line, newline included. With `folder`, the picture is stored there where needed."""
    record = to_record(episode)
    png = None
    if pictures == "embed":
        png = base64.b64encode(_png(episode.picture)).decode("ascii")
    elif pictures == "folder":
        assert folder is not None, "pictures='folder' needs the folder"
        file = folder / PICTURES / f"{episode.picture.content_id}.png"
        if not file.exists():
            write_whole(file, _png(episode.picture))
    record["picture"]["png"] = png
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def to_record(episode: Episode) -> dict[str, Any]:
    """The episode as plain JSON values, without the picture's pixels."""
    picture = episode.picture
    return {
        "schema": SCHEMA,
        "sample_id": episode.sample_id,
        "rollout": episode.rollout,
        "seed": episode.seed,
        "instruction": episode.instruction,
        "target": episode.target,
        "kind": episode.kind,
        "picture": {
            "sha256": picture.content_id,
            "height": picture.height,
            "width": picture.width,
            "spacing": list(picture.spacing) if picture.spacing else None,
            "laterality": picture.laterality,
            "assumptions": list(picture.assumptions),
            "modality": picture.modality,
            "source": picture.source,
        },
        "start": {
            "kind": episode.start,
            "mask": _rle(episode.start_mask),
            "score": _number(episode.start_score),
            "seconds": round(episode.start_seconds, 6),
        },
        "turns": [_turn_record(turn) for turn in episode.turns],
        "result": {
            "status": str(episode.status),
            "outcome": str(episode.outcome),
            "mask": _rle(episode.mask),
            "selected_turn": episode.selected_turn,
            "answer": episode.answer,
            "message": episode.message,
        },
        "truth": _rle(episode.truth),
        "settings": dict(episode.settings),
        "fingerprint": dict(episode.fingerprint),
        "seconds": round(episode.seconds, 6),
        "host": dict(episode.host),
    }


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "number": turn.number,
        "attempts": [
            {
                "text": attempt.text,
                "failure": attempt.failure and str(attempt.failure),
                "format_fault": attempt.format_fault and str(attempt.format_fault),
                "tokens": attempt.tokens,
                "seconds": round(attempt.seconds, 6),
                "seed": attempt.seed,
            }
            for attempt in turn.attempts
        ],
        "think": turn.think,
        "action": _action_record(turn.action),
        "answer": turn.answer,
        "mask": _rle(turn.mask),
        "score": _number(turn.score),
        "tool_seconds": round(turn.tool_seconds, 6),
        "note": turn.note,
        "rewards": dict(turn.rewards),
    }


def _action_record(action: Action | None) -> dict[str, Any] | None:
    match action:
        case None:
            return None
        case Click():
            return {"verb": format_action(action).split(" (")[0], "at": [action.x, action.y]}
        case Box():
            return {"verb": str(Verb.BOX), "at": [action.x1, action.y1, action.x2, action.y2]}
        case _:
            return {"verb": format_action(action)}


def _rle(mask: Mask | None) -> dict[str, Any] | None:
    return None if mask is None else encode_rle(mask)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


# --- reading ----------------------------------------------------------------------------------

# schemas that are met where an episode is expected: what they are, and what to do
_OTHERS = {
    SCHEMA.partition("/")[0]: ("", "read it with the version that wrote it"),
    "ibisagent.sample": (
        ", a case of `evaluate` without its picture",
        "open report.html beside it, or give its folder to `compare` or `human-clicks`",
    ),
    "ibisagent.vqa": (", an answer of `vqa`", "its scores are in summary.json beside it"),
    "ibisagent.clicks": (", a case of `clicks`", "its figures are in summary.json beside it"),
}

Resolver = Callable[[str], Picture | None]
_T = TypeVar("_T")


def read_episodes(path: str | Path, resolve: Resolver | None = None) -> Iterator[Episode]:
    """Read a log line by line. Raises EpisodeFormatError naming the line and the rule broken.

    `resolve` maps a picture's SHA-256 to the picture, for logs written with pictures="none".
    """
    path = Path(path)
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise EpisodeFormatError(
            "an episode log is a readable JSONL file", error.strerror, "check the path"
        ) from None
    with file:
        lines = enumerate(_decoded(file), start=1)
        for number, line in lines:
            if not line.strip():
                continue
            try:
                yield from_record(_json(line), path.parent, resolve)
            except (ValueError, RecursionError) as error:
                if isinstance(error, EpisodeFormatError):
                    raise EpisodeFormatError(f"line {number}: {error.rule}", error.value, error.fix) from None
                raise EpisodeFormatError(
                    "every line of an episode log is one JSON object",
                    f"something else in line {number}",
                    "the file may be truncated; delete that line to read the others",
                ) from None


def _json(line: str) -> Any:
    """Strict JSON without NaN, Infinity or half characters. Raises ValueError."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    value = json.loads(line, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _decoded(file: Iterable[str]) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError:
        raise EpisodeFormatError("an episode log is UTF-8 text", "other bytes") from None


def from_record(record: Any, folder: Path | None = None, resolve: Resolver | None = None) -> Episode:
    """The episode of one JSON object. Raises EpisodeFormatError for what does not hold."""
    if not isinstance(record, dict):
        raise EpisodeFormatError("an episode is a JSON object", type(record).__name__)
    schema = record.get("schema")
    if schema != SCHEMA:
        what, fix = _OTHERS.get(str(schema).partition("/")[0], ("", "see which command wrote the file"))
        raise EpisodeFormatError(f"an episode log holds {SCHEMA}", f"{schema!r}{what}", fix)
    try:
        return _episode(record, folder, resolve)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, EpisodeFormatError):
            raise
        raise EpisodeFormatError(
            f"an episode has every field of {SCHEMA} in its type", f"{type(error).__name__}: {error}"
        ) from None


def _episode(record: dict[str, Any], folder: Path | None, resolve: Resolver | None) -> Episode:
    picture = _picture(record["picture"], folder, resolve)
    shape = (picture.height, picture.width)
    start, result = record["start"], record["result"]
    _is(dict, _is(dict, record["fingerprint"]).get("tool", {}))
    return Episode(
        sample_id=_is(str, record["sample_id"]),
        rollout=_is(int, record["rollout"]),
        seed=_is(int, record["seed"]),
        instruction=_is(str, record["instruction"]),
        target=_or_none(str, record["target"]),
        picture=picture,
        start=_one_of(("none", "proposal", "file"), start["kind"]),
        start_mask=_mask(start["mask"], shape),
        start_score=_score(start["score"]),
        turns=tuple(_turn(turn, shape) for turn in record["turns"]),
        status=EpisodeStatus(result["status"]),
        outcome=Outcome(result["outcome"]),
        mask=_mask(result["mask"], shape),
        selected_turn=_or_none(int, result["selected_turn"]),
        answer=_or_none(str, result["answer"]),
        message=_is(str, result["message"]),
        settings=_is(dict, record["settings"]),
        fingerprint=_is(dict, record["fingerprint"]),
        truth=_mask(record["truth"], shape),
        kind=_or_none(str, record["kind"]),
        start_seconds=float(start["seconds"]),
        seconds=float(record["seconds"]),
        host=_is(dict, record["host"]),
    )


def _turn(record: Mapping[str, Any], shape: tuple[int, int]) -> Turn:
    return Turn(
        number=_is(int, record["number"]),
        attempts=tuple(
            Attempt(
                text=_is(str, attempt["text"]),
                failure=ParseFailure(attempt["failure"]) if attempt["failure"] else None,
                format_fault=FormatFault(attempt["format_fault"]) if attempt["format_fault"] else None,
                tokens=_is(int, attempt["tokens"]),
                seconds=float(attempt["seconds"]),
                seed=_is(int, attempt["seed"]),
            )
            for attempt in record["attempts"]
        ),
        think=_or_none(str, record["think"]),
        action=_action(record["action"]),
        answer=_or_none(str, record["answer"]),
        mask=_mask(record["mask"], shape),
        score=_score(record["score"]),
        tool_seconds=float(record["tool_seconds"]),
        note=_is(str, record["note"]),
        rewards={key: float(value) for key, value in record["rewards"].items()},
    )


def _action(record: Any) -> Action | None:
    if record is None:
        return None
    verb, at = Verb(record["verb"]), [float(value) for value in record.get("at", ())]
    if not all(0.0 <= value <= 1.0 for value in at):
        raise EpisodeFormatError("coordinates are in [0, 1]", at)
    match verb:
        case Verb.POSITIVE | Verb.NEGATIVE:
            x, y = at
            return Click(x, y, verb is Verb.POSITIVE)
        case Verb.BOX:
            x1, y1, x2, y2 = at
            return Box(x1, y1, x2, y2)
        case Verb.UNDO:
            return Undo()
        case Verb.TERMINATE:
            return Terminate()


def _picture(record: Mapping[str, Any], folder: Path | None, resolve: Resolver | None) -> Picture:
    digest, shape = _is(str, record["sha256"]), (_is(int, record["height"]), _is(int, record["width"]))
    if not all(1 <= side <= MAX_SIDE for side in shape):
        raise EpisodeFormatError(f"a picture's sides are 1 to {MAX_SIDE}", f"{shape[0]}x{shape[1]}")
    spacing = record["spacing"]
    if spacing is not None and not all(math.isfinite(side) and side > 0 for side in spacing):
        raise EpisodeFormatError("pixel spacing is above 0 mm", spacing)
    pixels = None
    if record.get("png") is not None:
        pixels = _read_png(base64.b64decode(record["png"], validate=True), shape)
    elif resolve is not None and (found := resolve(digest)) is not None:
        pixels = found.pixels
    elif folder is not None and len(digest) == 64 and digest.isalnum():
        file = folder / PICTURES / f"{digest}.png"
        if file.is_file():
            pixels = _read_png(file.read_bytes(), shape)
    if pixels is None:
        raise EpisodeFormatError(
            f"a log holds its picture or has it in the folder {PICTURES!r} beside it",
            f"neither for {digest[:12]}",
            "move the folder along with the log",
        )
    picture = Picture(
        pixels=pixels,
        spacing=(float(spacing[0]), float(spacing[1])) if spacing else None,
        laterality=_one_of(("known", "mirrored", "assumed"), record["laterality"]),
        assumptions=tuple(_is(str, text) for text in record["assumptions"]),
        modality=_or_none(str, record["modality"]),
        source=_is(str, record.get("source", "")),  # logs of before it was written
    )
    if picture.content_id != digest:
        raise EpisodeFormatError("a picture's pixels have the SHA-256 written beside them", digest[:12])
    return picture


def _read_png(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.height, image.width) != shape:
                raise EpisodeFormatError("the picture has the size written beside it", f"{image.size}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise EpisodeFormatError("the picture in a log is a whole PNG", type(error).__name__) from None


def _mask(record: Any, shape: tuple[int, int]) -> Mask | None:
    if record is None:
        return None
    mask = decode_rle(record)
    if mask.shape != shape:
        raise EpisodeFormatError("masks have the picture's size", f"{mask.shape} for {shape}")
    return mask


def _score(value: Any) -> float | None:
    if value is not None and not math.isfinite(value):
        raise EpisodeFormatError("scores are finite numbers", value)
    return None if value is None else float(value)


def _is(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _or_none(kind: type[_T], value: Any) -> _T | None:
    return None if value is None else _is(kind, value)


def _one_of(allowed: tuple[str, ...], value: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return value


def check_actions(episode: Episode) -> None:
    """Raise EpisodeFormatError where a turn's action is not what its last text says."""
    try:
        verbs = {Verb(verb) for verb in episode.settings["verbs"]}
    except (KeyError, TypeError, ValueError):
        raise EpisodeFormatError("the settings of an episode name its verbs", None) from None
    for turn in episode.turns:
        if turn.attempts and parse(turn.attempts[-1].text, verbs).action != turn.action:
            raise EpisodeFormatError("a turn's action is what its text says", f"turn {turn.number}")
