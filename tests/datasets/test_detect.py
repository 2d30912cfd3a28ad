"""BiomedParseData through the common door, against its files."""

import json
import shutil

import cv2
import numpy as np
import pytest
from layouts import box, picture, save

from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset
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
