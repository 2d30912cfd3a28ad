import numpy as np
import pytest
from pycocotools import mask as coco

from ibisagent.errors import EpisodeFormatError
from ibisagent.masks import decode_rle, encode_rle, error_regions, iou

RNG = np.random.default_rng(0)
SHAPES = [(1, 1), (1, 9), (9, 1), (7, 5), (40, 33), (300, 484)]
CASES = [RNG.random(shape) < share for shape in SHAPES for share in (0, 0.02, 0.5, 0.98, 1)]


@pytest.mark.parametrize("mask", CASES, ids=lambda mask: f"{mask.shape}-{mask.mean():.2f}")
def test_rle_is_that_of_pycocotools(mask: np.ndarray) -> None:
    ours = encode_rle(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_rle(ours), mask)
    assert np.array_equal(coco.decode({"size": ours["size"], "counts": ours["counts"].encode()}) > 0, mask)


@pytest.mark.parametrize(
    "rle",
    [
        None,
        {},
        {"size": [3, 3]},
        {"size": [3], "counts": "9"},
        {"size": [3, 3], "counts": "8"},
        {"size": [3, 3], "counts": "é"},
        {"size": [3, 3], "counts": "\x01"},
        {"size": [3, 3], "counts": "o"},
        {"size": [-3, -3], "counts": "9"},
        {"size": [100_000, 100_000], "counts": "0"},
        {"size": "ab", "counts": "9"},
        {"size": [3, 3], "counts": 5},
    ],
)
def test_damaged_rle_is_a_named_error(rle: object) -> None:
    with pytest.raises(EpisodeFormatError):
        decode_rle(rle)


def test_iou_and_error_regions() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(a, b) == 1.0
    a[:2], b[1:3] = True, True
    assert iou(a, b) == 4 / 12
    missed, extra = error_regions(a, b)
    assert missed[0].all() and missed.sum() == 4 and extra[2].all() and extra.sum() == 4
    missed, extra = error_regions(a, None)
    assert np.array_equal(missed, a) and not extra.any()
