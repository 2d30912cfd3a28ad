"""What every reader gives: cases, which say where pixels are without reading them.

A reader turns an index into `Case`s; only `samples_of` reads pixels, one picture at a time, in the
same way for all formats. So a data set can be listed, checked, split over workers and continued
without loading it, and every rule about sizes, empty masks and names holds once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Protocol

import numpy as np

from ibisagent.datasets.biomedparse import DEFAULT_INSTRUCTION
from ibisagent.datasets.mask_sources import MaskSource, UnionMask
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from ibisagent.images.intensity import Window
from ibisagent.images.nifti import Axis
from ibisagent.types import Picture, Sample

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nii", ".nii.gz")

FaultKind = Literal[
    "missing picture",
    "missing mask",
    "mask without picture",
    "unreadable",
    "size mismatch",
    "assumed orientation",
    "empty mask",
    "odd label value",
    "label typo",
    "duplicate",
    "near-duplicate",
    "patient in two splits",
    "unknown patient",
    "index",
]


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is read; every format takes what concerns it."""

    split: str | None = None  # only this one; None: all that the data set has
    instruction: str = DEFAULT_INSTRUCTION  # may hold {target}
    target: str | None = None  # what masks without names show
    labels: Mapping[str, str] = field(default_factory=dict)  # value or #rrggbb in the mask -> target
    pictures: Path | None = None  # where the pictures of a JSON index lie
    axis: Axis = "axial"  # through which volumes are sliced
    every: int = 1  # only every so-manyth slice
    window: Window | None = None  # for volumes; None: as `load_picture` chooses
    channel: int = 0  # of several volumes of one patient (nnU-Net's _0000, a fourth dimension)
    picture_column: str | None = None  # of a table
    mask_column: str | None = None  # of a table
    patient: str | None = None  # regular expression on a file's path; its first group is the patient

    def __post_init__(self) -> None:
        if self.patient is not None:
            _check_pattern(self.patient)
        if self.every < 1 or self.channel < 0:
            raise InputError(
                "--every is at least 1, --channel counts from 0", f"{self.every} and {self.channel}"
            )
        try:
            self.instruction.format(target="liver")
        except (AttributeError, TypeError, KeyError, IndexError, ValueError):
            raise InputError(
                "--instruction holds no braces but {target}",
                repr(self.instruction[:80]),
                "write the target as {target}",
            ) from None

    def record(self) -> dict[str, Any]:
        """What changes pixels, masks, names or patients of the same case keys, as plain JSON.

        Defaults are left out.
        """
        plain = ReadOptions()
        names = ("target", "labels", "window", "channel", "picture_column", "mask_column", "patient")
        found = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return dict(json.loads(json.dumps(found, default=dict)))


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        groups, why = 0, str(error)
    else:
        why = "no group"
    if not groups:
        raise InputError(
            "--patient is a regular expression with a group that is the patient",
            f"{pattern!r} ({why})",
            r"write for example '(P\d+)_'",
        )


@dataclass(frozen=True)
class Fault:
    """Something in a data set that a person should know of."""

    kind: FaultKind
    where: str  # which picture or file, relative to the data set
    value: str  # what was found
    done: str  # what reading does about it


class PictureSource(Protocol):
    """Where a picture is."""

    def read(self) -> Picture: ...


@dataclass(frozen=True)
class Target:
    """One annotated thing in a picture."""

    name: str | None  # such as "left kidney"; None where only an instruction says it
    mask: MaskSource
    instruction: str | None = None  # None: from the options


@dataclass(frozen=True)
class Case:
    """One picture (or slice) with all that an index says about it."""

    key: str  # unique, the same in every run, without names of patients or files
    where: str  # for people: the file within the data set, then ", " and its slice, row or entry
    picture: PictureSource
    targets: tuple[Target, ...]
    dataset: str
    split: str
    patient: str | None = None  # groups pictures of one patient; a hash
    patient_known: bool = True  # False: the group is a guess from neighbouring numbers
    modality: str | None = None
    site: str | None = None
    absent: tuple[str, ...] = ()  # targets known not to be in the picture

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _united(self.targets))

    @property
    def file(self) -> str:
        """`where` without the slice, row or entry."""
        return re.sub(r", (?:[a-z]+ )?(?:slice|row|entry) \d+$", "", self.where)


@dataclass(frozen=True)
class DataSet:
    """The cases of one data set and what its index got wrong."""

    format: str
    cases: tuple[Case, ...]
    options: ReadOptions
    faults: tuple[Fault, ...] = ()

    def __iter__(self) -> Iterator[Sample]:
        """Every sample whose target is in the picture, read lazily, in the order of the index."""
        for case in self.cases:
            yield from samples_of(case, self.options)


def _united(targets: Sequence[Target]) -> tuple[Target, ...]:
    """One target for each name, with the union of the masks; those without names stay apart."""
    named: dict[str | int, list[Target]] = {}
    for number, target in enumerate(targets):
        named.setdefault(target.name or number, []).append(target)
    return tuple(
        same[0] if len(same) == 1 else replace(same[0], mask=UnionMask(tuple(one.mask for one in same)))
        for same in named.values()
    )


def samples_of(case: Case, options: ReadOptions, *, absent: bool = False) -> Iterator[Sample]:
    """The samples of one case; its picture is read once.

    A target whose mask is empty is not in the picture. Such targets, and those that the index
    lists as absent, are given only with `absent`, with a truth that is all False.
    Raises InputError for what cannot be read and for masks of another size than the picture.
    """
    picture = case.picture.read()
    shape = (picture.height, picture.width)
    empty = np.zeros(shape, bool)
    found = [(target.name, target.mask.read(shape), target.instruction) for target in case.targets]
    found += [(name, empty, None) for name in case.absent]
    for name, truth, instruction in found:
        if truth.shape != shape:
            raise InputError(
                "a mask has the height and width of its picture",
                f"{truth.shape[0]} x {truth.shape[1]} for {shape[0]} x {shape[1]}",
                "resample the mask to the picture's own grid",
            )
        if not truth.any() and not absent:
            continue
        if instruction is None:
            instruction = options.instruction.format(target=name or "target")
        yield Sample(
            sample_id=f"{case.key}/{name.replace(' ', '+')}" if name else case.key,
            picture=picture,
            instruction=instruction,
            target=name,
            truth=truth,
            dataset=case.dataset,
            split=case.split,
            patient=case.patient,
            modality=case.modality,
            site=case.site,
        )


def is_target(name: str) -> bool:
    """Whether a name of an index is that of a target: not "background" or "ignore", as nnU-Net has it."""
    return name.strip().lower() not in ("background", "ignore")


def case_key(dataset: str, split: str, *parts: object) -> str:
    """A key that tells nothing about the file: "DATASET/SPLIT/" and 12 hexadecimal digits."""
    return f"{dataset}/{split}/{hashed(*parts)}"


def hashed(*parts: object) -> str:
    """Twelve hexadecimal digits of the SHA-256 of what identifies a file or patient."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:12]


def place_below(root: Path, name: str) -> Path | None:
    """The place that an index names, seen from `root`; None for what leads out of it.

    Absolute names, drives and ".." lead out, with slashes of either kind.
    """
    parts = PureWindowsPath(name)
    return None if parts.anchor or ".." in parts.parts else root.joinpath(*parts.parts)


def led_out(where: str, name: str) -> Fault:
    """The fault of a name that leads out of the data set: it is never followed."""
    return Fault("index", where, f"{name} leads out of the data set", "left out")


# --- where pictures are (masks: mask_sources.py) -------------------------------------------------


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path
    modality: str | None = None

    def read(self) -> Picture:
        picture = load_picture(self.path)
        if self.modality is None:
            return picture
        return replace(picture, modality=self.modality)
