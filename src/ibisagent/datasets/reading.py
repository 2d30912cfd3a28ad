"""Options of every command that reads anybody's data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ibisagent.errors import InputError

if TYPE_CHECKING:
    from ibisagent.datasets.cases import ReadOptions


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the data set is read."""

    format: str | None = None
    """biomedparse, nnunet, coco, npz, mecovqa, lisa, segagent, sam-med2d, huggingface or folders; else
    found out"""
    target: str | None = None
    """what masks without names show, such as "skin lesion" """
    labels: tuple[str, ...] = ()
    """label values or colours and what they show, as 1=liver #ff0000=spleen"""
    pictures: Path | None = None
    """where the pictures of a JSON index lie"""
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """through which volumes are sliced"""
    every: int = 1
    """only every so-manyth slice of a volume"""
    window: str | None = None
    """grey values of volumes shown, as LO,HI"""
    channel: int = 0
    """of several volumes of one patient (nnU-Net's _0000, a fourth dimension), from 0"""
    picture_column: str | None = None
    """the column of a table that holds pictures"""
    mask_column: str | None = None
    """the column of a table that holds masks"""
    patient: str | None = None
    """who is held out together: a regular expression on a file's path within the data set, whose
    first group is the patient, such as 'images/(P[0-9]+)_'"""

    def read_options(self, split: str | None = None, instruction: str | None = None) -> ReadOptions:
        """The options for a split and an instruction. Raises InputError for what cannot be used."""
        from ibisagent.datasets.cases import DEFAULT_INSTRUCTION, ReadOptions
        from ibisagent.datasets.folders import checked_labels
        from ibisagent.images.intensity import parse_window

        pairs = [label.partition("=") for label in self.labels]
        if any(not value or not name for value, _, name in pairs):
            raise InputError("--labels are pairs", " ".join(self.labels), "write 1=liver 2=spleen")
        return ReadOptions(
            split=split,
            instruction=DEFAULT_INSTRUCTION if instruction is None else instruction,
            target=self.target,
            labels=checked_labels({value: name for value, _, name in pairs}),
            pictures=self.pictures,
            axis=self.axis,
            every=self.every,
            window=parse_window(self.window) if self.window else None,
            channel=self.channel,
            picture_column=self.picture_column,
            mask_column=self.mask_column,
            patient=self.patient,
        )
