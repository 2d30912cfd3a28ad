"""BiomedParseData through the common door, against its files."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
from layouts import box, parallel, picture, save, save_volume, write_json

from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset, open_part
from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError


def test_samples_are_what_the_files_hold(data_root, tmp_path):
    """Pictures and masks against cv2, in the order of the index, absent targets last."""
    expected = []
    for name in ("BTCV", "USGRA"):
        target = tmp_path / name
        shutil.copytree(data_root / name / "train_mask", target / "train_mask")
        shutil.copytree(data_root / name / "train", target / "train")
        index = json.loads((data_root / name / "train.json").read_text())
        index["images"] = index["images"][:4]
        (target / "train.json").write_text(json.dumps(index))
        for entry in index["images"]:
            shown = cv2.imread(str(target / "train" / entry["file_name"]))[..., ::-1]
            masks = [(t["target"], t["mask_file"]) for t in entry["targets"]]
            for thing, file in [*masks, *((thing, None) for thing in entry["absent"])]:
                mask = np.zeros(shown.shape[:2], bool)
                if file is not None:
                    mask = cv2.imread(str(target / "train_mask" / file), cv2.IMREAD_GRAYSCALE) > 0
                expected.append((name, thing, shown, mask))
    found = open_dataset(tmp_path)
    assert found.format == "biomedparse" and found.faults == ()
    samples = [sample for case in found.cases for sample in samples_of(case, found.options, absent=True)]
    assert len({sample.sample_id for sample in samples}) == len(samples) == len(expected) > 8
    for sample, (name, thing, shown, mask) in zip(samples, expected, strict=True):
        assert (sample.dataset, sample.target) == (name, thing)
        assert sample.instruction == f"Find the {thing} in this image."
        np.testing.assert_array_equal(sample.picture.pixels, shown)
        np.testing.assert_array_equal(sample.truth, mask)


def test_missing_files_of_an_index_are_faults(tmp_path):
    images = []
    for index in range(3):
        name = f"x{index}_CT_abdomen"
        images.append(
            {
                "file_name": f"{name}.png",
                "targets": [{"target": "liver", "mask_file": f"{name}_liver.png"}],
                "absent": [],
            }
        )
        save(tmp_path / f"SET/train/{name}.png", picture(index))
        save(tmp_path / f"SET/train_mask/{name}_liver.png", box(1, 1, 5, 5))
    (tmp_path / "SET/train.json").write_text(json.dumps({"images": images}))
    (tmp_path / "SET/train/x0_CT_abdomen.png").unlink()
    (tmp_path / "SET/train_mask/x1_CT_abdomen_liver.png").unlink()
    for path in (tmp_path, tmp_path / "SET"):
        found = open_dataset(path, options=ReadOptions(split="train"))
        assert [fault.kind for fault in found.faults] == ["missing picture", "missing mask"]
        [sample] = found
        np.testing.assert_array_equal(sample.picture.pixels, picture(2))
        assert "x2" not in sample.sample_id and sample.sample_id.endswith("/liver")


def test_names_that_lead_out_are_not_followed(tmp_path):
    for place in ("SET/train/x_CT_abdomen.png", "x_CT_abdomen.png"):
        save(tmp_path / place, picture())
    for place in ("SET/train_mask/m.png", "m.png"):
        save(tmp_path / place, box(1, 1, 5, 5))
    masks = ["m.png", "../../m.png", str(tmp_path / "m.png")]
    targets = [{"target": f"part {number}", "mask_file": name} for number, name in enumerate(masks)]
    names = ["x_CT_abdomen.png", "../../x_CT_abdomen.png", str(tmp_path / "x_CT_abdomen.png")]
    images = [{"file_name": name, "targets": targets} for name in names]
    (tmp_path / "SET/train.json").write_text(json.dumps({"images": images}))
    found = open_dataset(tmp_path)
    [case] = found.cases
    assert [target.name for target in case.targets] == ["part 0"]
    assert [fault.kind for fault in found.faults] == ["index"] * 4
    assert all("leads out of the data set" in fault.value for fault in found.faults)


def test_a_field_that_is_missing_is_named(tmp_path):
    save(tmp_path / "SET/train/x_CT_abdomen.png", picture())
    for images in ([{}], ["x"], [{"file_name": "x_CT_abdomen.png", "targets": [{}]}]):
        (tmp_path / "SET/train.json").write_text(json.dumps({"images": images}))
        with pytest.raises(InputError, match=r"format biomedparse has the fields that docs/data\.md names"):
            open_dataset(tmp_path)


def test_a_data_set_has_one_name_however_its_path_is_written(tmp_path, monkeypatch):
    root = parallel(tmp_path / "lesions", 30)
    save_volume(tmp_path / "scans/images/a.nii", np.zeros((4, 4, 2), np.int16))
    save_volume(tmp_path / "scans/labels/a.nii", np.ones((4, 4, 2), np.int16))
    options = ReadOptions(target="x")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    monkeypatch.chdir(root)
    ways = [root, ".", "../lesions", "masks/..", tmp_path / "link", "../link/"]
    held = [[case.key for case in open_part(way, "val", options=options).cases] for way in ways]
    assert held[0] and held == [held[0]] * len(ways)
    assert all(key.startswith("lesions/train/") for key in held[0])
    monkeypatch.chdir(tmp_path / "scans")
    [here, there] = [open_dataset(way, options=options).cases for way in (".", tmp_path / "scans")]
    assert here == there and here[0].patient is not None


def of(number):
    return f"P{number % 10:02d}"


@pytest.mark.parametrize("layout", ["folders", "coco", "segagent", "mecovqa", "lisa", "nnunet", "sam-med2d"])
def test_a_pattern_says_whose_pictures_are(tmp_path, layout):
    """40 pictures of 10 patients and one of whom it is unknown: nobody is in both parts."""
    root = tmp_path / "set"  # by whose name patients are drawn
    names = [f"{of(number)}_s{number}" for number in range(40)] + ["nobody"]
    mask = {"segmentation": [[3, 2, 12, 2, 12, 10, 3, 10]]}
    masks = {"nnunet": "labelsTr/{}", "sam-med2d": "masks/{}_liver_000"}.get(layout, "masks/{}")
    for number, name in enumerate(names):
        place = {"nnunet": f"imagesTr/{name}_0000", "lisa": name}.get(layout, f"images/{name}")
        save(root / f"{place}.png", picture(number))
        if layout in ("folders", "mecovqa", "nnunet", "sam-med2d"):
            save(root / f"{masks.format(name)}.png", box(1, 1, 5, 5).astype(np.uint8))
        if layout == "lisa":
            shapes = [{"label": "x", "points": [[1, 1], [9, 1], [9, 9]]}]
            write_json(root / f"{name}.json", {"text": ["the liver"], "shapes": shapes})
    if layout == "coco":
        index = {
            "images": [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(names)],
            "categories": [{"id": 7, "name": "liver"}],
            "annotations": [{"image_id": number, "category_id": 7, **mask} for number in range(41)],
        }
        write_json(root / "x.json", index)
    elif layout == "segagent":
        index = [{"image_name": f"{name}.png", "gt_ann": {"caption": "liver", **mask}} for name in names]
        write_json(root / "x.json", {"data": index})
    elif layout == "mecovqa":
        turns = [
            {"from": "human", "value": "Find it."},
            {"from": "gpt", "value": "<mask>masks/{}.png</mask>"},
        ]
        index = [
            {
                "image": f"images/{name}.png",
                "conversations": json.loads(json.dumps(turns).replace("{}", name)),
            }
            for name in names
        ]
        write_json(root / "x.json", index)
    elif layout == "nnunet":
        write_json(root / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    elif layout == "sam-med2d":
        index = {f"images/{name}.png": [f"masks/{name}_liver_000.png"] for name in names}
        write_json(root / "image2label_train.json", index)
    options = ReadOptions(target="liver", patient=r"(P\d\d)_s\d+(?:_0000)?\.(?:png|json)$")
    found = open_dataset(root, options=options)
    assert found.format == layout and len(list(found)) == 41
    assert [(fault.kind, Path(fault.where).stem.removesuffix("_0000")) for fault in found.faults] == [
        ("unknown patient", "nobody")
    ]
    assert len({case.patient for case in found.cases} - {None}) == 10
    held = [open_part(root, part, options=options).cases for part in ("train", "val")]
    assert sum(map(len, held)) == 41
    known = [{case.patient for case in cases if "nobody" not in case.where} for cases in held]
    assert known[0] and known[1] and not known[0] & known[1]
    assert options.record() == {"target": "liver", "patient": options.patient}


def test_a_pattern_for_volumes_and_tables_is_read_from_their_files(tmp_path):
    for name in ("P1_a", "P1_b", "Q"):
        save_volume(tmp_path / f"images/{name}.nii.gz", np.zeros((4, 4, 3), np.int16))
        save_volume(tmp_path / f"labels/{name}.nii.gz", np.ones((4, 4, 3), np.int16))
    found = open_dataset(tmp_path, options=ReadOptions(target="x", patient=r"/(P\d)?[^/]*\.nii\.gz$"))
    assert [
        len(group) for group in ({c.patient for c in found.cases[:6]}, {c.patient for c in found.cases})
    ] == [1, 2]
    assert [(fault.kind, fault.where) for fault in found.faults] == [("unknown patient", "images/Q.nii.gz")]


@pytest.mark.parametrize("pattern", ["(", r"P\d+", ""])
def test_a_pattern_that_cannot_be_used_is_refused(pattern):
    with pytest.raises(InputError, match="regular expression with a group"):
        ReadOptions(patient=pattern)


def test_options_out_of_range_are_refused():
    for wrong in ({"every": 0}, {"channel": -1}):
        with pytest.raises(InputError, match="--every is at least 1, --channel counts from 0"):
            ReadOptions(**wrong)


def test_every_option_of_the_command_line_is_passed_on():
    command = Reading(
        target="t",
        labels=("1=a",),
        pictures=Path("p"),
        axis="coronal",
        every=2,
        window="1,9",
        channel=3,
        picture_column="scan",
        mask_column="truth",
        patient="(P)",
    )
    options = command.read_options()
    shared = {field.name for field in fields(ReadOptions)} & {field.name for field in fields(Reading)}
    assert {name for name in shared if getattr(options, name) == getattr(ReadOptions(), name)} == set()
    assert {field.name for field in fields(ReadOptions)} - shared == {"split", "instruction"}
    assert (options.channel, options.picture_column, options.mask_column) == (3, "scan", "truth")


def test_one_name_in_two_splits_is_read_once(tmp_path):
    name = "x_CT_abdomen"
    entry = {"file_name": f"{name}.png", "targets": [{"target": "liver", "mask_file": f"{name}_liver.png"}]}
    for split in ("train", "test"):
        save(tmp_path / f"SET/{split}/{name}.png", picture())
        save(tmp_path / f"SET/{split}_mask/{name}_liver.png", box(1, 1, 5, 5))
        (tmp_path / f"SET/{split}.json").write_text(json.dumps({"images": [entry]}))
    found = open_dataset(tmp_path)
    assert [case.split for case in found.cases] == ["train"]
    assert [(fault.kind, fault.where) for fault in found.faults] == [("duplicate", f"SET/test/{name}.png")]
