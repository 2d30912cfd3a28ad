import numpy as np
import pytest

from ibisagent.render import COLOR, paint, resize_mask, view_image, view_size
from ibisagent.types import Picture, View


def test_painting_is_the_reference_blend() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:10, 5:20] = True
    painted = paint(pixels, mask)
    wanted = pixels.astype(float)
    wanted[mask] = 0.6 * wanted[mask] + 0.4 * np.array([34, 139, 34])
    assert np.abs(painted - wanted).max() <= 0.5 + 1e-4
    assert np.array_equal(painted[~mask], pixels[~mask])
    assert paint(pixels, None) is not pixels and np.array_equal(paint(pixels, None), pixels)


def test_contour_leaves_the_inside_visible() -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    painted = paint(pixels, mask, "contour")
    assert (painted[4, 8] == COLOR).all() and not painted[10, 10].any()


@pytest.mark.parametrize(
    ("size", "spacing", "view", "expected"),
    [
        ((512, 512), None, View(), (512, 512)),
        ((1024, 1024), None, View(), (512, 512)),
        ((300, 484), None, View(), (300, 484)),
        ((300, 484), None, View(max_side=256), (159, 256)),
        ((100, 100), (2.0, 1.0), View(), (200, 100)),
        ((100, 100), (1.0, 4.0), View(max_side=256), (64, 256)),
        ((1, 1), None, View(multiple=28), (28, 28)),
        ((500, 333), None, View(multiple=28), (504, 336)),
    ],
)
def test_view_size(size: tuple, spacing: tuple | None, view: View, expected: tuple) -> None:
    assert view_size(Picture(np.zeros((*size, 3), np.uint8), spacing), view) == expected


@pytest.mark.parametrize("size", [(1, 8192), (8192, 1), (8192, 8192), (3, 700), (513, 511)])
@pytest.mark.parametrize("multiple", [1, 28])
def test_view_never_exceeds_its_pixels(size: tuple[int, int], multiple: int) -> None:
    view = View(multiple=multiple)
    height, width = view_size(Picture(np.zeros((*size, 3), np.uint8)), view)
    assert height * width <= view.max_pixels and height % multiple == width % multiple == 0
    assert max(height / width, width / height) <= 64 * 28


def test_masks_and_pictures_keep_their_place_at_any_size() -> None:
    mask = np.zeros((64, 64), bool)
    mask[16:32, 32:48] = True
    small = resize_mask(mask, 16, 16)
    assert np.array_equal(small, mask[2::4, 2::4]) and np.array_equal(resize_mask(mask, 64, 64), mask)
    picture = Picture(np.full((64, 64, 3), 90, np.uint8))
    image = view_image(picture, mask, View(max_side=128))
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert (image[33:63, 65:95] == paint(picture.pixels, mask)[20, 40]).all() and (image[:30] == 90).all()
