"""Folders of pictures and masks in the layouts that people use."""

import json

import numpy as np
import pytest
from layouts import box, parallel, picture, save, save_volume

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset, open_part
from ibisagent.errors import InputError
from ibisagent.evaluation.cases import plan

SKIN = ReadOptions(target="skin lesion")


def kinds(found):
    return sorted((fault.kind, fault.where) for fault in found.faults)


def test_parallel_folders(tmp_path):
    found = open_dataset(parallel(tmp_path), options=SKIN)
    samples = list(found)
    assert found.format == "folders" and found.faults == ()
    assert [sample.target for sample in samples] == ["skin lesion"] * 3
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.truth, box(2, 3, 10 + index, 12))
        np.testing.assert_array_equal(sample.picture.pixels, picture(index))
        assert "case" not in sample.sample_id, "file names stay out of ids"
    assert len({sample.sample_id for sample in samples}) == 3


def test_masks_beside_pictures_and_numbered_masks(tmp_path):
    save(tmp_path / "benign (1).png", picture(1))
    save(tmp_path / "benign (1)_mask.png", box(0, 0, 3, 3))
    save(tmp_path / "benign (1)_mask_1.png", box(6, 6, 9, 9))
    save(tmp_path / "ISIC_01.jpg", picture(2))
    save(tmp_path / "ISIC_01_Segmentation.png", box(1, 1, 5, 5))
    single, several = open_dataset(tmp_path, options=SKIN)
    np.testing.assert_array_equal(several.truth, box(0, 0, 3, 3) | box(6, 6, 9, 9))
    np.testing.assert_array_equal(single.truth, box(1, 1, 5, 5))


def test_a_folder_per_target_and_splits(tmp_path):
    for split in ("train", "test"):
        for index in range(2):
            save(tmp_path / split / f"images/{index}.png", picture(index))
            save(tmp_path / split / f"masks/left_kidney/{index}.png", box(1, 1, 4, 4))
        save(tmp_path / split / "masks/liver/0.png", box(9, 9, 20, 20))
    samples = list(open_dataset(tmp_path))
    assert [(sample.split, sample.target) for sample in samples] == [
        (split, target) for split in ("test", "train") for target in ("left kidney", "liver", "left kidney")
    ]
    assert {sample.split for sample in open_dataset(tmp_path, options=ReadOptions(split="test"))} == {"test"}
    with pytest.raises(InputError, match="split"):
        open_dataset(tmp_path, options=ReadOptions(split="val"))


def test_label_values_and_colours(tmp_path):
    values = np.where(box(1, 1, 4, 4), 1, np.where(box(9, 9, 20, 20), 2, 0)).astype(np.uint8)
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", values)
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "spleen", "3": "aorta"}))
    samples = list(open_dataset(tmp_path))
    assert [sample.target for sample in samples] == ["liver", "spleen"], "the aorta is not there"
    np.testing.assert_array_equal(samples[1].truth, values == 2)
    color = np.zeros((24, 32, 3), np.uint8)
    color[values == 1], color[values == 2] = (255, 0, 0), (0, 0, 255)
    save(tmp_path / "masks/a.png", color)
    options = ReadOptions(labels={"#FF0000": "liver", "#0000ff": "spleen"})
    truths = [sample.truth for sample in open_dataset(tmp_path, options=options)]
    np.testing.assert_array_equal(truths, [values == 1, values == 2])


def test_missing_files_are_faults_not_errors(tmp_path):
    parallel(tmp_path)
    (tmp_path / "masks/case1.png").unlink()
    save(tmp_path / "masks/other.png", box(1, 1, 4, 4))
    found = open_dataset(tmp_path, options=SKIN)
    assert kinds(found) == [("mask without picture", "masks/other.png"), ("missing mask", "images/case1.png")]
    assert len(list(found)) == 2


def test_what_cannot_be_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="must exist"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="recognised"):
        open_dataset(tmp_path)
    parallel(tmp_path)
    with pytest.raises(InputError, match="what the masks show"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="a format is one"):
        open_dataset(tmp_path, "dicom")
    with pytest.raises(InputError, match="whole number or a colour"):
        open_dataset(tmp_path, options=ReadOptions(labels={"red": "liver"}))
    with pytest.raises(InputError, match="pictures and masks"):
        save(tmp_path / "sub/images/a.png", picture())
        (tmp_path / "sub/masks").mkdir()
        open_dataset(tmp_path / "sub", "folders", SKIN)


def test_pairs_of_volumes(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (6, 7, 5)).astype(np.uint8)
    save_volume(tmp_path / "images/p1.nii.gz", rng.normal(size=(6, 7, 5)).astype(np.float32))
    save_volume(tmp_path / "labels/p1.nii.gz", labels)
    options = ReadOptions(labels={"1": "anterior hippocampus", "2": "posterior hippocampus"})
    found = open_dataset(tmp_path, options=options)
    assert len(found.cases) == 5 and len(list(found)) == 10
    total = sum(sample.truth.sum() for sample in found if sample.target == "anterior hippocampus")
    assert total == (labels == 1).sum()
    assert {case.patient for case in found.cases} != {None} and len(
        {case.patient for case in found.cases}
    ) == 1
    every = open_dataset(tmp_path, options=ReadOptions(target="hippocampus", every=2, axis="coronal"))
    assert len(every.cases) == 4 and next(iter(every)).truth.shape == (5, 6)


def test_nobody_is_chosen_on_what_is_trained_in_any_layout(tmp_path):
    for index in range(40):
        save(tmp_path / f"images/{index}.png", picture(index))
        save(tmp_path / f"masks/liver/{index}.png", box(1, 1, 4, 4))
    trained, held = ({case.key for case in open_part(tmp_path, part).cases} for part in ("train", "val"))
    assert len(trained) + len(held) == 40 and not trained & held and 1 <= len(held) <= 9
    with pytest.raises(InputError, match=r"got 'test'; there are: train$"):
        open_dataset(tmp_path, options=ReadOptions(split="test"))


def test_a_validation_split_of_the_data_is_taken_as_it_is(tmp_path):
    for split, count in (("train", 9), ("val", 2)):
        for index in range(count):
            save(tmp_path / f"{split}/images/{split}{index}.png", picture(index))
            save(tmp_path / f"{split}/masks/liver/{split}{index}.png", box(1, 1, 4, 4))
    assert [len(open_part(tmp_path, part).cases) for part in ("train", "val")] == [9, 2]


def test_too_few_pictures_for_a_validation_say_so(tmp_path):
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/liver/a.png", box(1, 1, 4, 4))
    parts = {}
    for part in ("train", "val"):
        try:
            parts[part] = len(open_part(tmp_path, part).cases)
        except InputError as error:
            parts[part] = str(error)
    assert sorted(map(str, parts.values()))[0] == "1"
    assert any("none of 1 pictures" in str(value) for value in parts.values())
    assert len(plan(tmp_path, "train", hold_out=False).tasks) == 1, "as the message says"
