"""Both kinds of index, names parsed from the right, patients and splits."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from ibisagent.datasets.biomedparse import (
    data_root as find_data_root,
)
from ibisagent.datasets.biomedparse import (
    list_datasets,
    parse_mask_name,
    parse_name,
    patient_of,
    read_index,
    split_of,
)
from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.errors import InputError

PICTURE = "case_7.v2_MRI-FLAIR_upper+abdomen.png"
LIVER = "case_7.v2_MRI-FLAIR_upper+abdomen_liver.png"
KIDNEY = "case_7.v2_MRI-FLAIR_upper+abdomen_left+kidney.png"


@pytest.fixture
def root(tmp_path):
    """A set with one 6x8 picture, two masks and no index."""
    for folder in ("train", "train_mask"):
        (tmp_path / "SET" / folder).mkdir(parents=True)
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "SET/train" / PICTURE)
    liver, kidney = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    liver[1:3, 1:4], kidney[4, 5:] = 1, 255
    Image.fromarray(liver).save(tmp_path / "SET/train_mask" / LIVER)  # values 0 and 1
    Image.fromarray(kidney > 0).save(tmp_path / "SET/train_mask" / KIDNEY)  # 1 bit
    return tmp_path


def write_index(root, data):
    (root / "SET/train.json").write_text(json.dumps(data))


def plain_index():
    targets = [
        {"target": "liver", "mask_file": LIVER, "foreground": 0.1},
        {"target": "left kidney", "mask_file": KIDNEY, "foreground": 0.1},
    ]
    entry = {"file_name": PICTURE, "width": 8, "height": 6, "targets": targets, "absent": ["spleen"]}
    return {"images": [entry]}


def coco_index():
    images = [{"id": i, "file_name": PICTURE, "width": 8, "height": 6} for i in (3, 4)]
    notes = [
        {"id": 1, "image_id": 3, "category_id": 1, "mask_file": LIVER, "sentences": []},
        {"id": 2, "image_id": 4, "category_id": 1, "file_name": KIDNEY, "sentences": []},
    ]
    return {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "any"}]}


@pytest.mark.parametrize("index", [plain_index(), coco_index()], ids=["plain", "coco"])
def test_both_indices_give_the_same_samples(root, index):
    write_index(root, index)
    liver, kidney = open_dataset(root)
    assert (liver.target, kidney.target) == ("liver", "left kidney")
    assert liver.instruction == "Find the liver in this image."
    assert liver.picture.pixels.shape == (6, 8, 3)
    assert liver.picture.pixels[2, 3].tolist() == [19, 19, 19]
    assert np.argwhere(liver.truth).tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert np.argwhere(kidney.truth).tolist() == [[4, 5], [4, 6], [4, 7]]
    assert (liver.modality, liver.site, liver.dataset, liver.split) == (
        "MRI-FLAIR",
        "upper abdomen",
        "SET",
        "train",
    )
    assert liver.sample_id != kidney.sample_id


def test_absent_targets_only_on_request(root):
    write_index(root, plain_index())
    assert [s.target for s in open_dataset(root)] == ["liver", "left kidney"]
    found = open_dataset(root, options=ReadOptions(instruction="Is there a {target}?"))
    [case] = found.cases
    *_, last = samples_of(case, found.options, absent=True)
    assert (last.target, last.instruction) == ("spleen", "Is there a spleen?")
    assert last.truth.shape == (6, 8)
    assert not last.truth.any()


def test_a_mask_of_another_size_is_refused(root):
    write_index(root, plain_index())
    Image.fromarray(np.ones((3, 8), np.uint8)).save(root / "SET/train_mask" / LIVER)
    with pytest.raises(InputError, match="height and width"):
        list(open_dataset(root))


def test_masks_are_read_as_cv2_reads_them(data_root):
    """The training masks, which are of one bit or of 0 and 255, against another decoder."""
    for dataset in list_datasets(data_root):
        for record in read_index(data_root, dataset, "train")[:5]:
            for target in record.targets:
                theirs = cv2.imread(str(target.path), cv2.IMREAD_GRAYSCALE) != 0
                np.testing.assert_array_equal(MaskFiles((target.path,)).read(theirs.shape), theirs)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}'])
def test_a_broken_index_is_one_named_error(root, text):
    (root / "SET/train.json").write_text(text)
    with pytest.raises(InputError):
        read_index(root, "SET", "train")


def test_names_are_parsed_from_the_right():
    assert parse_name("a_b.c_d_CT_abdomen.png") == ("a_b.c_d", "CT", "abdomen")
    assert parse_mask_name(KIDNEY) == ("case_7.v2_MRI-FLAIR_upper+abdomen", "left kidney")


def test_patients():
    assert patient_of("BTCV", "ABD-001-130_CT_abdomen.png") == "BTCV/ABD-001"
    assert patient_of("Sunnybrook", "SC-HF-I-01-IM-0001-0059_MRI_heart.png") == "Sunnybrook/SC-HF-I-01"
    assert patient_of("HC18", "146-2HC_ultrasound_fetus.jpg") == patient_of(
        "HC18", "146-HC_ultrasound_fetus.jpg"
    )
    near = {patient_of("USGRA", f"train--00{k}_ultrasound_limb.jpg") for k in (90, 91, 99)}
    assert near == {"USGRA/train--9x"}


def test_data_root_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setenv("IBISAGENT_DATA", str(tmp_path))
    assert find_data_root() == tmp_path
    with pytest.raises(InputError, match="IBISAGENT_DATA"):
        find_data_root(tmp_path / "none")


def test_real_data(data_root):
    """Counts of data/README.md; no patient on both sides; every set has validation patients."""
    samples = [
        (r, t)
        for name in list_datasets(data_root)
        for r in read_index(data_root, name, "test")
        for t in r.targets
    ]
    assert len(samples) == 703
    total = 0
    for name in list_datasets(data_root):
        records = read_index(data_root, name, "train")
        total += len(records)
        held = sum(split_of(r.patient) == "val" for r in records)
        assert 0.05 < held / len(records) < 0.30
        if name in ("BTCV", "Sunnybrook", "HC18"):
            tested = {r.patient for r in read_index(data_root, name, "test")}
            assert not tested & {r.patient for r in records}
    assert total == 2044
    first = next(iter(open_dataset(data_root / "BTCV", options=ReadOptions(split="test"))))
    assert first.truth.any()
    assert first.truth.shape == first.picture.pixels.shape[:2]
