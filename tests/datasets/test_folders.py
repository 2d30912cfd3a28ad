"""Folders of pictures and masks in the layouts that people use."""

import json

import numpy as np
import pytest
from layouts import box, parallel, picture, save, save_volume
from PIL import Image

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


@pytest.mark.parametrize("place", ["labels.json", "option"])
def test_background_and_ignore_are_no_targets(tmp_path, place):
    values = np.where(box(1, 1, 4, 4), 1, np.where(box(9, 9, 20, 20), 255, 0)).astype(np.uint8)
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", values)
    labels = {"0": "background", "00": "air", "1": "liver", "2": " Background", "255": "Ignore"}
    if place == "labels.json":
        (tmp_path / "labels.json").write_text(json.dumps(labels))
    found = open_dataset(tmp_path, options=ReadOptions(labels={} if place == "labels.json" else labels))
    [sample] = found
    assert sample.target == "liver" and [target.name for target in found.cases[0].targets] == ["liver"]
    np.testing.assert_array_equal(sample.truth, values == 1)


def test_labels_also_name_what_masks_in_sub_folders_show(tmp_path):
    values = np.where(box(1, 1, 4, 4), 1, np.where(box(9, 9, 20, 20), 2, 0)).astype(np.uint8)
    for name in "ab":
        save(tmp_path / f"images/{name}.png", picture())
    save(tmp_path / "masks/P003/a.png", values)
    save(tmp_path / "masks/b.png", values)
    found = open_dataset(tmp_path, options=ReadOptions(labels={"1": "liver", "2": "spleen"}))
    assert found.faults == ()
    assert [sample.target for sample in found] == ["liver", "spleen"] * 2
    np.testing.assert_array_equal(next(iter(found)).truth, values == 1)


def test_loose_masks_beside_those_of_targets_are_read_or_named(tmp_path):
    for name in "ab":
        save(tmp_path / f"images/{name}.png", picture())
    save(tmp_path / "masks/liver/a.png", box(1, 1, 4, 4))
    save(tmp_path / "masks/a.png", box(5, 5, 9, 9))
    save(tmp_path / "masks/overview.png", box(5, 5, 9, 9))
    found = open_dataset(tmp_path)
    assert [sample.target for sample in found] == ["liver"]
    assert kinds(found) == [
        ("index", "images/a.png"),
        ("mask without picture", "masks/overview.png"),
        ("missing mask", "images/b.png"),
    ]
    samples = list(open_dataset(tmp_path, options=ReadOptions(target="lesion")))
    assert sorted((sample.target, int(sample.truth.sum())) for sample in samples) == [
        ("lesion", 16),
        ("liver", 9),
    ]


def test_splits_within_the_parallel_folders(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        save(tmp_path / f"images/{split}/a.png", picture(number))
        save(tmp_path / f"masks/{split}/a.png", box(1, 1, 3 + number, 3))
    save(tmp_path / "masks/train/liver/a.png", box(9, 9, 12, 12))
    found = open_dataset(tmp_path, options=SKIN)
    assert found.faults == ()
    assert [(s.split, s.target, int(s.truth.sum())) for s in found] == [
        ("test", "skin lesion", 8),
        ("train", "skin lesion", 4),
        ("train", "liver", 9),
        ("val", "skin lesion", 6),
    ]
    only = open_dataset(tmp_path, options=ReadOptions(target="skin lesion", split="val"))
    assert [case.where for case in only.cases] == ["images/valid/a.png"] and only.faults == ()


def test_folders_of_one_name_are_patients(tmp_path):
    for patient in ("P000", "P001"):
        for number in range(3):
            save(tmp_path / f"images/{patient}/{number}.png", picture(number))
            save(tmp_path / f"masks/{patient}/{number}.png", box(1, 1, 3, 3 + number))
    save(tmp_path / "images/P002/v.png", picture(7))
    save(tmp_path / "masks/P002/liver/v.png", box(1, 1, 4, 4))
    save(tmp_path / "masks/P000/9.png", box(1, 1, 4, 4))
    found = open_dataset(tmp_path, options=SKIN)
    assert kinds(found) == [("mask without picture", "masks/P000/9.png")]
    samples = list(found)
    assert [int(sample.truth.sum()) for sample in samples] == [4, 6, 8, 4, 6, 8, 9]
    assert [sample.target for sample in samples] == ["skin lesion"] * 6 + ["liver"]
    assert [len({s.patient for s in samples[at]}) for at in (slice(3), slice(6), slice(7))] == [1, 2, 3]
    assert "P00" not in str([(sample.patient, sample.sample_id) for sample in samples])


def test_slices_of_volumes_in_a_folder_are_of_one_patient(tmp_path):
    for scan in "ab":
        save_volume(tmp_path / f"images/P1/{scan}.nii", np.zeros((4, 4, 2), np.int16))
        save_volume(tmp_path / f"labels/P1/{scan}.nii", np.ones((4, 4, 2), np.int16))
    assert len({sample.patient for sample in open_dataset(tmp_path, options=SKIN)}) == 1


def test_masks_that_name_their_target(tmp_path):
    for name in ("x", "x_1", "y"):
        save(tmp_path / f"images/{name}.png", picture())
    masks = ["x_liver", "x_left_kidney", "x-spleen_1", "x-spleen_2", "x_1_liver_mask", "z_liver"]
    for number, name in enumerate(masks):
        save(tmp_path / f"masks/{name}.png", box(number, 1, number + 1, 4))
    found = open_dataset(tmp_path)
    shown = [(case.where, sorted(target.name for target in case.targets)) for case in found.cases]
    assert shown == [
        ("images/x.png", ["left kidney", "liver", "spleen"]),
        ("images/x_1.png", ["liver"]),
        ("images/y.png", []),
    ]
    spleen = next(sample.truth for sample in found if sample.target == "spleen")
    np.testing.assert_array_equal(spleen, box(2, 1, 4, 4))
    assert kinds(found) == [
        ("mask without picture", "masks/z_liver.png"),
        ("missing mask", "images/y.png"),
    ]
    with pytest.raises(InputError, match="pictures in images"):
        open_dataset(tmp_path, options=SKIN)  # what is named otherwise is not named by files


def test_an_empty_split_folder_hides_nothing(tmp_path):
    parallel(tmp_path)
    (tmp_path / "test").mkdir()
    assert len(list(open_dataset(tmp_path, options=SKIN))) == 3
    parallel(tmp_path / "test", 2)
    found = open_dataset(tmp_path, options=SKIN)
    assert sorted(sample.split for sample in found) == ["test"] * 2 + ["train"] * 3


def test_what_was_seen_is_said_where_nothing_fits(tmp_path):
    for number in range(2):
        save(tmp_path / f"images/case{number}.png", picture(number))
        save(tmp_path / f"masks/other{number}.png", box(1, 1, 4, 4))
    with pytest.raises(InputError, match="got 2 pictures in images and 2 masks in masks, none of one name"):
        open_dataset(tmp_path, options=SKIN)


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


def test_labels_do_not_hide_folders_of_their_names(tmp_path):
    save(tmp_path / "images/x.png", picture())
    for name, size in (("liver", 4), ("left_kidney", 9)):
        save(tmp_path / f"masks/{name}/x.png", box(2, 2, 2 + size, 2 + size).astype(np.uint8) * 255)
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "left kidney"}))
    found = {sample.target: int(sample.truth.sum()) for sample in open_dataset(tmp_path)}
    assert found == {"liver": 16, "left kidney": 81}


def test_labels_of_a_file_are_part_of_how_it_is_read(tmp_path):
    save(tmp_path / "images/x.png", picture())
    save(tmp_path / "masks/x.png", box(2, 2, 6, 6).astype(np.uint8))
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver"}))
    assert open_dataset(tmp_path).options.record() == {"labels": {"1": "liver"}}


def test_a_value_in_a_jpeg_mask_is_refused(tmp_path):
    save(tmp_path / "images/x.png", picture())
    mask = Image.fromarray(box(2, 2, 20, 20).astype(np.uint8) * 255)
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks/x.jpg")
    with pytest.raises(InputError, match="the label 255 in a JPEG file; save it as PNG, or write 1=NAME"):
        list(open_dataset(tmp_path, options=ReadOptions(labels={"255": "lesion"})))
    [sample] = open_dataset(tmp_path, options=ReadOptions(labels={"1": "lesion"}))
    assert sample.truth.sum() == pytest.approx(18 * 18, abs=20)


@pytest.mark.parametrize("words", ["Find {organ}", "Find {target.name}", "Find {target[a]}", "Find {", "{0}"])
def test_instructions_hold_no_other_braces(words):
    with pytest.raises(InputError, match="no braces but"):
        ReadOptions(instruction=words)
