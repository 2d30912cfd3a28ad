"""The only overlay: how a mask is painted on a picture, for inference, data, rewards and reports."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ibisagent.types import Mask, Picture, Pixels, View

COLOR = (34, 139, 34)  # RGB, reference inference code (METHOD section 4)
OPACITY = 0.4
MAX_ASPECT = 64.0  # thinner pictures are widened in what policies see; coordinates do not change

Style = Literal["fill", "contour"]


def paint(pixels: Pixels, mask: Mask | None, style: Style = "fill") -> Pixels:
    """Mask (bool HxW or None) painted on pixels (uint8 HxWx3) of the same size; a new array."""
    painted = pixels.copy()
    if mask is None or not mask.any():
        return painted
    if style == "contour":
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(painted, contours, -1, COLOR, 1)
        return painted
    blended = painted[mask] * np.float32(1 - OPACITY) + np.array(COLOR, np.float32) * np.float32(OPACITY)
    painted[mask] = np.rint(blended).astype(np.uint8)
    return painted


def view_size(picture: Picture, view: View) -> tuple[int, int]:
    """Height and width at which a policy sees a picture: true proportions, within `view`'s limits."""
    aspect = min(max(picture.true_aspect, 1 / MAX_ASPECT), MAX_ASPECT)
    if view.max_side is not None:
        height = view.max_side * min(1.0, 1 / aspect)
        width = view.max_side * min(1.0, aspect)
    else:  # the finer of the two samplings is kept
        height = max(picture.height, picture.width / aspect)
        width = height * aspect
    shrink = min(1.0, (view.max_pixels / (height * width)) ** 0.5)
    step = view.multiple
    sides = [max(step, round(side * shrink / step) * step) for side in (height, width)]
    while sides[0] * sides[1] > view.max_pixels and max(sides) > step:
        sides[int(np.argmax(sides))] -= step
    return sides[0], sides[1]


def resize_pixels(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels (uint8 HxWx3) at another size; bicubic, antialiased where it shrinks."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(resized)


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Mask (bool HxW) at another size; nearest pixel centre."""
    if mask.shape == (height, width):
        return mask
    rows = np.minimum(((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int), mask.shape[0] - 1)
    columns = np.minimum(((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int), mask.shape[1] - 1)
    return mask[rows[:, None], columns[None, :]]


def view_image(picture: Picture, mask: Mask | None, view: View, style: Style = "fill") -> Pixels:
    """What a policy sees: the picture at `view`'s size (uint8 hxwx3) with the mask painted."""
    height, width = view_size(picture, view)
    base = resize_pixels(picture.pixels, height, width)
    return paint(base, None if mask is None else resize_mask(mask, height, width), style)


def fingerprint(style: Style = "fill") -> dict[str, Any]:
    """What makes two renderings differ."""
    return {"version": 1, "color": list(COLOR), "opacity": OPACITY, "style": style, "resize": "bicubic"}
