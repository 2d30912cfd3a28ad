"""Where clicks and masks land in a model's square, against the original predictors' arithmetic."""

import numpy as np
import pytest
import torch

from ibisagent.actions import click_at
from ibisagent.errors import InputError
from ibisagent.masks import iou
from ibisagent.tools.sam_frame import Frame
from ibisagent.types import Box, Click, Picture


def picture(height: int, width: int, spacing: tuple[float, float] | None = None) -> Picture:
    return Picture(np.zeros((height, width, 3), np.uint8), spacing)


@pytest.mark.parametrize("width", [1, 7, 300, 512, 1023, 4001])
def test_a_click_is_the_original_predictors_pixel(width):
    frame = Frame.squashed(picture(3, width), 1024)
    for column in {0, width // 3, width - 1}:
        x, y = frame.click(click_at(1, column, 3, width, True))
        assert x == pytest.approx(column / width * 1024, abs=1e-9)
        assert y == pytest.approx(1 / 3 * 1024, abs=1e-9)


def test_four_decimals_and_the_very_border_stay_on_their_pixel():
    frame = Frame.squashed(picture(512, 512), 512)
    assert frame.click(Click(0.5, 0.25, True)) == (256, 128)
    assert frame.click(Click(0.5, 0.2505, True)) == (256, 128)  # the centre of row 128, as written
    assert frame.click(Click(1.0, 0.0, True)) == (511, 0)
    assert frame.box(Box(0.0, 0.0, 1.0, 1.0)) == (0, 0, 511, 511)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(300, 220, (188, 256)), (220, 300, (256, 188)), (64, 64, (256, 256))]
)
def test_letterbox_keeps_proportions(height, width, expected):
    frame = Frame.letterboxed(picture(height, width), 256)
    assert (frame.width, frame.height) == expected
    scale = 256 / max(height, width)
    x, y = frame.click(click_at(height // 2, width // 2, height, width, True))
    assert x == pytest.approx(width // 2 * scale, abs=1)
    assert y == pytest.approx(height // 2 * scale, abs=1)


def test_letterbox_follows_millimetres_where_known():
    frame = Frame.letterboxed(picture(100, 100, (2.0, 1.0)), 256)  # rows twice as far apart
    assert (frame.width, frame.height) == (128, 256)
    assert Frame.squashed(picture(100, 100, (2.0, 1.0)), 256).width == 256


def test_extreme_proportions_keep_one_pixel():
    assert Frame.letterboxed(picture(1, 8000), 256).height == 1


@pytest.mark.parametrize("make", [Frame.squashed, Frame.letterboxed])
def test_a_mask_survives_the_way_to_logits_and_back(make):
    rows, columns = np.mgrid[:150, :230]
    mask = ((rows - 60) / 40) ** 2 + ((columns - 120) / 70) ** 2 < 1
    frame = make(picture(150, 230), 1024)
    logits = frame.mask_to_logits(mask, 256)
    assert logits.dtype == torch.float32
    assert logits.shape == (256, 256)
    assert float(logits.max()) == pytest.approx(10)
    assert float(logits.min()) == pytest.approx(-10)
    assert iou(mask, (frame.logits_to_picture(logits) > 0).numpy()) > 0.98


def test_nothing_beyond_the_picture_is_ever_inside():
    frame = Frame.letterboxed(picture(50, 200), 1024)
    logits = frame.mask_to_logits(np.ones((50, 200), bool), 256)
    assert bool((logits[70:] == -10).all())  # the picture ends at row 64
    assert float(logits[:60].min()) == pytest.approx(10, abs=1e-4)


def test_what_does_not_fit_is_refused():
    frame = Frame.squashed(picture(10, 20), 512)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        frame.click(Click(-0.1, 0.5, True))
    with pytest.raises(InputError, match="x1 < x2"):
        frame.box(Box(0.6, 0.1, 0.5, 0.9))
    with pytest.raises(InputError, match="picture's shape"):
        frame.mask_to_logits(np.ones((20, 10), bool), 128)
