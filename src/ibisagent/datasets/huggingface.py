"""Reads Hugging Face data sets with a column of pictures and one of masks.

A path is what `save_to_disk` wrote, one parquet file, or a folder with parquet files. Columns are
found by their names or named in the options; a text column says the target or the instruction.
Needs the extra `data` (package `datasets`). Left out: streaming from the hub; download first.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ibisagent.datasets.cases import Case, DataSet, ReadOptions, Target, case_key
from ibisagent.datasets.folders import SPLITS, taught_labels
from ibisagent.datasets.mask_sources import read_label
from ibisagent.errors import InputError, MissingExtraError, install
from ibisagent.images import load_picture
from ibisagent.types import Mask, Picture

_PICTURES = ("image", "img", "picture", "pixel_values", "images")
_MASKS = ("mask", "label", "annotation", "segmentation", "masks", "segmentation_mask", "gt")
_TARGETS = ("target", "class", "class_name", "label_name", "category")
_INSTRUCTIONS = ("instruction", "text", "prompt", "question", "caption", "sentence")


@dataclass(frozen=True)
class RowPicture:
    """The picture of one row."""

    path: Path
    split: str
    row: int
    column: str

    def read(self) -> Picture:
        return load_picture(_image(_tables(self.path)[self.split][self.row][self.column]))


@dataclass(frozen=True)
class RowMask:
    """The mask of one row; see `MaskFiles` for `label`."""

    path: Path
    split: str
    row: int
    column: str
    label: str | None

    def read(self, shape: tuple[int, int]) -> Mask:
        return read_label(_encoded(_tables(self.path)[self.split][self.row][self.column]), self.label)


def is_huggingface(path: Path) -> bool:
    """Whether a folder was saved by `datasets` or holds parquet files."""
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    return saved or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def read_huggingface(path: Path, options: ReadOptions) -> DataSet:
    """One case per row. Raises InputError where no column of pictures or masks is found."""
    cases: list[Case] = []
    for split, table in _tables(path).items():
        if options.split not in (None, split):
            continue
        names = list(table.column_names)
        picture = _column(names, options.picture_column, _PICTURES, "pictures", "--picture-column")
        mask = _column(names, options.mask_column, _MASKS, "masks", "--mask-column")
        texts = table.select_columns(
            [name for name in (*_TARGETS, *_INSTRUCTIONS) if name in names and name != mask]
        )
        for row, said in enumerate(texts if texts.column_names else [{}] * len(table)):
            cases.append(
                Case(
                    key=case_key(path.name, split, row),
                    where=f"{split}, row {row}",
                    picture=RowPicture(path, split, row, picture),
                    targets=_targets(path, split, row, mask, said, options),
                    dataset=path.stem,
                    split=split,
                )
            )
    return DataSet("huggingface", tuple(cases), options)


def _targets(
    path: Path, split: str, row: int, column: str, said: Mapping[str, Any], options: ReadOptions
) -> tuple[Target, ...]:
    if options.labels:
        return tuple(
            Target(name, RowMask(path, split, row, column, label))
            for label, name in taught_labels(options.labels).items()
        )
    name = next((str(said[key]) for key in _TARGETS if isinstance(said.get(key), str)), options.target)
    instruction = next((str(said[key]) for key in _INSTRUCTIONS if isinstance(said.get(key), str)), None)
    if name is None and instruction is None:
        raise InputError(
            "something must say what the masks show",
            "no text column",
            "give --target, --labels, or a column named target or instruction",
        )
    return (Target(name, RowMask(path, split, row, column, None), instruction),)


def _column(names: Sequence[str], chosen: str | None, usual: Sequence[str], what: str, option: str) -> str:
    found = [chosen] if chosen is not None else [name for name in usual if name in names]
    if not found or found[0] not in names:
        raise InputError(
            f"a table has a column of {what}", chosen or ", ".join(names)[:80], f"name it with {option}"
        )
    return found[0]


@lru_cache(maxsize=2)
def _tables(path: Path) -> dict[str, Any]:
    """Tables by split, their pictures not decoded."""
    try:
        from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
        from datasets import Image as ImageFeature
    except ImportError:
        raise MissingExtraError(
            "reading Hugging Face data sets needs the package datasets",
            None,
            install("data"),
        ) from None
    if path.is_file():
        loaded = DatasetDict({"train": Dataset.from_parquet(str(path))})
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = load_from_disk(str(path))
    else:
        loaded = load_dataset("parquet", data_files=_parquets(path))
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({"train": loaded})
    plain = {}
    for split, table in loaded.items():
        for name, feature in table.features.items():
            if isinstance(feature, ImageFeature):
                table = table.cast_column(name, ImageFeature(decode=False))
        plain[SPLITS.get(str(split).lower(), str(split))] = table
    return plain


def _parquets(path: Path) -> dict[str, list[str]]:
    """Parquet files by split, which their names begin with (train-00000-of-00002.parquet)."""
    files: dict[str, list[str]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        split = SPLITS.get(file.name.split("-")[0].split(".")[0].lower(), "train")
        files.setdefault(split, []).append(str(file))
    return files


def _encoded(value: Any) -> Path | BinaryIO:
    """A picture as `datasets` stores it undecoded: {"bytes": ..., "path": ...}, or plain bytes."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise InputError(
            "a picture column holds encoded pictures", type(value).__name__, "name another column"
        )
    return io.BytesIO(value) if isinstance(value, bytes) else Path(value)


def _image(value: Any) -> Image.Image:
    try:
        image = Image.open(_encoded(value))
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            "a picture column holds whole pictures", type(error).__name__, "export it again"
        ) from None
    return image
