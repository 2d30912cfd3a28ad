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
from typing import Any, BinaryIO, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ibisagent.datasets.biomedparse import DEFAULT_INSTRUCTION
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from ibisagent.images.intensity import Window
from ibisagent.images.nifti import Axis
from ibisagent.masks import decode_rle, fill_runs
from ibisagent.types import Mask, Picture, Sample

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
JPEG_FOREGROUND = 128  # losses leave values around 0 and 255 in masks stored as JPEG

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
        except (KeyError, IndexError, ValueError):
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


class MaskSource(Protocol):
    """Where a mask is; `shape` is the picture's (height, width)."""

    def read(self, shape: tuple[int, int]) -> Mask: ...


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


# --- where pictures and masks are -------------------------------------------------------------


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


@dataclass(frozen=True)
class MaskFiles:
    """The union of mask files. `label` None: whatever is not 0 (1-bit, 0/1 and 0/255 files alike).

    With a label, the pixels of that value, or of that colour where it is written #rrggbb.
    """

    paths: tuple[Path, ...]
    label: str | None = None

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([read_label(path, self.label) for path in self.paths])


@dataclass(frozen=True)
class PolygonMask:
    """The union of polygons, each x0, y0, x1, y1, ... in pixels; a pixel counts by its centre."""

    polygons: tuple[tuple[float, ...], ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        mask = np.zeros(shape, bool)
        for polygon in self.polygons:
            mask |= fill_polygon(np.asarray(polygon, float).reshape(-1, 2), shape)
        return mask


@dataclass(frozen=True)
class RleMask:
    """The union of COCO run lengths, compressed (counts a text) or not (counts a list)."""

    codes: tuple[Mapping[str, object], ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([decode_any_rle(code) for code in self.codes])


@dataclass(frozen=True)
class UnionMask:
    """The union of several sources."""

    parts: tuple[MaskSource, ...]

    def read(self, shape: tuple[int, int]) -> Mask:
        return _union([part.read(shape) for part in self.parts])


def _union(masks: Sequence[Mask]) -> Mask:
    for mask in masks:
        if mask.shape != masks[0].shape:
            raise InputError(
                "masks of one picture have one size",
                f"{mask.shape} and {masks[0].shape}",
                "export them again",
            )
    return np.asarray(np.logical_or.reduce(masks))


# --- reading values ---------------------------------------------------------------------------


def read_label(source: Path | BinaryIO, label: str | None) -> Mask:
    """The pixels of a mask file that have a label; see `MaskFiles`."""
    return label_mask(label_values(source, colors=is_color(label)), label)


def is_color(label: str | None) -> bool:
    """Whether a label is written #rrggbb."""
    return label is not None and label.startswith("#")


def label_values(source: Path | BinaryIO, *, colors: bool = False) -> NDArray[np.integer]:
    """What a mask file stores: HxW integers, or HxWx3 uint8 colours.

    Pixels with a palette are its indices, or with `colors` what the palette says. An alpha channel
    is dropped, three equal channels become one, JPEG is cut at 128 to 0 and 1. Raises InputError
    where the file cannot be read, and for colours in a JPEG file.
    """
    try:
        with Image.open(source) as file:
            lossy = file.format == "JPEG"
            image: Image.Image = file
            if (colors and image.mode in ("P", "1")) or image.mode in ("RGBA", "CMYK", "YCbCr", "PA", "RGBX"):
                image = image.convert("RGB")
            elif image.mode == "LA":
                image = image.convert("L")
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            "a mask is a readable picture file", type(error).__name__, "export it again"
        ) from None
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if lossy and colors:
        raise InputError("colours of labels are stored without losses", "a JPEG file", "save it as PNG")
    if lossy:
        values = (values if values.ndim == 2 else values.max(axis=2)) >= JPEG_FOREGROUND
    if values.dtype.kind == "f":
        values = np.rint(values)
    return values.astype(np.uint8 if values.dtype == bool else values.dtype)


def label_mask(values: NDArray[np.integer], label: str | None) -> Mask:
    """The pixels of a label; see `MaskFiles`."""
    if label is None:
        return np.asarray(values != 0 if values.ndim == 2 else (values != 0).any(axis=2))
    if is_color(label):
        color = np.array([int(label[start : start + 2], 16) for start in (1, 3, 5)])
        stacked = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
        return np.asarray((stacked == color).all(axis=2))
    if values.ndim == 3:
        raise InputError("a mask read by values has one channel", "a colour mask", "name colours as #rrggbb")
    return np.asarray(values == int(label))


def label_names(found: NDArray[np.integer]) -> list[str]:
    """The labels that occur in values, as `ReadOptions.labels` writes them; 0 and black left out."""
    if found.ndim == 2:
        return [str(int(value)) for value in np.unique(found) if value != 0]
    colors = np.unique(found.reshape(-1, 3), axis=0)
    return ["#" + "".join(f"{int(part):02x}" for part in color) for color in colors if color.any()]


def decode_any_rle(code: Mapping[str, object]) -> Mask:
    """COCO run lengths of either kind. Raises EpisodeFormatError where counts and size disagree."""
    counts, size = code.get("counts"), code.get("size")
    if isinstance(counts, Sequence) and not isinstance(counts, str | bytes):
        try:
            height, width = (int(side) for side in size)  # type: ignore[attr-defined]
            runs = [int(count) for count in counts]
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                "run lengths have a size [H, W] and whole counts", "neither", "repair them"
            ) from None
        return fill_runs((height, width), runs)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    return decode_rle({"size": size, "counts": counts})


def fill_polygon(points: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies within a polygon (Nx2, x and y in pixels), by the even-odd rule."""
    mask = np.zeros(shape, bool)
    if len(points) < 3 or not np.isfinite(points).all():
        return mask
    following = np.roll(points, -1, axis=0)
    low = np.minimum(points[:, 1], following[:, 1])
    high = np.maximum(points[:, 1], following[:, 1])
    centres = np.arange(shape[1]) + 0.5
    first, last = max(0, int(low.min() - 0.5)), min(shape[0], int(high.max() + 0.5) + 1)
    for row in range(first, last):
        crossed = (low <= row + 0.5) & (high > row + 0.5)
        start, end = points[crossed], following[crossed]
        at = start[:, 0] + (row + 0.5 - start[:, 1]) * (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
        mask[row] = np.searchsorted(np.sort(at), centres) % 2 == 1
    return mask


def fill_outline(points: Sequence[Sequence[float]], canvas: NDArray[np.uint8], value: int) -> None:
    """Fill a polygon of integer points with its outline, as LISA's annotations are drawn."""
    outline = np.array(points, np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [outline], True, value, 1)
    cv2.fillPoly(canvas, [outline], value)
