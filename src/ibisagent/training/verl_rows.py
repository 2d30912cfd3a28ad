"""Samples as rows for verl, and back: `python -m ibisagent.training.verl_rows DATA --out FOLDER`.

A row names its picture by a file below the folder and holds no pixels, because verl carries whole
rows along with every rollout. The agent loop and the single-turn reward make the sample again from
the row; what the policy sees is rendered then, by the environment. Trajectories to imitate are
`ibisagent export --to verl`'s business; this is for reinforcement learning. Needs the extra `data`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import IbisError, InputError, MissingExtraError, install, writing_to
from ibisagent.files import out_folder, part_of, write_whole
from ibisagent.types import Mask, Picture, Sample

if TYPE_CHECKING:
    from ibisagent.evaluation.cases import Plan

AGENT = "ibisagent"
MARKER = "<image>"  # where verl puts a picture into a prompt
_FILE = re.compile(r"images/[0-9a-f]{20}\.png")


@dataclass(frozen=True)
class VerlRows(Reading):
    """Write the samples of a data set as parquet for reinforcement learning with verl."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set that `ibisagent data check` reads"""
    out: Path
    """folder for PART.parquet and images/; several parts may share it"""
    split: str = "train"
    """train, val or test; also names the file. Where there is no val it is a tenth of train's patients"""
    absent: Literal["none", "hard"] = "hard"
    """hard: also targets that are not in the picture, listed so or with an empty mask; none: neither"""
    single_turn: bool = False
    """for verl's single_turn_agent: the picture is in the prompt, and one text is the whole episode"""
    per_set: int | None = None
    """at most so many cases of each set, drawn by hash; those that are left out count too"""


def run(command: VerlRows) -> int:
    """Write the rows; returns the exit code. Raises InputError."""
    from ibisagent.evaluation.cases import plan

    out_folder(command.out)
    found = plan(
        command.data,
        command.split,
        absent=command.absent,
        per_set=command.per_set,
        format=command.format,
        options=command.read_options(),
    )
    each = _usable(found, command.absent != "none")
    with writing_to("--out is a folder"):
        count = write_rows(each, command.out, command.split, single_turn=command.single_turn)
    print(f"{count} rows in {command.out / command.split}.parquet")
    return 0


def _usable(found: Plan, absent: bool) -> Iterator[Sample]:
    """The samples of a plan, with `absent` those too whose target is not in the picture.

    What cannot be read is named and passed over.
    """
    from ibisagent.evaluation.cases import samples

    for task in found.tasks:
        try:
            for sample in samples(task, found.options):
                if absent or sample.truth is None or sample.truth.any():
                    yield sample
        except IbisError as error:
            print(f"left out: {task.entry.where}: {error}", file=sys.stderr)


def write_rows(samples: Iterable[Sample], folder: Path, part: str, *, single_turn: bool = False) -> int:
    """Write `folder`/`part`.parquet and the pictures; returns how many rows.

    Raises MissingExtraError without pyarrow, InputError where there is no sample or no true mask.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("verl's parquet needs the package pyarrow", None, install("data")) from None
    (folder / "images").mkdir(parents=True, exist_ok=True)
    temporary, count = part_of(folder / f"{part}.parquet"), 0
    writer: Any = None
    try:
        for row in _rows(samples, folder, single_turn):
            table = pyarrow.Table.from_pylist([row], schema=_schema(pyarrow, single_turn))
            writer = writer or parquet.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            count += 1
        if writer is None:
            raise InputError("there is something to write", "no sample", "see `ibisagent data check`")
        writer.close()
        temporary.replace(folder / f"{part}.parquet")
    finally:
        temporary.unlink(missing_ok=True)
        if writer is not None:
            writer.close()
    return count


def _rows(samples: Iterable[Sample], folder: Path, single_turn: bool) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(samples):
        yield verl_row(sample, folder, index, single_turn=single_turn)


def verl_row(sample: Sample, folder: Path, index: int, *, single_turn: bool = False) -> dict[str, Any]:
    """One row; its picture is written below `folder`. Raises InputError without a true mask."""
    from ibisagent import render
    from ibisagent.masks import encode_rle
    from ibisagent.prompts import system_prompt, turn_text
    from ibisagent.synthesis.export import content_name, png
    from ibisagent.types import BASE_VERBS, VLM_VIEW

    if sample.truth is None:
        raise InputError("reinforcement learning needs the true mask", f"none in {sample.sample_id}")
    name = f"images/{content_name(sample.picture.pixels)}.png"
    if not (folder / name).exists():
        write_whole(folder / name, png(sample.picture.pixels))
    record = {
        "sample_id": sample.sample_id,
        "instruction": sample.instruction,
        "target": sample.target,
        "picture": name,
        "spacing": sample.picture.spacing,
        "laterality": sample.picture.laterality,
        "start_mask": None if sample.start_mask is None else encode_rle(sample.start_mask),
    }
    first = turn_text(sample.instruction, sample.start_mask is not None)
    row: dict[str, Any] = {
        "data_source": AGENT,
        "agent_name": "single_turn_agent" if single_turn else AGENT,
        "prompt": [
            {"role": "system", "content": system_prompt(BASE_VERBS)},
            {"role": "user", "content": MARKER + first if single_turn else first},
        ],
        "reward_model": {"style": "rule", "ground_truth": json.dumps(encode_rle(sample.truth))},
        "extra_info": {"index": index, "sample": json.dumps(record)},
    }
    if single_turn:
        if MARKER in first:
            raise InputError(f"instructions hold no {MARKER}", repr(first[:40]), "take it out")
        row["images"] = [{"bytes": png(render.view_image(sample.picture, sample.start_mask, VLM_VIEW))}]
    return row


def read_sample(row: Mapping[str, Any], folder: Path) -> Sample:
    """The sample of a row, its picture read from `folder`. Raises InputError for a row of another kind."""
    import numpy as np
    from PIL import Image

    from ibisagent.masks import decode_rle

    fix = "write the rows with: python -m ibisagent.training.verl_rows"
    try:
        record = json.loads(row["extra_info"]["sample"])
        truth = decode_rle(json.loads(row["reward_model"]["ground_truth"]))
        name, start, spacing = record["picture"], record["start_mask"], record["spacing"]
        known = {key: record[key] for key in ("sample_id", "instruction", "target")}
        laterality = record["laterality"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("a row must hold its sample", f"{type(error).__name__}: {error}", fix) from None
    if not _FILE.fullmatch(str(name)):
        raise InputError("a row's picture is images/NAME.png", repr(name), fix)
    try:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
    except OSError as error:
        raise InputError("a row's picture lies below the folder", name, "check `folder`") from error
    picture = Picture(pixels, None if spacing is None else (spacing[0], spacing[1]), laterality)
    return Sample(**known, picture=picture, truth=truth, start_mask=_mask(start))


def _mask(code: Any) -> Mask | None:
    from ibisagent.masks import decode_rle

    return None if code is None else decode_rle(code)


def _schema(pyarrow: Any, single_turn: bool) -> Any:
    text = pyarrow.string()
    columns = [
        ("data_source", text),
        ("agent_name", text),
        ("prompt", pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))),
        ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
        ("extra_info", pyarrow.struct([("index", pyarrow.int64()), ("sample", text)])),
    ]
    if single_turn:
        columns.append(("images", pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary())]))))
    return pyarrow.schema(columns)


if __name__ == "__main__":
    try:
        sys.exit(run(tyro.cli(VerlRows)))
    except IbisError as error:
        sys.exit(f"error: {error}")
