"""`ibisagent export TRAJECTORIES --to FORMAT --out DIR`: trajectories for other people's trainers.

llamafactory: ShareGPT JSON and dataset_info.json. messages: JSONL with `messages` and `images`, as
TRL and Hugging Face take them. verl: parquet for single turns or for an agent loop (extra `data`).
Texts are those that the policy reads in an episode, pictures are rendered by the one renderer; in
every record there are as many pictures as image markers. A turn whose click is wrong (what a
self-correction notices) is never a text to learn: with `turns` it is left out, and with `episodes`
such trajectories are, since these formats cannot say which reply of a conversation counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.errors import InputError, MissingExtraError, install
from ibisagent.files import out_folder

if TYPE_CHECKING:
    from ibisagent.types import Episode, Message, Pixels

MARKER = "<image>"
Format = Literal["llamafactory", "messages", "verl"]
Unit = Literal["turns", "episodes"]


@dataclass(frozen=True)
class Export:
    """Write trajectories in the format of another trainer."""

    trajectories: Annotated[Path, tyro.conf.Positional]
    """a folder of `ibisagent synthesize`, or one log"""
    out: Path
    """folder for the exported files"""
    to: Format = "messages"
    """llamafactory (ShareGPT), messages (TRL, Hugging Face) or verl (parquet)"""
    unit: Unit = "turns"
    """turns: a record for every turn, as a policy without history meets it; episodes: whole conversations"""
    kinds: tuple[str, ...] = ()
    """only these kinds of trajectory, such as plain stop; by default all that came to their end"""


@dataclass(frozen=True)
class Record:
    """One conversation to learn from; markers stand where its pictures belong."""

    key: str  # sample id, seed and turn
    messages: tuple[Message, ...]  # texts without markers; pictures with their message
    kind: str
    target: str | None
    truth: Mapping[str, Any] | None  # COCO RLE
    turn: int  # of the last reply

    @property
    def images(self) -> list[Pixels]:
        return [image for message in self.messages for image in message.images]


def run(command: Export) -> int:
    """Export; returns the exit code. Raises InputError."""
    from ibisagent.episodes import read_episodes
    from ibisagent.synthesis.manifest import trajectory_files

    files = trajectory_files(command.trajectories)
    episodes = (episode for path in files for episode in read_episodes(path))
    out_folder(command.out)
    if any(command.out.iterdir()):
        raise InputError("--out is an empty folder", "one with files", "name another folder")
    found = records(episodes, command.unit, command.kinds)
    count = write_records(found, command.to, command.out, command.unit)
    if not count:
        raise InputError("there is something to export", "no trajectory of these kinds", "see the manifest")
    print(f"{count} records in {command.out}")
    return 0


# --- records ----------------------------------------------------------------------------------


def records(episodes: Iterable[Episode], unit: Unit, kinds: Sequence[str] = ()) -> Iterator[Record]:
    """What is to be learnt from trajectories; see the module for which turns are left out.

    `unreached` trajectories are taken only where `kinds` names them.
    """
    from ibisagent.synthesis.trajectories import UNREACHED, wrong_turns

    for episode in episodes:
        if episode.kind not in kinds and (kinds or episode.kind == UNREACHED):
            continue
        wrong = set(wrong_turns(episode)) if episode.truth is not None else set()
        if unit == "turns":
            for number in range(1, len(episode.turns) + 1):
                if number not in wrong and episode.turns[number - 1].action is not None:
                    yield _record(episode, number, str(episode.settings["history"]))
        elif not wrong and episode.turns:
            yield _record(episode, len(episode.turns), "all")


def _record(episode: Episode, number: int, history: str) -> Record:
    """The conversation up to the reply of turn `number`, as the policy of that history sees it."""
    from ibisagent import render
    from ibisagent.masks import encode_rle
    from ibisagent.prompts import Exchange, History, conversation, turn_text
    from ibisagent.replay import settings_of, view_of
    from ibisagent.types import Message

    settings, view = settings_of(episode), view_of(episode)
    masks = [episode.start_mask, *(turn.mask for turn in episode.turns)]
    shown = []
    for index in range(number):
        mask = masks[index]
        image = render.view_image(episode.picture, mask, view, settings.style)
        request = turn_text(episode.instruction, mask is not None)
        reply = episode.turns[index].attempts[-1].text
        shown.append([Exchange(request, image, reply if index < number - 1 else None)])
    messages = conversation(settings.system_text, shown, History(history))
    last = episode.turns[number - 1].attempts[-1].text
    for message in (*messages, Message("assistant", last)):
        if MARKER in message.text:
            raise InputError(
                f"texts hold no {MARKER}", "an instruction or reply with one", "take it out: it is a marker"
            )
    return Record(
        key=f"{episode.sample_id}#{episode.seed}/{number}",
        messages=(*messages, Message("assistant", last)),
        kind=episode.kind or "",
        target=episode.target,
        truth=encode_rle(episode.truth) if episode.truth is not None else None,
        turn=number,
    )


def marked(message: Message) -> str:
    """The text with one marker per picture before it."""
    return MARKER * len(message.images) + message.text


# --- writing ----------------------------------------------------------------------------------


def write_records(found: Iterable[Record], to: Format, out: Path, unit: Unit) -> int:
    """Write records and their pictures below `out`; returns how many records.

    Raises MissingExtraError where verl's parquet needs a package that is not installed.
    """
    pictures = _Pictures(out / "images")
    if to == "verl":
        return _write_verl(found, out, unit)
    count = 0
    name = "data.jsonl" if to == "messages" else "data.json"
    temporary = out / f"{name}.part"
    with temporary.open("w", encoding="utf-8") as file:
        file.write("" if to == "messages" else "[\n")
        for record in found:
            make = _messages_row if to == "messages" else _sharegpt_row
            row = json.dumps(make(record, pictures), ensure_ascii=False)
            file.write(row + "\n" if to == "messages" else (",\n" if count else "") + row)
            count += 1
        file.write("" if to == "messages" else "\n]\n")
    if not count:
        temporary.unlink()
        return 0
    temporary.replace(out / name)
    if to == "llamafactory":
        (out / "dataset_info.json").write_text(json.dumps(DATASET_INFO, indent=1) + "\n", encoding="utf-8")
    return count


DATASET_INFO = {
    "ibisagent": {
        "file_name": "data.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
}
"""How LLaMA-Factory reads `data.json`; its media_dir is the export's folder."""


class _Pictures:
    """PNG files named by their content, each written once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()

    def put(self, pixels: Pixels) -> str:
        """The path relative to the export's folder."""
        name = f"{content_name(pixels)}.png"
        if name not in self._known:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(png(pixels))
            self._known.add(name)
        return f"{self._folder.name}/{name}"


def content_name(pixels: Pixels) -> str:
    """Twenty hexadecimal digits of size and content."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:20]


def png(pixels: Pixels) -> bytes:
    """HxWx3 uint8 as a PNG file."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _sharegpt_row(record: Record, pictures: _Pictures) -> dict[str, Any]:
    return {
        "messages": [{"role": message.role, "content": marked(message)} for message in record.messages],
        "images": [pictures.put(image) for image in record.images],
        "kind": record.kind,
        "id": record.key,
    }


def _messages_row(record: Record, pictures: _Pictures) -> dict[str, Any]:
    """Content as blocks: the pictures of a message, then its text."""
    messages = []
    for message in record.messages:
        blocks: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in message.images]
        messages.append({"role": message.role, "content": [*blocks, {"type": "text", "text": message.text}]})
    return {
        "messages": messages,
        "images": [pictures.put(image) for image in record.images],
        "kind": record.kind,
        "id": record.key,
    }


# --- verl -------------------------------------------------------------------------------------


def verl_row(record: Record, unit: Unit, index: int) -> dict[str, Any]:
    """A row for verl's RLHFDataset: the prompt is all but the last reply, the truth rewards it.

    With `episodes` the row is for an agent loop: its prompt is the first turn's, and the loop makes
    the others.
    """
    prompt = list(record.messages[:-1])
    if unit == "episodes":
        first = next(place for place, message in enumerate(prompt) if message.role == "user")
        prompt = prompt[: first + 1]
    return {
        "data_source": "ibisagent",
        "agent_name": "ibisagent" if unit == "episodes" else "single_turn_agent",
        "prompt": [{"role": message.role, "content": marked(message)} for message in prompt],
        "images": [{"bytes": png(image)} for message in prompt for image in message.images],
        "ability": "segmentation",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(record.truth)},
        "extra_info": {
            "index": index,
            "id": record.key,
            "kind": record.kind,
            "target": record.target or "",
            "turn": record.turn,
            "reply": record.messages[-1].text,
        },
    }


def _write_verl(found: Iterable[Record], out: Path, unit: Unit) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("verl's parquet needs the package pyarrow", None, install("data")) from None
    temporary, writer, count = out / "data.parquet.part", None, 0
    try:
        for rows in _chunks(found, 64):
            table = pyarrow.Table.from_pylist(
                [verl_row(record, unit, count + place) for place, record in enumerate(rows)],
                schema=_verl_schema(pyarrow),
            )
            writer = writer or parquet.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            count += len(rows)
    finally:
        if writer is not None:
            writer.close()
    if count:
        temporary.replace(out / "data.parquet")
    return count


def _verl_schema(pyarrow: Any) -> Any:
    text, whole = pyarrow.string(), pyarrow.int64()
    message = pyarrow.struct([("role", text), ("content", text)])
    extra = [
        ("index", whole),
        ("id", text),
        ("kind", text),
        ("target", text),
        ("turn", whole),
        ("reply", text),
    ]
    return pyarrow.schema(
        [
            ("data_source", text),
            ("agent_name", text),
            ("prompt", pyarrow.list_(message)),
            ("images", pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary())]))),
            ("ability", text),
            ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pyarrow.struct(extra)),
        ]
    )


def _chunks(found: Iterable[Record], size: int) -> Iterator[list[Record]]:
    rows: list[Record] = []
    for record in found:
        rows.append(record)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows
