"""Masks as data: run-length codec (COCO), error regions and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibisagent.errors import EpisodeFormatError
from ibisagent.types import MAX_SIDE, Mask


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two bool HxW masks; 1 where both are empty (METHOD section 6)."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def error_regions(truth: Mask, mask: Mask | None) -> tuple[Mask, Mask]:
    """Missed (FN) and wrongly included (FP) pixels, bool HxW; `mask` None counts as empty."""
    if mask is None:
        return truth, np.zeros_like(truth)
    return truth & ~mask, mask & ~truth


def encode_rle(mask: Mask) -> dict[str, Any]:
    """COCO compressed RLE `{"size": [H, W], "counts": str}`: column-major runs, background first.

    The string form (5 bits a character, third and later counts as differences to the count two
    before) is that of pycocotools.
    """
    height, width = mask.shape
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    counts = np.diff(bounds)
    if flat.size and flat[0]:
        counts = np.concatenate(([0], counts))
    counts = counts.astype(np.int64)
    counts[3:] -= counts[1:-2].copy()  # pycocotools starts the differences at index 3
    return {"size": [int(height), int(width)], "counts": _pack(counts)}


def decode_rle(rle: Any) -> Mask:
    """Inverse of `encode_rle`. Raises EpisodeFormatError where size and counts disagree."""
    try:
        height, width = (int(side) for side in rle["size"])
        counts = _unpack(rle["counts"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise EpisodeFormatError(
            "a mask is COCO RLE with size [H, W] and a counts string", type(error).__name__
        ) from None
    for index in range(3, len(counts)):
        counts[index] += counts[index - 2]
    return fill_runs((height, width), counts)


def fill_runs(size: tuple[int, int], counts: Sequence[int]) -> Mask:
    """HxW from runs of background and foreground by turns, column by column.

    Raises EpisodeFormatError where they do not add up, or a side is above MAX_SIDE.
    """
    height, width = size
    if max(size) > MAX_SIDE:
        raise EpisodeFormatError(f"a mask's sides are at most {MAX_SIDE}", f"{height}x{width}")
    if min(size) < 0 or any(count < 0 for count in counts) or sum(counts) != height * width:
        raise EpisodeFormatError("RLE counts add up to H*W", f"{sum(counts)} for {height}x{width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _pack(counts: np.ndarray) -> str:
    characters = bytearray()
    for count in counts.tolist():
        while True:
            bits = count & 0x1F
            count >>= 5
            more = count != (-1 if bits & 0x10 else 0)
            characters.append((bits | (0x20 if more else 0)) + 48)
            if not more:
                break
    return characters.decode("ascii")


def _unpack(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii"):
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise ValueError
        if not bits & 0x20:
            counts.append(value - (1 << shift) if bits & 0x10 else value)
            value = shift = 0
    if shift:
        raise ValueError
    return counts
