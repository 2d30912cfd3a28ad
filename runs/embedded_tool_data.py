"""Training batches of the embedded tool: the corpus in memory, augmentation, targets, clicks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from absence import elsewhere
from compositions import COMPOSED, Grey, compose
from numpy.typing import NDArray
from shapes import blob, paste, region, swell
from symmetry import TURNED, known_share, mirror_share
from tissues import RETONED, RETONED_SHARE, retone

from ibisagent.datasets.biomedparse import list_datasets, read_index, split_of
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.targets import TARGETS, in_the_mirror

Donors = dict[str, list[tuple[Grey, Grey]]]  # pictures and masks by set, see compositions.py
# How often a set is drawn, per picture of a uniform draw over sets.
SET_WEIGHTS = {
    "BTCV": 3.2, "BrainTumor": 1.3, "DSB2018": 0.8, "HC18": 0.6, "HyperKvasir": 2.0, "ISIC2017": 1.0,
    "MSDHippocampus": 0.8, "MontgomeryCXR": 0.7, "Sunnybrook": 0.9, "USGRA": 1.8,
}  # fmt: skip
ABDOMEN = {
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland",
    "left adrenal gland",
}  # fmt: skip
MIRRORED_TRUNKS = 0.2  # more costs organs whose brightness says nothing: then the side is the last clue
IN_THE_MIRROR = [TARGETS.index(in_the_mirror(target)) for target in TARGETS]


@dataclass
class Item:
    """One training picture and what is known about it."""

    dataset: str
    pixels: NDArray[np.uint8]  # HxWx3 or HxW
    masks: dict[int, NDArray[np.uint8]]  # name index -> HxW, 0 or 255
    absent: list[int]  # name indices known not to be there


@dataclass
class Row:
    """One target to be segmented by clicks, at grid resolution."""

    truth: NDArray[np.uint8]  # GxG, 0..255 coverage
    name: int  # index, or len(TARGETS) for none
    propose: bool  # begin with the name alone
    start: NDArray[np.float32] | None  # GxG start mask in {0, 1}
    early: int  # clicks drawn from the truth before the first round


@dataclass
class Example:
    """One augmented picture with its rows."""

    image: NDArray[np.float32]  # 5 x F x F
    semantic: NDArray[np.uint8]  # names x G/2 x G/2 coverage
    known: NDArray[np.float32]  # names: 1 where presence and mask are known
    valid: NDArray[np.float32]  # GxG
    rows: list[Row]


def load_corpus(root: Path, part: str) -> list[Item]:
    """All training pictures of `part` ("train" or "val", by patient), decoded."""
    index = {name: i for i, name in enumerate(TARGETS)}
    items = []
    for dataset in list_datasets(root):
        foreign = {index[name] for name in elsewhere(dataset)}
        for record in read_index(root, dataset, "train"):
            if split_of(record.patient) != part:
                continue
            pixels = cv2.cvtColor(cv2.imread(str(record.path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
                pixels = np.ascontiguousarray(pixels[..., 0])
            masks = {
                index[t.target]: MaskFiles((t.path,)).read(pixels.shape[:2]).astype(np.uint8) * 255
                for t in record.targets
            }
            absent = {index[n] for n in record.absent} | (foreign - set(masks))
            items.append(Item(dataset, pixels, masks, sorted(absent)))
    return items


class Augmenter:
    """Draws examples: geometry, looks and rows, all from one generator."""

    def __init__(
        self,
        rng: np.random.Generator,
        frame: int,
        rows: int,
        donors: Donors | None = None,
        single_pass: bool = False,
    ) -> None:
        """`single_pass`: every row is a name without clicks, as the card's rival learns them."""
        self.rng, self.frame, self.rows, self.donors = rng, frame, rows, donors or {}
        self.single_pass = single_pass

    def example(self, item: Item) -> Example:
        rng, frame, grid = self.rng, self.frame, self.frame // 2
        plain = rng.random() < 0.3
        if not plain and item.dataset in self.donors:
            item = self._composed(item)
        if not plain and item.dataset in RETONED and rng.random() < RETONED_SHARE:
            organs = {TARGETS[name]: mask for name, mask in item.masks.items()}
            item = replace(item, pixels=retone(item.pixels, organs, rng))
        mirrored = not plain and rng.random() < mirror_share(item.dataset, MIRRORED_TRUNKS)
        item = self._mirrored(item) if mirrored else item
        sided = rng.random() < known_share(item.dataset, mirrored)
        matrix, height, width = self._geometry(item, plain)
        flags = cv2.INTER_LINEAR
        pixels = cv2.warpAffine(item.pixels, matrix, (width, height), flags=flags, borderValue=0)
        masks: dict[int, NDArray[np.uint8]] = {}
        for name, mask in item.masks.items():
            warped = cv2.warpAffine(mask, matrix, (width, height), flags=flags, borderValue=0)
            masks[name] = self._shrink(warped)
        generic: list[NDArray[np.uint8]] = []
        if rng.random() < 0.2:
            pixels, thing = (swell if rng.random() < 0.4 else paste)(pixels, rng)
            generic.append(self._shrink(thing))
        grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2).astype(np.uint8)
        shown = pixels if plain else self._look(pixels)
        image = np.zeros((5, frame, frame), np.float32)
        colours = shown if shown.ndim == 3 else shown[..., None]
        low, spread = float(shown.mean()), float(shown.std()) + 8.0
        image[:3, :height, :width] = np.clip((colours.transpose(2, 0, 1) - low) / spread, -4, 4)
        image[3, :height, :width] = 1
        image[4, :height, :width] = sided
        valid = np.zeros((grid, grid), np.float32)
        valid[: (height + 1) // 2, : (width + 1) // 2] = 1
        semantic = np.zeros((len(TARGETS), grid // 2, grid // 2), np.uint8)
        known = np.zeros(len(TARGETS), np.float32)
        known[item.absent] = 1
        for name, mask in masks.items():
            known[name] = 1
            semantic[name] = cv2.resize(mask, (grid // 2, grid // 2), interpolation=cv2.INTER_AREA)
        rows = [self._row(item, masks, generic, grey) for _ in range(self.rows)]
        return Example(image, semantic, known, valid, rows)

    def _composed(self, item: Item) -> Item:
        """The picture with its target moved or covered; where it was covered, it is the absent one."""
        name = TARGETS.index(COMPOSED[item.dataset])
        pixels, mask = compose(item.pixels, item.masks[name], self.donors[item.dataset], self.rng)
        if mask.any():
            return Item(item.dataset, pixels, {name: mask}, item.absent)
        return Item(item.dataset, pixels, {}, [name])

    # --- geometry and looks ---

    @staticmethod
    def _mirrored(item: Item) -> Item:
        masks = {IN_THE_MIRROR[name]: cv2.flip(mask, 1) for name, mask in item.masks.items()}
        absent = sorted(IN_THE_MIRROR[name] for name in item.absent)
        return Item(item.dataset, cv2.flip(item.pixels, 1), masks, absent)

    def _geometry(self, item: Item, plain: bool) -> tuple[NDArray[np.float64], int, int]:
        rng, frame = self.rng, self.frame
        rows, columns = item.pixels.shape[:2]
        stretch = 1.0 if plain else float(np.exp(rng.uniform(-0.22, 0.22)))
        scale = frame / max(rows * stretch, columns)
        height = max(2, round(rows * stretch * scale))
        width = max(2, round(columns * scale))
        base = np.array([[scale, 0, 0], [0, scale * stretch, 0], [0, 0, 1]])
        if plain:
            return base[:2], height, width
        zoom = float(np.exp(rng.normal(0.05, 0.25))) if rng.random() < 0.8 else 1.0
        zoom = min(max(zoom, 0.6), 1.7)
        if item.dataset == "Sunnybrook" and rng.random() < 0.3:
            zoom *= 1.5
        if item.dataset in TURNED:
            angle = rng.uniform(-180, 180) if rng.random() < 0.4 else rng.uniform(-15, 15)
        else:
            angle = rng.uniform(-15, 15) if rng.random() < 0.6 else 0.0
        turn = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle, zoom), [0, 0, 1]])
        slack = max(abs(zoom - 1) * 0.5, 0.08)
        move = np.eye(3)
        move[:2, 2] = rng.uniform(-slack, slack, 2) * (width, height)
        if zoom > 1.1 and item.masks and rng.random() < 0.6:  # zoom in on something that is annotated
            mask = list(item.masks.values())[int(rng.integers(len(item.masks)))]
            ys, xs = np.nonzero(mask[::4, ::4])
            if len(ys):
                k = int(rng.integers(len(ys)))
                at = turn @ base @ (xs[k] * 4.0, ys[k] * 4.0, 1.0)
                goal = np.array([width, height]) * rng.uniform(0.25, 0.75, 2)
                move[:2, 2] = goal - at[:2]
        return (move @ turn @ base)[:2], height, width

    def _shrink(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame-resolution mask (its valid part) at grid resolution."""
        full = np.zeros((self.frame, self.frame), np.uint8)
        full[: mask.shape[0], : mask.shape[1]] = mask
        half = self.frame // 2
        return cv2.resize(full, (half, half), interpolation=cv2.INTER_AREA)

    def _look(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rng = self.rng
        levels = np.linspace(0, 1, 256)
        if rng.random() < 0.65:
            kind = rng.random()
            if kind < 0.45:  # gamma with window
                low, high = rng.uniform(-0.15, 0.2), rng.uniform(0.75, 1.3)
                curve = np.clip((levels - low) / (high - low), 0, 1) ** np.exp(rng.uniform(-0.7, 0.7))
            elif kind < 0.75:  # random monotone curve
                knots = np.cumsum(np.r_[0, rng.dirichlet(np.full(5, 1.2))])
                curve = np.interp(levels, np.linspace(0, 1, 6), knots)
            else:  # any smooth curve: other sequences order tissues otherwise
                knots = rng.uniform(0, 1, 6)
                if rng.random() < 0.7:
                    knots[0] = 0.0  # air stays dark
                curve = np.interp(levels, np.linspace(0, 1, 6), knots)
            if rng.random() < 0.08:
                curve = 1 - curve
            curve = curve * rng.uniform(0.5, 1.0) + rng.uniform(0, 0.1)
            pixels = cv2.LUT(pixels, (np.clip(curve, 0, 1) * 255).astype(np.uint8))
        height, width = pixels.shape[:2]
        if rng.random() < 0.35:  # slow shading, as surface coils and light sources make
            small = rng.uniform(0.6, 1.4, (3, 3)).astype(np.float32)
            field = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
            field = field if pixels.ndim == 2 else field[..., None]
            pixels = np.clip(pixels * field, 0, 255).astype(np.uint8)
        if pixels.ndim == 2 and rng.random() < 0.1:  # in colour, as stains, endoscopes and Doppler are
            powers = np.exp(rng.normal(0, 0.5, 3)) * np.exp(rng.normal(0, 0.3))
            curves = [(255 * levels**power).astype(np.uint8) for power in powers]
            pixels = np.stack([cv2.LUT(pixels, curve) for curve in curves], axis=2)
        if pixels.ndim == 3:
            if rng.random() < 0.6:
                gains = rng.uniform(0.75, 1.25, 3)
                pixels = np.clip(pixels * gains.astype(np.float32), 0, 255).astype(np.uint8)
            if rng.random() < 0.1:
                pixels = np.ascontiguousarray(pixels.mean(axis=2).astype(np.uint8))
        if rng.random() < 0.25:
            pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.4, 1.6)))
        if rng.random() < 0.25:
            factor = rng.uniform(0.35, 0.8)
            small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.35:
            noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2, 18)
            if rng.random() < 0.4:
                noise *= pixels / 128.0
            pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        return pixels

    # --- targets ---

    def _component(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        count, labels = cv2.connectedComponents((mask > 127).astype(np.uint8))
        if count <= 2:
            return mask
        chosen = labels == int(self.rng.integers(1, count))
        return np.where(cv2.dilate(chosen.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0, mask, 0)

    def _row(
        self,
        item: Item,
        masks: dict[int, NDArray[np.uint8]],
        generic: list[NDArray[np.uint8]],
        grey: NDArray[np.uint8],
    ) -> Row:
        rng, none = self.rng, len(TARGETS)
        empty = np.zeros((self.frame // 2, self.frame // 2), np.uint8)
        seen = [name for name, mask in masks.items() if int((mask > 127).sum()) >= 6]
        gone = [name for name in masks if name not in seen and not masks[name].any()]
        draw = rng.random()
        covered = not masks and bool(item.absent)
        if (item.absent or gone) and draw < (0.6 if covered else 0.07):
            pool = gone if gone and rng.random() < 0.4 else item.absent or gone
            same = [n for n in pool if item.dataset == "BTCV" and TARGETS[n] in ABDOMEN]
            pool = same if same and rng.random() < 0.85 else pool
            return Row(empty, int(rng.choice(pool)), True, None, 0)
        if self.single_pass:
            known = seen or list(masks) or item.absent
            weights = np.array(
                [max(6, (masks[n] > 127).sum()) ** -0.25 if n in masks else 1.0 for n in known]
            )
            name = int(rng.choice(known, p=weights / weights.sum()))
            return Row(masks.get(name, empty), name, True, None, 0)
        if draw < 0.3 or not seen:
            truth = empty
            for _ in range(4):
                kind = rng.random()
                if generic and kind < 0.6:
                    truth = generic[0]
                elif kind < 0.35:  # what only the clicks tell: teaches to follow them where nothing is seen
                    truth = self._shrink(blob(*grey.shape, (0.06, 0.35), rng))
                elif seen and kind < 0.8:
                    truth = self._component(masks[int(rng.choice(seen))])
                elif len(seen) > 1 and kind < 0.86:
                    a, b = rng.choice(seen, 2, replace=False)
                    truth = np.maximum(masks[int(a)], masks[int(b)])
                else:
                    truth = self._shrink(region(grey, rng))
                if (truth > 127).sum() >= 6:
                    break
            return Row(truth, none, False, self._start(truth, masks), self._early())
        weights = np.array([(masks[n] > 127).sum() ** -0.25 for n in seen])
        name = int(rng.choice(seen, p=weights / weights.sum()))
        truth = masks[name]
        named = rng.random() < 0.62
        propose = named and rng.random() < 0.72
        start = None if propose else self._start(truth, masks)
        return Row(truth, name if named else none, propose, start, 0 if propose else self._early())

    def _early(self) -> int:
        return int(self.rng.integers(1, 7)) if self.rng.random() < 0.2 else 0

    def _start(
        self, truth: NDArray[np.uint8], masks: dict[int, NDArray[np.uint8]]
    ) -> NDArray[np.float32] | None:
        """Sometimes a starting mask: damaged truth or another object."""
        rng = self.rng
        if rng.random() > 0.16:
            return None
        others = [m for m in masks.values() if m is not truth]
        if others and rng.random() < 0.25:
            return (others[int(rng.integers(len(others)))] > 127).astype(np.float32)
        mask = (truth > 127).astype(np.uint8)
        size = int(rng.integers(1, 6)) * 2 + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        kind = rng.random()
        if kind < 0.3:
            mask = cv2.erode(mask, kernel)
        elif kind < 0.6:
            mask = cv2.dilate(mask, kernel)
        else:
            shift = np.array([[1, 0, rng.normal(0, 5)], [0, 1, rng.normal(0, 5)]])
            mask = cv2.warpAffine(mask, shift, mask.shape[::-1])
        for _ in range(int(rng.integers(0, 3))):  # bites and bumps
            ys, xs = np.nonzero(cv2.dilate(mask, kernel) if mask.any() else truth)
            if len(ys):
                k = int(rng.integers(len(ys)))
                at = (int(xs[k]), int(ys[k]))
                cv2.circle(mask, at, int(rng.integers(2, 12)), int(rng.integers(0, 2)), -1)
        return mask.astype(np.float32)


def donors_of(corpus: list[Item]) -> Donors:
    """Pictures and masks of the sets that are composed."""
    return {
        dataset: [
            (item.pixels, item.masks[TARGETS.index(target)]) for item in corpus if item.dataset == dataset
        ]
        for dataset, target in COMPOSED.items()
    }


def draw_items(corpus: list[Item], rng: np.random.Generator, count: int) -> list[Item]:
    """`count` pictures: a set by weight, then a picture of it; BTCV pictures by number of targets."""
    sets = sorted({item.dataset for item in corpus})
    weights = np.array([SET_WEIGHTS.get(s, 1.0) for s in sets])
    chosen = rng.choice(len(sets), count, p=weights / weights.sum())
    result = []
    for k in chosen:
        pool = [item for item in corpus if item.dataset == sets[k]]
        odds = np.array([0.5 + len(item.masks) for item in pool], np.float64)
        result.append(pool[int(rng.choice(len(pool), p=odds / odds.sum()))])
    return result


def error_click(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """A click (x, y, sign in grid fractions) in the worst error; often its centre, else near it."""
    best: tuple[float, NDArray[np.float32], float] | None = None
    for error, sign in ((truth & ~mask, 1.0), (mask & ~truth, -1.0)):
        if not error.any():
            continue
        padded = cv2.copyMakeBorder(error.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        peak = float(distance.max())
        if best is None or peak > best[0]:
            best = (peak, distance, sign)
    if best is None:
        return None
    peak, distance, sign = best
    draw = rng.random()
    floor = peak if draw < 0.55 else peak * 0.5 if draw < 0.8 else 0.5
    ys, xs = np.nonzero(distance >= floor)
    k = int(rng.integers(len(ys)))
    size = truth.shape[0]
    jitter = rng.uniform(-0.5, 0.5, 2)
    return (xs[k] + 0.5 + jitter[0]) / size, (ys[k] + 0.5 + jitter[1]) / size, sign


def early_clicks(
    truth: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Clicks as an earlier part of an episode would have left: inside, and around the border outside."""
    inside = np.argwhere(cv2.erode(truth.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    around = cv2.dilate(truth.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
    outside = np.argwhere(around & ~(cv2.dilate(truth.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0))
    clicks = []
    for i in range(count):
        pool, sign = (inside, 1.0) if i == 0 or rng.random() < 0.55 else (outside, -1.0)
        if len(pool):
            y, x = pool[int(rng.integers(len(pool)))]
            clicks.append(((x + 0.5) / truth.shape[0], (y + 0.5) / truth.shape[0], sign))
    return clicks
