"""Where a picture lies in the square that a model of the SAM family sees, and the way back.

Coordinates. Our clicks and boxes are normalised to the picture frame. The original predictors
take integer pixels (column, row) of the stored picture, scale them by model side over picture
side and add half a *model* pixel inside the prompt encoder. So a click is first put back on its
pixel, min(floor(x * W), W - 1), which is then scaled and nothing else: the same click gives the
same prompt embedding as pixel (column, row) in the original predictor, whatever the picture's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ibisagent.actions import pixel_from_coordinate
from ibisagent.errors import InputError
from ibisagent.types import Box, Click, Mask, Picture

PSEUDO_LOGIT = 10.0  # a start mask becomes low-res logits of +-10: sure, yet inside the trained range


@dataclass(frozen=True)
class Frame:
    """The picture fills the top left `width` x `height` of a `size` x `size` model square."""

    size: int
    width: int
    height: int
    picture_width: int
    picture_height: int
    through_square: bool = False  # are masks resized by way of the square's own pixels?

    @classmethod
    def squashed(cls, picture: Picture, size: int) -> Frame:
        """SAM 2 and MedSAM: both sides are stretched to the square, so spacing plays no part."""
        return cls(size, size, size, picture.width, picture.height)

    @classmethod
    def letterboxed(cls, picture: Picture, size: int) -> Frame:
        """SAM: the longest side (in mm where the spacing is known) fills the square's side."""
        row, column = picture.spacing or (1.0, 1.0)
        width, height = picture.width * column, picture.height * row
        scale = size / max(width, height)
        inside = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        return cls(size, *inside, picture.width, picture.height, through_square=True)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Model pixels (x, y) of a normalised place. Raises InputError outside [0, 1]."""
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise InputError("coordinates lie in [0, 1] of the picture", (x, y))
        column = pixel_from_coordinate(x, self.picture_width)
        row = pixel_from_coordinate(y, self.picture_height)
        return column * self.width / self.picture_width, row * self.height / self.picture_height

    def click(self, click: Click) -> tuple[float, float]:
        """Model pixels (x, y) of a click."""
        return self.point(click.x, click.y)

    def box(self, box: Box) -> tuple[float, float, float, float]:
        """Model pixels (x1, y1, x2, y2) of a box. Raises InputError if it is empty."""
        if not (box.x1 < box.x2 and box.y1 < box.y2):
            raise InputError("a box has x1 < x2 and y1 < y2", (box.x1, box.y1, box.x2, box.y2))
        return (*self.point(box.x1, box.y1), *self.point(box.x2, box.y2))

    def mask_to_logits(self, mask: Mask, grid: int) -> torch.Tensor:
        """float32 grid x grid in [-10, 10] from a bool mask HxW; outside the picture -10."""
        if mask.shape != (self.picture_height, self.picture_width):
            raise InputError(
                "a start mask has the picture's shape",
                f"{mask.shape} for {(self.picture_height, self.picture_width)}",
            )
        inside = torch.from_numpy(mask.astype("float32"))[None, None]
        inside = F.interpolate(inside, (self.height, self.width), mode="bilinear", antialias=True)
        inside = F.pad(inside, (0, self.size - self.width, 0, self.size - self.height))
        coarse = F.interpolate(inside, (grid, grid), mode="bilinear", antialias=True)[0, 0]
        return coarse * (2 * PSEUDO_LOGIT) - PSEUDO_LOGIT

    def logits_to_picture(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (or probabilities) float32 hxw of the model square, as HxW of the picture.

        Bilinear, in one step (as SAM 2 and MedSAM do it) or by way of the square's own pixels
        and a crop (as SAM does it).
        """
        values = logits[None, None]
        if self.through_square:
            values = F.interpolate(values, (self.size, self.size), mode="bilinear", align_corners=False)
            values = values[..., : self.height, : self.width]
        shape = (self.picture_height, self.picture_width)
        return F.interpolate(values, shape, mode="bilinear", align_corners=False)[0, 0]
