"""Small data sets in the published layouts, made for the tests of the readers."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

SHAPE = (24, 32)


def picture(seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def save(path: Path, values: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def write_json(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def save_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def parallel(root: Path, count: int = 3) -> Path:
    """images/ and masks/ with one stem; masks in 1 bit, 0/1 and 0/255 by turns."""
    kinds = [lambda m: m, lambda m: m.astype(np.uint8), lambda m: m.astype(np.uint8) * 255]
    for index in range(count):
        save(root / f"images/case{index}.png", picture(index))
        save(root / f"masks/case{index}.png", kinds[index % 3](box(2, 3, 10 + index, 12)))
    return root
