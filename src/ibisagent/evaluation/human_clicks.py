"""`ibisagent human-clicks`: how recorded clicks lie in the errors, beside each click simulator.

A recording is an episode log, so there is no format of its own: what `segment --policy human --truth
FILE` writes, or the samples.jsonl of a result folder. For each recorded click the true mask and the
mask before it are known; every simulator is asked for its click in that same state.

depth: distance of the click to the border of the error that it lies in, over the largest such
distance in that connected part of the error; 1 is the middle, and a click outside the error has
none. offset: distance to the simulator's click over the picture's diagonal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import cv2
import numpy as np
import tyro
from scipy import ndimage

from ibisagent.actions import click_pixel
from ibisagent.errors import EpisodeFormatError, InputError
from ibisagent.evaluation.intervals import Resampler, mean, mean_columns
from ibisagent.files import out_folder, write_json
from ibisagent.masks import decode_rle, error_regions
from ibisagent.seeding import generator_for
from ibisagent.synthesis.clicks import ClickSimulator, Kind
from ibisagent.types import Click, Mask, Verb

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "ibisagent.human-clicks/1"
SIMULATORS: tuple[Kind, ...] = get_args(Kind)
RECORDED = "recorded"


@dataclass(frozen=True)
class HumanClicks:
    """Compare recorded clicks with the click simulators: depth, offset, share in the error."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """episode logs (episode.jsonl) or result folders; their episodes must hold true masks"""
    out: Path | None = None
    """folder for human-clicks.json"""
    seed: int = 0
    """of the simulators that draw"""


@dataclass(frozen=True)
class RecordedClick:
    """A click and the state in which it was made."""

    sample_id: str
    dataset: str
    patient: str  # hash, where known; else the sample
    turn: int
    click: Click
    before: tuple[Click, ...]  # earlier clicks of the episode, those taken back included
    truth: Mask
    mask: Mask | None  # before the click


@dataclass(frozen=True)
class Placed:
    """How one click lies in the error of its sign."""

    in_error: bool
    depth: float | None  # None: outside


def run(command: HumanClicks) -> int:
    """Print the table and, with --out, write it. Returns the exit code, 0."""
    from ibisagent.progress import open_screen

    clicks = [click for log in command.logs for click in read_clicks(log)]
    table = compare_clicks(clicks, command.seed)
    show(table, open_screen())
    if command.out is not None:
        write_json(out_folder(command.out) / "human-clicks.json", table)
        print(f"table: {command.out / 'human-clicks.json'}")
    return 0


# --- reading ----------------------------------------------------------------------------------


def read_clicks(log: Path) -> Iterator[RecordedClick]:
    """The clicks of an episode log or result folder, in order; pictures are not needed.

    Raises EpisodeFormatError, naming file and line, for what is no episode, and for episodes that
    hold clicks but no true mask.
    """
    for where, record in _recorded_cases(log) if log.is_dir() else _recorded_lines(log):
        try:
            yield from _episode_clicks(record, where)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, EpisodeFormatError):
                raise
            raise EpisodeFormatError("every line is one episode", where) from None


def _recorded_cases(folder: Path) -> Iterator[tuple[str, Any]]:
    from ibisagent.evaluation.samples import read_lines

    if not any(folder.glob("samples*.jsonl")):
        raise InputError("a result folder holds samples.jsonl", "none there", "name an episode log")
    for record in read_lines(folder):
        yield f"case {record['case']}", record


def _recorded_lines(log: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = log.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EpisodeFormatError("an episode log is a readable file", type(error).__name__) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"line {number} of {log.name}"
            try:
                yield where, json.loads(line)
            except ValueError:
                raise EpisodeFormatError("every line is one episode", where) from None


def _episode_clicks(record: dict[str, Any], where: str) -> Iterator[RecordedClick]:
    names = record if "episode" in record else {}
    episode = record.get("episode", record)
    if episode is None:  # a case that could not be read
        return
    if not str(episode.get("schema", "")).startswith("ibisagent.episode/"):
        raise EpisodeFormatError("every line is one episode", where)
    mask = _mask(episode["start"]["mask"])
    before: tuple[Click, ...] = ()
    for turn in episode["turns"]:
        action = turn["action"] or {}
        if action.get("verb") in (Verb.POSITIVE, Verb.NEGATIVE):
            truth = _mask(episode["truth"])
            if truth is None:
                raise EpisodeFormatError(
                    "episodes hold their true masks", where, "record them with `segment --truth FILE`"
                )
            x, y = (float(value) for value in action["at"])
            click = Click(x, y, action["verb"] == Verb.POSITIVE)
            yield RecordedClick(
                sample_id=str(episode["sample_id"]),
                dataset=str(names.get("dataset") or "recorded"),
                patient=str(names.get("patient") or episode["sample_id"]),
                turn=int(turn["number"]),
                click=click,
                before=before,
                truth=truth,
                mask=mask,
            )
            before += (click,)
        mask = _mask(turn["mask"])


def _mask(record: Any) -> Mask | None:
    return None if record is None else decode_rle(record)


# --- measuring --------------------------------------------------------------------------------


def place(click: Click, truth: Mask, mask: Mask | None) -> Placed:
    """Where a click lies in the error of its sign: missed for positive, wrongly included for negative."""
    missed, added = error_regions(truth, mask)
    error = missed if click.positive else added
    row, column = click_pixel(click, error.shape[0], error.shape[1])
    if not error[row, column]:
        return Placed(False, None)
    _, labels = cv2.connectedComponents(np.ascontiguousarray(error, np.uint8))
    part = np.pad(labels == labels[row, column], 1)  # the picture's border counts as outside
    box = ndimage.find_objects(part.astype(np.uint8))[0]
    top, left = box[0].start - 1, box[1].start - 1  # with a ring of pixels outside
    distance = ndimage.distance_transform_edt(part[top : box[0].stop + 1, left : box[1].stop + 1])
    return Placed(True, float(distance[row + 1 - top, column + 1 - left] / distance.max()))


def offset(first: Click, second: Click, shape: tuple[int, int]) -> float:
    """Distance of two clicks in pixels over the picture's diagonal."""
    height, width = shape
    return float(np.hypot((first.x - second.x) * width, (first.y - second.y) * height) / np.hypot(*shape))


def compare_clicks(clicks: Sequence[RecordedClick], seed: int = 0) -> dict[str, Any]:
    """The table as plain JSON values: a row for the recorded clicks and one for each simulator.

    Figures are means over clicks with 95 % intervals over patients (samples where unknown).
    "depth minus recorded" is over clicks where both lie in the error.
    """
    if not clicks:
        raise InputError("a recording holds at least one click", "none")
    resampler = Resampler([c.dataset for c in clicks], [c.patient for c in clicks])
    placed = [place(c.click, c.truth, c.mask) for c in clicks]

    def figure(values: Sequence[float | None]) -> dict[str, Any]:
        n = sum(value is not None for value in values)
        return {**asdict(resampler.interval(mean_columns(values), mean)), "n": n, "unit": ""}

    rows: list[dict[str, Any]] = [
        {
            "name": RECORDED,
            "in the error": figure([float(p.in_error) for p in placed]),
            "depth": figure([p.depth for p in placed]),
        }
    ]
    for kind in SIMULATORS:
        simulated = [_simulated(click, kind, seed) for click in clicks]
        theirs = [
            None if s is None else place(s, c.truth, c.mask) for s, c in zip(simulated, clicks, strict=True)
        ]
        pairs = list(zip(clicks, simulated, strict=True))
        depths = [None if p is None else p.depth for p in theirs]
        rows.append(
            {
                "name": kind,
                "in the error": figure([None if p is None else float(p.in_error) for p in theirs]),
                "depth": figure(depths),
                "depth minus recorded": figure(
                    [
                        None if depth is None or p.depth is None else depth - p.depth
                        for depth, p in zip(depths, placed, strict=True)
                    ]
                ),
                "offset": figure(
                    [
                        None if s is None else offset(c.click, s, (c.truth.shape[0], c.truth.shape[1]))
                        for c, s in pairs
                    ]
                ),
                "same sign": figure(
                    [None if s is None else float(s.positive == c.click.positive) for c, s in pairs]
                ),
            }
        )
    return {
        "schema": SCHEMA,
        "clicks": len(clicks),
        "episodes": len({(c.dataset, c.sample_id) for c in clicks}),
        "first_clicks": sum(not c.before for c in clicks),
        "rows": rows,
    }


def _simulated(click: RecordedClick, kind: Kind, seed: int) -> Click | None:
    rng = generator_for(seed, "human-clicks", click.sample_id, click.turn, kind)
    return ClickSimulator(kind).next_click(click.truth, click.mask, click.before, rng)


def show(table: dict[str, Any], screen: Console) -> None:
    """The table on the screen."""
    from rich.table import Table

    from ibisagent.evaluation.runs_table import cell

    screen.print(f"{table['clicks']} clicks of {table['episodes']} episodes")
    names = ("in the error", "depth", "depth minus recorded", "offset", "same sign")
    figures = Table()
    for head in ("clicks", *names):
        figures.add_column(head, overflow="fold")
    for row in table["rows"]:
        figures.add_row(row["name"], *(cell(row.get(name)) for name in names))
    screen.print(figures)
