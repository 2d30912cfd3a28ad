"""`ibisagent import FILE --out LOG`: trajectories in the reference's two published schemas.

generator: {file, mask_file, img_data, trajectory: [{coords_original, mask_rle}]}; the sign of a
click was never saved and is inferred from the true mask. converter: {"data": [{image_name,
mask_name, caption, clicks_list: [{is_positive, coor, mask}]}]}. The recorded masks are played
through the one loop by a tool that repeats them, with thoughts from templates. Slices of volumes
are turned into our picture frame (recorded_slices.py).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from ibisagent.errors import IbisError, InputError, writing_to
from ibisagent.types import Click, Episode, Mask, Prompt, Sample, ToolReply, ToolRequest

if TYPE_CHECKING:
    from ibisagent.synthesis.recorded_slices import RecordedSlice

_ENDS = ("", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_MAX_TEXT = 64 * 1024**2  # bytes of one mask's run lengths, unpacked


@dataclass(frozen=True)
class Import:
    """Turn trajectories of the reference's schemas into an episode log."""

    source: Annotated[Path, tyro.conf.Positional]
    """a JSON file of either schema, or a folder of them"""
    out: Path
    """the log to write"""
    pictures: Path | None = None
    """folder of the pictures; by default where the file says, else beside it"""
    masks: Path | None = None
    """folder of the true masks; by default as for pictures"""
    target: str | None = None
    """what the masks show, where the file does not say"""
    stop_at: float = 0.80
    """IoU from which a trajectory counts as finished and gets its Terminate"""


@dataclass(frozen=True)
class Recorded:
    """One trajectory as either schema tells it."""

    picture: str
    truth: str
    inverted: bool  # the target is dark in the true mask
    caption: str | None
    pixels: tuple[tuple[int, int], ...]  # x, y of every click
    signs: tuple[bool | None, ...]  # None: not saved
    masks: tuple[Any, ...]  # as written
    slice: RecordedSlice | None = None  # where picture and truth are volumes


def run(command: Import) -> int:
    """Import; returns the exit code. Raises InputError where nothing can be read."""
    from ibisagent.episodes import write_episodes
    from ibisagent.synthesis.trajectories import UNREACHED

    made: list[Episode] = []
    for where, recorded in read_recorded(command.source):
        try:
            made.append(play(recorded, command, where))
        except IbisError as error:
            print(f"left out: {where}: {error}")
    if not made:
        raise InputError("there is something to import", "no whole trajectory", "see the lines above")
    with writing_to("--out is a file"):
        command.out.parent.mkdir(parents=True, exist_ok=True)
    write_episodes(command.out, made, "folder")
    print(
        f"{len(made)} trajectories, {sum(one.kind == UNREACHED for one in made)} unreached, in {command.out}"
    )
    return 0


# --- the two schemas --------------------------------------------------------------------------


def read_recorded(source: Path) -> Iterator[tuple[str, Recorded]]:
    """Every trajectory of a file or folder with a word for where it stands. Raises InputError."""
    from ibisagent.datasets.coco import read_json

    for path in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        data = read_json(path)
        entries = data.get("data") if isinstance(data, dict) and "data" in data else data
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            yield f"{path.name}, entry {number}", _entry(entry)


def _entry(entry: Any) -> Recorded:
    try:
        if "clicks_list" in entry:
            return _from_converter(entry)
        if "trajectory" in entry:
            return _from_generator(entry)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError("a trajectory has all fields of its schema", f"{error!r}"[:80], "check it") from None
    raise InputError("a trajectory has clicks_list or trajectory", "neither", "see docs/data.md")


def _from_generator(entry: Mapping[str, Any]) -> Recorded:
    from ibisagent.synthesis.recorded_slices import RecordedSlice

    kind = entry.get("type", "img")
    if kind not in ("img", "nii"):
        raise InputError("a trajectory is of type img or nii", repr(kind)[:40], "leave it out")
    steps = entry["trajectory"]
    return Recorded(
        picture=str(entry["file"]),
        truth=str(entry["mask_file"]),
        inverted=bool((entry.get("img_data") or {}).get("reverse", False)),
        caption=None,
        pixels=tuple((int(step["coords_original"][0]), int(step["coords_original"][1])) for step in steps),
        signs=(None,) * len(steps),
        masks=tuple(step["mask_rle"] for step in steps),
        slice=RecordedSlice.of(entry["nii_data"]) if kind == "nii" else None,
    )


def _from_converter(entry: Mapping[str, Any]) -> Recorded:
    caption, clicks = entry["caption"], entry["clicks_list"]
    return Recorded(
        picture=str(entry["image_name"]),
        truth=str(entry["mask_name"]),
        inverted=False,
        caption=str(caption if isinstance(caption, str) else caption[0]).replace("<image>", " ").strip(),
        pixels=tuple((int(click["coor"][0]), int(click["coor"][1])) for click in clicks),
        signs=tuple(bool(click["is_positive"]) if "is_positive" in click else None for click in clicks),
        masks=tuple(click["mask"] for click in clicks),
    )


def decode_recorded_mask(code: Any, shape: tuple[int, int]) -> Mask:
    """A mask of either codec as bool HxW of `shape`.

    Text: base64 of zlib of run lengths in decimal, row by row, background first, without a size.
    Object: {size: [H, W], counts: base64 of zlib of COCO's compressed counts}.
    Raises InputError where the runs do not fill the picture; nothing is replaced by an empty mask.
    """
    from ibisagent.masks import decode_rle

    text = _unpacked(code["counts"] if isinstance(code, Mapping) else code)
    if isinstance(code, Mapping):
        mask = decode_rle({"size": code.get("size"), "counts": text})
        if mask.shape != shape:
            raise InputError(
                "a recorded mask has the picture's size", f"{mask.shape} for {shape}", "leave it out"
            )
        return mask
    runs = [int(run) for run in text.split()] if text.replace(" ", "").isdigit() else [-1]
    if min(runs) < 0 or sum(runs) != shape[0] * shape[1]:
        raise InputError("run lengths fill the picture", f"{sum(runs)} for {shape}", "leave it out")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)


def _unpacked(code: Any) -> str:
    try:
        unpack = zlib.decompressobj()
        data = unpack.decompress(base64.b64decode(code, validate=True), _MAX_TEXT)
        if not unpack.eof:
            raise ValueError
        return data.decode("ascii")
    except (TypeError, ValueError, binascii.Error, zlib.error):
        raise InputError("a recorded mask is base64 of zlib", "something else", "leave it out") from None


# --- playing ----------------------------------------------------------------------------------


class RecordedTool:
    """Answers the n-th click with the n-th recorded mask."""

    name = "recorded"
    prompts: frozenset[Prompt] = frozenset({"point"})

    def __init__(self, masks: Sequence[Mask]) -> None:
        self._masks = list(masks)

    def set_image(self, pictures: Sequence[Any]) -> None:
        """Nothing to encode."""

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        return [ToolReply(self._masks[len(request.clicks) - 1]) for request in requests]

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        raise AssertionError("recorded trajectories start from clicks")

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}


def play(recorded: Recorded, command: Import, where: str) -> Episode:
    """The episode of a recorded trajectory. Raises InputError where something of it is missing."""
    from ibisagent.datasets.cases import hashed
    from ibisagent.environment import Settings
    from ibisagent.images import load_picture
    from ibisagent.masks import iou
    from ibisagent.policies.scripted import fixed
    from ibisagent.rollout import collect, rollout
    from ibisagent.synthesis.recorded_slices import SliceFrame
    from ibisagent.synthesis.trajectories import UNREACHED, reached
    from ibisagent.targets import canonical_target

    if not recorded.pixels:
        raise InputError("a trajectory has clicks", "none", "leave it out")
    file = _find(recorded.picture, command.pictures, command.source, "picture")
    if recorded.slice is None:
        picture = load_picture(file)
        shape = (picture.height, picture.width)
        truth = _truth(recorded, command, shape)
        masks = [decode_recorded_mask(code, shape) for code in recorded.masks]
    else:
        frame = SliceFrame(file, recorded.slice)
        picture = frame.picture()
        shape = (picture.height, picture.width)
        truth = frame.truth(_find(recorded.truth, command.masks, command.source, "true mask"))
        masks = [frame.mask(decode_recorded_mask(code, frame.drawn_shape)) for code in recorded.masks]
        recorded = replace(recorded, pixels=tuple(frame.pixel(x, y) for x, y in recorded.pixels))
    target = command.target or canonical_target(recorded.caption or "")
    if recorded.caption is None and target is None:
        raise InputError("something must say what the masks show", "no caption", 'add --target "liver"')
    instruction = recorded.caption or f"Find the {target} in this image."
    clicks = _clicks(recorded, truth, shape)
    finished = iou(masks[-1], truth) >= command.stop_at
    texts = _texts(target or "target", truth, masks, clicks, finished, where)
    sample = Sample(f"imported/{hashed(where)}", picture, instruction, target, truth)
    settings = Settings(max_turns=len(texts), retries=0)
    [episode] = collect(rollout([sample], fixed(texts), RecordedTool(masks), settings))
    return replace(episode, kind="plain" if reached(episode, command.stop_at) else UNREACHED)


def _truth(recorded: Recorded, command: Import, shape: tuple[int, int]) -> Mask:
    """The true mask: above half of its largest value, as 0/1 and 0/255 files both mean it."""
    from ibisagent.datasets.mask_sources import label_values

    values = label_values(_find(recorded.truth, command.masks, command.source, "true mask"))
    values = values if values.ndim == 2 else values.max(axis=2)
    truth = np.asarray(values > int(values.max()) // 2)
    truth = ~truth if recorded.inverted else truth
    if truth.shape != shape:
        raise InputError("the true mask has the picture's size", f"{truth.shape} for {shape}", "leave it out")
    return truth


def _find(name: str, folder: Path | None, source: Path, what: str) -> Path:
    """A file by its written path, or by its name in the folder given or beside the source."""
    near = source if source.is_dir() else source.parent
    places = [folder / name, folder / Path(name).name] if folder else [Path(name), near / name]
    places += [near / Path(name).name, near / "train" / name]
    for place in places:
        for end in _ENDS:
            if (found := place.with_name(place.name + end)).is_file():
                return found
    raise InputError(f"the {what} of a trajectory must be found", "no such file", "name its folder")


def _clicks(recorded: Recorded, truth: Mask, shape: tuple[int, int]) -> list[Click]:
    """Clicks at the recorded pixels.

    A sign that was not saved follows from the truth alone: the reference clicked only in errors,
    and an error within the target is a missed part, one outside it a wrongly included part.
    """
    from ibisagent.actions import click_at

    found = []
    for (x, y), sign in zip(recorded.pixels, recorded.signs, strict=True):
        if not (0 <= x < shape[1] and 0 <= y < shape[0]):
            raise InputError(
                "clicks lie in the picture", f"({x}, {y}) in {shape[1]} x {shape[0]}", "leave it out"
            )
        found.append(click_at(y, x, *shape, bool(truth[y, x]) if sign is None else sign))
    return found


def _texts(
    target: str,
    truth: Mask,
    masks: Sequence[Mask],
    clicks: Sequence[Click],
    finished: bool,
    where: str,
) -> list[str]:
    from ibisagent.actions import format_text
    from ibisagent.seeding import generator_for
    from ibisagent.synthesis.reasoning import answer, facts, thought
    from ibisagent.types import Terminate

    rng = generator_for("import", where)
    texts, before = [], None
    for click, after in zip(clicks, masks, strict=True):
        texts.append(format_text(thought(facts(target, truth, before, click), rng), click))
        before = after
    if finished:
        known = facts(target, truth, before, Terminate())
        texts.append(format_text(thought(known, rng), Terminate(), answer(known, rng)))
    return texts
