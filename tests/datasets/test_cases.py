"""Masks from files, values, colours, polygons and run lengths, against independent references."""

import numpy as np
import pytest
from layouts import box, picture, save
from PIL import Image
from pycocotools import mask as coco_mask

from ibisagent.datasets.cases import Case, PictureFile, ReadOptions, Target, case_key, samples_of
from ibisagent.datasets.mask_sources import (
    MaskFiles,
    PolygonMask,
    RleMask,
    decode_any_rle,
    label_names,
    label_values,
)
from ibisagent.errors import InputError

MASK = box(2, 3, 10, 12)


def case(tmp_path, mask, **fields):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "m.png", mask)
    target = Target("liver", MaskFiles((tmp_path / "m.png",)))
    return Case("set/train/x", "a.png", PictureFile(tmp_path / "a.png"), (target,), "set", "train", **fields)


@pytest.mark.parametrize(
    "values", [MASK, MASK.astype(np.uint8), MASK.astype(np.uint8) * 255], ids=["bit", "1", "255"]
)
def test_foreground_is_whatever_is_not_zero(tmp_path, values):
    [sample] = samples_of(case(tmp_path, values), ReadOptions())
    np.testing.assert_array_equal(sample.truth, MASK)
    assert sample.sample_id == "set/train/x/liver"
    assert sample.instruction == "Find the liver in this image."


def test_an_empty_mask_means_absent(tmp_path):
    empty = case(tmp_path, np.zeros_like(MASK), absent=("left kidney",))
    assert list(samples_of(empty, ReadOptions())) == []
    absent = list(samples_of(empty, ReadOptions(), absent=True))
    assert [sample.target for sample in absent] == ["liver", "left kidney"]
    assert absent[1].sample_id == "set/train/x/left+kidney"
    assert not any(sample.truth.any() for sample in absent)


def test_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="height and width of its picture"):
        list(samples_of(case(tmp_path, np.ones((24, 31), bool)), ReadOptions()))


def test_values_of_every_kind_of_file(tmp_path):
    labels = np.zeros((24, 32), np.uint8)
    labels[2:4, 5:9], labels[10:14, 1:3] = 7, 200
    assert label_names(label_values(save(tmp_path / "l.png", labels))) == ["7", "200"]
    palette = Image.fromarray(labels)
    palette.putpalette([255, 255, 255] + [0, 0, 0] * 255)  # index 0 is white: indices count, not colours
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(label_values(tmp_path / "p.png"), labels)
    deep = save(tmp_path / "d.png", labels.astype(np.uint16) * 300)
    assert label_names(label_values(deep)) == ["2100", "60000"]
    color = np.zeros((24, 32, 3), np.uint8)
    color[2:4, 5:9] = (255, 0, 0)
    path = save(tmp_path / "c.png", color)
    assert label_names(label_values(path)) == ["#ff0000"]
    np.testing.assert_array_equal(MaskFiles((path,), "#ff0000").read((24, 32)), labels == 7)
    with pytest.raises(InputError, match="one channel"):
        MaskFiles((path,), "1").read((24, 32))
    alpha = np.dstack([color, np.full((24, 32), 255, np.uint8)])
    assert label_names(label_values(save(tmp_path / "a.png", alpha))) == ["#ff0000"]


def test_jpeg_masks_are_cut_in_the_middle(tmp_path):
    mask = box(5, 5, 20, 25)
    path = save(tmp_path / "m.jpg", mask.astype(np.uint8) * 255, quality=95)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2, "losses are there"
    np.testing.assert_array_equal(MaskFiles((path,)).read((24, 32)), mask)


def test_colours_are_those_of_the_palette(tmp_path):
    labels = np.zeros((24, 32), np.uint8)
    labels[2:4, 5:9], labels[10:14, 1:3] = 1, 2
    palette = Image.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 128, 128, 128])
    palette.save(tmp_path / "p.png")
    path = tmp_path / "p.png"
    for label, value in (("#ff0000", 1), ("#808080", 2), ("#00ff00", 3), ("1", 1), ("2", 2)):
        np.testing.assert_array_equal(MaskFiles((path,), label).read((24, 32)), labels == value)
    assert label_names(label_values(path)) == ["1", "2"]
    assert label_names(label_values(path, colors=True)) == ["#808080", "#ff0000"]
    bit = save(tmp_path / "bit.png", labels > 0)
    np.testing.assert_array_equal(MaskFiles((bit,), "#ffffff").read((24, 32)), labels > 0)
    lossy = save(tmp_path / "c.jpg", np.repeat(labels[..., None] * 90, 3, axis=2))
    with pytest.raises(InputError, match=r"colours of labels .* JPEG"):
        MaskFiles((lossy,), "#b4b4b4").read((24, 32))


def test_unreadable_masks_are_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(InputError, match="readable picture file"):
        label_values(tmp_path / "m.png")


def test_run_lengths_of_both_kinds():
    shape = (37, 23)
    mask = np.random.default_rng(1).random(shape) < 0.4
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    runs = [0, *runs] if flat[0] else runs
    text = {"size": [37, 23], "counts": packed["counts"].decode()}
    for code in (packed, text, {"size": [37, 23], "counts": runs}):
        np.testing.assert_array_equal(decode_any_rle(code), mask)
        np.testing.assert_array_equal(RleMask((code,)).read(shape), mask)
    with pytest.raises(InputError, match="add up"):
        decode_any_rle({"size": [37, 24], "counts": runs})


@pytest.mark.parametrize("seed", range(12))
def test_polygons_agree_with_pycocotools_but_for_the_rim(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radius = rng.uniform(15, 45, 9)
    points = np.stack([60 + radius * np.cos(angles), 50 + radius * np.sin(angles)], axis=1).ravel()
    ours = PolygonMask((tuple(points),)).read((100, 120))
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points.tolist()], 100, 120))).astype(
        bool
    )
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95


def test_polygons_follow_the_centre_rule():
    square = PolygonMask(((3.0, 2.0, 12.0, 2.0, 12.0, 10.0, 3.0, 10.0),)).read((24, 32))
    np.testing.assert_array_equal(square, MASK)
    outside = PolygonMask(((-50.0, -50.0, 500.0, -50.0, 500.0, 500.0, -50.0, 500.0),)).read((24, 32))
    assert outside.all()


def test_keys_tell_nothing_and_do_not_change():
    key = case_key("set", "train", "images/JOHN_DOE.png")
    assert key.startswith("set/train/") and "JOHN" not in key
    assert key == case_key("set", "train", "images/JOHN_DOE.png") != case_key("set", "train", "images/x.png")
