"""Training states of the embedded policy: augmented pictures, masks with errors, what to do about them.

A state is what the policy would meet in an episode: a picture in the 256 px view, an instruction's
target, a mask (or none) and, from the true mask, the right action. Left out: history (the policy
sees the current picture only) and boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from absence import elsewhere
from compositions import COMPOSED, compose
from symmetry import TURNED, known_share, mirror_share
from tissues import RETONED, RETONED_SHARE, retone

from ibisagent.actions import click_at, format_text
from ibisagent.datasets.biomedparse import list_datasets, read_index, split_of
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.images import load_picture
from ibisagent.masks import error_regions, iou
from ibisagent.policies.embedded_words import CELL, GRID, SIDE
from ibisagent.synthesis.reasoning import answer, facts, thought
from ibisagent.targets import TARGETS, in_the_mirror
from ibisagent.types import Action, Mask, Picture, Pixels, Terminate, Undo

# How often a set is drawn: the hard ones more often than their share of pictures.
WEIGHTS = {
    "BTCV": 5.0,
    "BrainTumor": 1.5,
    "DSB2018": 1.2,
    "HC18": 0.8,
    "HyperKvasir": 2.2,
    "ISIC2017": 1.3,
    "MSDHippocampus": 1.5,
    "MontgomeryCXR": 1.2,
    "Sunnybrook": 1.5,
    "USGRA": 2.2,
}
MIRRORED_TRUNKS = 0.35  # the policy looks once and needs to see more of them than the tool
COLOR_SETS = frozenset({"HyperKvasir", "ISIC2017"})


@dataclass(frozen=True)
class Case:
    """One training picture with all that is known about it."""

    dataset: str
    pixels: Pixels
    masks: dict[str, Mask]
    absent: frozenset[str]


@dataclass(frozen=True)
class State:
    """One augmented picture, one target, one mask; frames are the view's (longest side 256)."""

    case: Case
    picture: Picture  # h x w, not painted
    masks: dict[str, Mask]  # those with enough left in the view
    absent: frozenset[str]
    target: str
    mask: Mask | None

    @property
    def truth(self) -> Mask:
        """The target's true mask, all False where it is absent."""
        return self.masks.get(self.target, np.zeros((self.picture.height, self.picture.width), bool))


def load(root: Path, part: str) -> list[Case]:
    """All pictures of the train split that belong to `part` ("train" or "val")."""
    cases = []
    for dataset in list_datasets(root):
        for record in read_index(root, dataset, "train"):
            if split_of(record.patient) != part:
                continue
            pixels = load_picture(record.path).pixels
            masks = {item.target: MaskFiles((item.path,)).read(pixels.shape[:2]) for item in record.targets}
            masks = {target: mask for target, mask in masks.items() if mask.any()}
            absent = set(record.absent) | elsewhere(dataset)
            cases.append(Case(dataset, pixels, masks, frozenset(absent - set(masks))))
    return cases


def composed(case: Case, donors: Sequence[Case], rng: np.random.Generator) -> Case:
    """A case of a set in COMPOSED with its target moved or covered; where covered, it is the absent one."""
    name = COMPOSED[case.dataset]
    pairs = [(np.ascontiguousarray(d.pixels[..., 0]), d.masks[name].astype(np.uint8) * 255) for d in donors]
    own, mask = np.ascontiguousarray(case.pixels[..., 0]), case.masks[name].astype(np.uint8) * 255
    pixels, mask = compose(own, mask, pairs, rng)
    masks = {name: mask > 0} if mask.any() else {}
    absent = case.absent if masks else frozenset({name})
    return Case(case.dataset, np.repeat(pixels[..., None], 3, axis=2), masks, absent)


def retoned(case: Case, rng: np.random.Generator) -> Case:
    """A case of a set in RETONED with organs of other brightness."""
    organs = {name: mask.astype(np.uint8) * 255 for name, mask in case.masks.items()}
    pixels = retone(np.ascontiguousarray(case.pixels[..., 0]), organs, rng)
    return replace(case, pixels=np.repeat(pixels[..., None], 3, axis=2))


def mirrored(case: Case) -> Case:
    """The picture in the mirror, with the names that its targets have there."""
    masks = {in_the_mirror(target): mask[:, ::-1] for target, mask in case.masks.items()}
    pixels = np.ascontiguousarray(case.pixels[:, ::-1])
    return Case(case.dataset, pixels, masks, frozenset(map(in_the_mirror, case.absent)))


# --- augmentation -----------------------------------------------------------------------------


def augment(
    case: Case, rng: np.random.Generator, strength: float = 1.0
) -> tuple[Pixels, dict[str, Mask], set[str]]:
    """A view of a case from another scanner and position: pixels, masks, targets cut away.

    `strength` 0 gives the plain view. A target of which less than a tenth (or 12 pixels) is left
    is neither present nor absent, unless nothing is left.
    """
    height, width = case.pixels.shape[:2]
    zoom = float(np.exp(rng.uniform(np.log(0.62), np.log(1.6)))) if strength and rng.random() < 0.75 else 1.0
    aspect = float(np.exp(rng.uniform(-0.2, 0.2))) if strength and rng.random() < 0.5 else 1.0
    out_h, out_w = height / aspect, width * aspect
    if strength and rng.random() < 0.15:  # other frames than the set's own
        out_w *= float(np.exp(rng.uniform(-0.35, 0.35)))
    scale = SIDE / max(out_h, out_w)
    out_h, out_w = max(16, round(out_h * scale)), max(16, round(out_w * scale))
    angle = 0.0
    if strength and rng.random() < 0.5:
        angle = float(rng.uniform(-18, 18)) * (2.0 if case.dataset in TURNED else 1.0)
    if strength and case.dataset in TURNED:
        angle += 90.0 * int(rng.integers(4))
    flip_y = strength > 0 and case.dataset in TURNED and rng.random() < 0.5
    sx, sy = scale * aspect * zoom, scale / aspect * zoom
    turn = np.deg2rad(angle)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotate @ np.diag([sx, sy * (-1 if flip_y else 1)])
    centre = np.array([width / 2, height / 2])
    if strength:
        centre = centre + _shift(case, rng, zoom)
    offset = np.array([out_w / 2, out_h / 2]) - matrix @ centre
    matrix = np.column_stack([matrix, offset + (matrix.sum(axis=1) - 1) / 2])  # pixel centres
    shrinks = min(sx, sy) < 0.7
    source = cv2.GaussianBlur(case.pixels, (0, 0), 0.35 / min(sx, sy)) if shrinks else case.pixels
    border = 0 if rng.random() < 0.8 else int(rng.integers(256))
    pixels = cv2.warpAffine(
        source, matrix, (out_w, out_h), flags=cv2.INTER_LINEAR, borderValue=(border, border, border)
    )
    masks, lost = {}, set()
    for target, mask in case.masks.items():
        moved = (
            cv2.warpAffine(mask.astype(np.uint8) * 255, matrix, (out_w, out_h), flags=cv2.INTER_LINEAR) > 127
        )
        left = int(moved.sum())
        whole = float(mask.sum()) * sx * sy
        if left >= max(12, 0.1 * whole):
            masks[target] = moved
        elif left == 0:
            lost.add(target)
    if strength:
        pixels = _intensities(pixels, case.dataset, rng)
    return pixels, masks, lost


def _shift(case: Case, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """Where to look: mostly near a target, so that zooming in does not lose it."""
    height, width = case.pixels.shape[:2]
    if case.masks and zoom > 1.1 and rng.random() < 0.7:
        mask = case.masks[list(case.masks)[int(rng.integers(len(case.masks)))]]
        rows, columns = np.nonzero(mask)
        towards = np.array([columns.mean() - width / 2, rows.mean() - height / 2])
        return towards * rng.uniform(0, 1) + rng.normal(0, 0.12, 2) * [width, height] / zoom
    return rng.normal(0, 0.08, 2) * [width, height]


def _intensities(pixels: Pixels, dataset: str, rng: np.random.Generator) -> Pixels:
    colored = dataset in COLOR_SETS
    if colored and rng.random() < 0.12:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.75:
        table = _curve(rng, wild=0.12 if colored else 0.3)
        pixels = cv2.LUT(pixels, table)
    if not colored and rng.random() < 0.12:
        pixels = 255 - pixels
    if colored and rng.random() < 0.6:
        gains = rng.normal(1, 0.12, 3)
        pixels = np.clip(pixels * gains, 0, 255).astype(np.uint8)
    values = None
    if not colored and rng.random() < 0.3:  # uneven coil or gain
        field = cv2.resize(
            rng.normal(0, 0.25, (3, 3)).astype(np.float32), pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
        values = pixels * np.exp(field)[..., None]
    if rng.random() < 0.3:
        grain = rng.normal(0, rng.uniform(2, 14), pixels.shape[:2]).astype(np.float32)
        if rng.random() < 0.4:
            grain = cv2.GaussianBlur(grain, (0, 0), 1.0) * 2
        values = (pixels if values is None else values) + grain[..., None]
    if values is not None:
        pixels = np.clip(values, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 1.6))
    elif rng.random() < 0.15:
        factor = rng.uniform(0.35, 0.8)
        small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        pixels = cv2.resize(small, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return pixels


def _curve(rng: np.random.Generator, wild: float) -> np.ndarray:
    """A look-up table: gamma and window, or a smooth curve that need not rise (another modality)."""
    x = np.linspace(0, 1, 256)
    if rng.random() < wild:
        knots = rng.uniform(0, 1, int(rng.integers(4, 7)))
        knots[0] = rng.uniform(0, 0.2)  # air stays dark
        y = np.interp(x, np.linspace(0, 1, len(knots)), knots)
        y = 0.75 * y + 0.25 * x if rng.random() < 0.5 else y
    else:
        low, high = rng.uniform(-0.15, 0.25), rng.uniform(0.7, 1.2)
        y = np.clip((x - low) / (high - low), 0, 1) ** float(np.exp(rng.normal(0, 0.35)))
        y = y * rng.uniform(0.75, 1.0)
    return np.clip(y * 255, 0, 255).astype(np.uint8)


# --- masks with errors ------------------------------------------------------------------------


def _blob(
    shape: tuple[int, int], around: tuple[float, float], radius: float, rng: np.random.Generator
) -> Mask:
    canvas = np.zeros(shape, np.uint8)
    axes = (max(1, int(radius * rng.uniform(0.6, 1.4))), max(1, int(radius * rng.uniform(0.6, 1.4))))
    cv2.ellipse(canvas, (int(around[1]), int(around[0])), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return canvas.astype(bool)


def _random_pixel(mask: Mask, rng: np.random.Generator) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    index = int(rng.integers(len(rows)))
    return float(rows[index]), float(columns[index])


def _wobble(mask: Mask, rng: np.random.Generator, amplitude: float) -> Mask:
    """A smooth contour that is wrong here and there, as networks draw it."""
    height, width = mask.shape
    radius = max(1.0, float(np.sqrt(mask.sum() / np.pi)))
    soft = cv2.GaussianBlur(
        mask.astype(np.float32), (0, 0), float(np.clip(radius * rng.uniform(0.08, 0.35), 0.8, 14))
    )
    step = max(3.0, radius * rng.uniform(0.4, 1.2))
    coarse = rng.normal(0, amplitude, (max(2, int(height / step)), max(2, int(width / step)))).astype(
        np.float32
    )
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(soft + noise * (soft > 0.02) > rng.uniform(0.35, 0.6))


def corrupt(truth: Mask, others: list[Mask], rng: np.random.Generator) -> Mask:
    """A mask with errors that tools make; bool of `truth`'s shape, perhaps empty."""
    mask = truth.copy()
    radius = max(1.5, float(np.sqrt(truth.sum() / np.pi)))
    for _ in range(int(rng.integers(1, 4))):
        if not mask.any():
            break
        kind = rng.random()
        if kind < 0.28:
            mask = _wobble(mask, rng, float(rng.uniform(0.1, 0.5)))
        elif kind < 0.48:  # a part is missing
            inside = truth & mask if (truth & mask).any() else mask
            mask = mask & ~_blob(mask.shape, _random_pixel(inside, rng), radius * rng.uniform(0.3, 1.0), rng)
        elif kind < 0.64:  # something beside it is included
            rim = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~mask
            where = _random_pixel(rim if rim.any() else mask, rng)
            mask = mask | _blob(mask.shape, where, radius * rng.uniform(0.25, 0.9), rng)
        elif kind < 0.72 and others:
            other = others[int(rng.integers(len(others)))]
            mask = mask | (_wobble(other, rng, 0.2) if rng.random() < 0.7 else other)
        elif kind < 0.84:
            shift = rng.normal(0, 0.3, 2) * radius
            matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
            mask = cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1]).astype(bool)
        elif kind < 0.94:
            size = max(3, int(radius * rng.uniform(0.1, 0.5)) | 1)
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            operation = cv2.dilate if rng.random() < 0.5 else cv2.erode
            mask = operation(mask.astype(np.uint8), kernel).astype(bool)
        else:  # whole components are missing
            count, labels = cv2.connectedComponents(truth.astype(np.uint8))
            keep = rng.random(count) < 0.6
            mask = mask & keep[labels] if count > 2 else mask
    if rng.random() < 0.5:
        small = cv2.resize(mask.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    return mask


def phantom(shape: tuple[int, int], others: list[Mask], truth: Mask, rng: np.random.Generator) -> Mask:
    """A mask on something else than the target."""
    if others and rng.random() < 0.65:
        mask = _wobble(others[int(rng.integers(len(others)))], rng, 0.2)
    else:
        where = (rng.uniform(0.1, 0.9) * shape[0], rng.uniform(0.1, 0.9) * shape[1])
        mask = _wobble(_blob(shape, where, float(rng.uniform(0.015, 0.15)) * SIDE, rng), rng, 0.25)
    if truth.any() and (mask & truth).sum() > 0.05 * min(truth.sum(), max(mask.sum(), 1)):
        mask = mask & ~cv2.dilate(truth.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    return mask


Propose = Callable[[Picture, str, Mask, np.random.Generator], Mask | None]


def draw(case: Case, rng: np.random.Generator, propose: Propose | None, strength: float = 1.0) -> State:
    """One state of a case; `propose` gives masks of the real tool where there is one."""
    if strength and case.dataset in RETONED and rng.random() < RETONED_SHARE:
        case = retoned(case, rng)
    flipped = strength > 0 and rng.random() < mirror_share(case.dataset, MIRRORED_TRUNKS)
    case = mirrored(case) if flipped else case
    known = strength > 0 and rng.random() < known_share(case.dataset, flipped)
    pixels, masks, lost = augment(case, rng, strength)
    absent = frozenset((set(case.absent) | lost) - set(masks))
    picture, shape = Picture(pixels, laterality="known" if known else "assumed"), pixels.shape[:2]
    ask_absent = bool(absent) and (rng.random() < 0.14 or not masks)
    if ask_absent:
        own = sorted(absent - elsewhere(case.dataset))  # confusable ones first
        choices = own if own and rng.random() < 0.7 else sorted(absent)
    else:
        choices = list(masks) or [TARGETS[0]]
    target = choices[int(rng.integers(len(choices)))]
    truth = masks.get(target, np.zeros(shape, bool))
    others = [mask for name, mask in masks.items() if name != target and not (mask & truth).any()]
    kind = rng.random()
    mask: Mask | None = None
    if kind < 0.34:
        mask = None
    elif propose is not None and kind < 0.72:
        mask = propose(picture, target, truth, rng)
    elif not truth.any() or kind > 0.93:
        mask = phantom(shape, others, truth, rng)
    elif kind > 0.83:
        mask = _wobble(truth, rng, 0.05) if rng.random() < 0.7 else truth
    else:
        mask = corrupt(truth, others, rng)
    if mask is not None and not mask.any():
        mask = None
    return State(case, picture, masks, absent, target, mask)


# --- what to do about it ----------------------------------------------------------------------


def decide(truth: Mask, mask: Mask | None, rng: np.random.Generator) -> tuple[Action, np.ndarray | None]:
    """The right action, and for clicks where in the 64 x 64 grid they may land (sums to 1).

    The error with the larger inscribed circle is clicked (METHOD section 5), in its widest part;
    errors that are only a rim are left alone. A mask with less than half the overlap is taken back
    in half of the cases: both are right, and which one is done is calibrated (calibrate_policy.py).
    """
    if not truth.any():
        return (Terminate() if mask is None else Undo()), None
    if mask is not None:
        both = int((truth & mask).sum())
        if both < 0.08 * truth.sum() and both < 0.08 * mask.sum():
            return Undo(), None
        if iou(truth, mask) < 0.5 and rng.random() < 0.5:
            return Undo(), None
    missed, included = error_regions(truth, mask)
    depth_missed, depth_included = _depth(missed), _depth(included)
    positive = depth_missed.max() >= depth_included.max()
    depth = depth_missed if positive else depth_included
    if mask is not None and not _worth_a_click(truth, mask, float(depth.max())):
        return Terminate(), None
    field = _widest_part(depth, rng)
    row, column = np.unravel_index(int(np.argmax(field)), field.shape)
    click = click_at(int(row), int(column), *truth.shape, positive=bool(positive))
    return click, _to_cells(field**4)


def _worth_a_click(truth: Mask, mask: Mask, depth: float) -> bool:
    overlap = iou(truth, mask)
    radius = float(np.sqrt(truth.sum() / np.pi))
    if overlap >= 0.90:
        return False
    if overlap >= 0.80:
        return depth >= max(4.0, 0.3 * radius)
    return depth >= max(1.8, 0.12 * radius)


def _depth(region: Mask) -> np.ndarray:
    """Exact distance to the region's boundary; the picture's border counts as boundary."""
    padded = np.pad(region.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _widest_part(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth, 0 to 1, of one component: the widest, or one that is nearly as wide."""
    count, labels = cv2.connectedComponents((depth > 0).astype(np.uint8))
    if count > 2:
        peaks = np.zeros(count)
        np.maximum.at(peaks, labels.ravel(), depth.ravel())
        peaks[0] = 0
        wide = np.flatnonzero(peaks >= 0.85 * peaks.max())
        depth = np.where(labels == wide[int(rng.integers(len(wide)))], depth, 0)
    return depth / depth.max()


def _to_cells(field: np.ndarray) -> np.ndarray:
    padded = np.zeros((SIDE, SIDE), np.float32)
    padded[: field.shape[0], : field.shape[1]] = field
    cells = padded.reshape(GRID, CELL, GRID, CELL).mean(axis=(1, 3))
    return cells / cells.sum()


def lesson(state: State, rng: np.random.Generator) -> tuple[str, np.ndarray | None]:
    """The text to learn for a state, and the cells where its point may lie."""
    action, cells = decide(state.truth, state.mask, rng)
    known = facts(state.target, state.truth, state.mask, action)
    said = answer(known, rng) if isinstance(action, Terminate) else None
    return format_text(thought(known, rng), action, said), cells
