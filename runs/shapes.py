"""Targets that nobody annotated: shapes put on a picture, and what lies in it anyway."""

from __future__ import annotations

import cv2
import numpy as np
from compositions import Grey
from numpy.typing import NDArray


def blob(height: int, width: int, radii: tuple[float, float], rng: np.random.Generator) -> Grey:
    """A smooth shape, HxW, 0 or 255; `radii`: least and greatest, as shares of the longer side."""
    count = int(rng.integers(8, 20))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = np.exp(rng.uniform(*np.log(radii))) * max(height, width)
    rays = radius * np.clip(1 + 0.25 * rng.standard_normal(count), 0.4, 1.8)
    squash, turn = rng.uniform(0.45, 1.0), rng.uniform(0, np.pi)
    x, y = rays * np.cos(angles), rays * np.sin(angles) * squash
    cx, cy = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    points = np.stack(
        [cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], axis=1
    )
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 255)
    soft = cv2.GaussianBlur(mask, (0, 0), max(1.0, radius * 0.15))
    return np.where(soft > 127, 255, 0).astype(np.uint8)


def paste(pixels: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
    """The picture with a shape of another brightness or texture on it, and the shape."""
    height, width = pixels.shape[:2]
    mask = blob(height, width, (0.02, 0.22), rng)
    alpha = _soft(mask, rng.uniform(0.5, 2.5)) * np.float32(rng.uniform(0.4, 1.0))
    noise = rng.standard_normal((height, width), dtype=np.float32)
    fill = float(rng.uniform(0, 255)) + noise * float(rng.uniform(0, 20))
    flat = pixels.astype(np.float32)
    if pixels.ndim == 3:
        alpha, fill = alpha[..., None], fill[..., None] * rng.uniform(0.6, 1.4, 3).astype(np.float32)
    return np.clip(flat * (1 - alpha) + fill * alpha, 0, 255).astype(np.uint8), mask


def swell(pixels: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
    """The picture with a part of it raised as a dome under a light, and that part.

    Only shading, a rim of shadow and a slight tint tell it from what is around it, as with polyps
    and nodules; now and then a highlight.
    """
    height, width = pixels.shape[:2]
    mask = blob(height, width, (0.05, 0.35), rng)
    depth = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
    peak = max(float(depth.max()), 1.0)
    dome = np.sqrt(np.clip(1 - (1 - depth / peak) ** 2, 0, 1)).astype(np.float32)
    dome = cv2.GaussianBlur(dome, (0, 0), max(1.0, 0.12 * peak)) * peak
    angle, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.35)
    slope = cv2.Sobel(dome, cv2.CV_32F, 1, 0, ksize=3, scale=0.125) * np.cos(angle)
    slope += cv2.Sobel(dome, cv2.CV_32F, 0, 1, ksize=3, scale=0.125) * np.sin(angle)
    lit = 1 + steep * np.clip(slope, -1.5, 1.5)
    alpha = _soft(mask, rng.uniform(0.8, 3.0))
    rim = np.clip(cv2.GaussianBlur(mask, (0, 0), 0.15 * peak + 1).astype(np.float32) / 255 - alpha, 0, 1)
    lit *= 1 - rng.uniform(0, 0.8) * rim
    tint = np.exp(rng.normal(0, 0.07, pixels.shape[2:])).astype(np.float32)
    raised = pixels.astype(np.float32)
    if pixels.ndim == 3:
        lit, alpha = lit[..., None], alpha[..., None]
    raised *= lit * (1 + alpha * (tint * np.float32(np.exp(rng.normal(0, 0.1))) - 1))
    if rng.random() < 0.4:  # wet surfaces mirror the light
        shine = np.where(slope > np.quantile(slope[mask > 0], 0.97), 255, 0) if mask.any() else mask
        shine = cv2.bitwise_and(shine.astype(np.uint8), mask)
        glare = _soft(shine, 1.0) * np.float32(rng.uniform(0.3, 0.9))
        raised += (glare if pixels.ndim == 2 else glare[..., None]) * np.minimum(2 * raised, 255)
    return np.clip(raised, 0, 255).astype(np.uint8), mask


def region(grey: Grey, rng: np.random.Generator) -> Grey:
    """A connected region of similar brightness around a random place; HxW, 0 or 255."""
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    half = cv2.GaussianBlur(half, (0, 0), float(rng.uniform(0.5, 2.0)))
    height, width = half.shape
    seed = (int(rng.integers(width)), int(rng.integers(height)))
    tolerance = float(rng.uniform(5, 30))
    mask = np.zeros((height + 2, width + 2), np.uint8)
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (255 << 8)
    cv2.floodFill(half, mask, seed, 0, tolerance, tolerance, flags)
    found = cv2.morphologyEx(mask[1:-1, 1:-1], cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return cv2.resize(found, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)


def _soft(mask: Grey, sigma: float) -> NDArray[np.float32]:
    return cv2.GaussianBlur(mask, (0, 0), float(sigma)).astype(np.float32) / 255
