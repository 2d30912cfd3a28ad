"""BiomedParseData through the common door gives what its own reader gives."""

import json
import shutil

import numpy as np
from layouts import box, picture, save

from ibisagent.datasets.biomedparse import iter_samples
from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset


def test_the_same_samples_as_its_own_reader(data_root, tmp_path):
    for name in ("BTCV", "USGRA"):
        target = tmp_path / name
        shutil.copytree(data_root / name / "train_mask", target / "train_mask")
        shutil.copytree(data_root / name / "train", target / "train")
        index = json.loads((data_root / name / "train.json").read_text())
        index["images"] = index["images"][:4]
        (target / "train.json").write_text(json.dumps(index))
    found = open_dataset(tmp_path)
    assert found.format == "biomedparse" and found.faults == ()
    ours = [sample for case in found.cases for sample in samples_of(case, found.options, absent=True)]
    theirs = list(iter_samples(tmp_path, split="train", absent=True))
    assert [sample.sample_id for sample in ours] == [sample.sample_id for sample in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.picture.pixels, other.picture.pixels)
        np.testing.assert_array_equal(one.truth, other.truth)
        assert (one.patient, one.site, one.instruction) == (other.patient, other.site, other.instruction)


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
