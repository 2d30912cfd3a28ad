import json
from pathlib import Path

import numpy as np
import pytest
from conftest import disc
from PIL import Image

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import detect_format, open_dataset
from ibisagent.errors import InputError

LEFT, RIGHT, LIVER = disc(40, 50, 20, 10, 5), disc(40, 50, 20, 40, 5), disc(40, 50, 10, 25, 6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The published layout: paths are seen from the parent, masks are 0/255 or 0/1."""
    folder = tmp_path / "data_demo"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name in ("amos_0004_75", "s0619_32", "ct_00--AMOS--case_7--x_0020"):
        Image.new("L", (50, 40), 90).save(folder / "images" / f"{name}.png")
    masks = {
        "amos_0004_75_liver_000": LIVER.astype(np.uint8) * 255,
        "s0619_32_hip_left_000": LEFT.astype(np.uint8),
        "s0619_32_hip_left_001": RIGHT.astype(np.uint8) * 255,
        "ct_00--AMOS--case_7--x_0020--0003_000": LIVER.astype(np.uint8) * 255,
        "odd": LIVER.astype(np.uint8),
    }
    for name, values in masks.items():
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    pictures = {name: f"data_demo/images/{name}.png" for name in ("amos_0004_75", "s0619_32")}
    train = {pictures["s0619_32"]: [f"data_demo/masks/s0619_32_hip_left_00{k}.png" for k in (0, 1)]}
    test = {
        "data_demo/masks/amos_0004_75_liver_000.png": pictures["amos_0004_75"],
        "data_demo/masks/odd.png": pictures["amos_0004_75"],
        "data_demo/masks/amos_0004_75_aorta_000.png": pictures["amos_0004_75"],
        "data_demo/masks/ct_00--AMOS--case_7--x_0020--0003_000.png":
            "data_demo/images/ct_00--AMOS--case_7--x_0020.png",
        "../secret_x_000.png": "../secret.png",
    }  # fmt: skip
    (folder / "image2label_train.json").write_text(json.dumps(train))
    (folder / "label2image_test.json").write_text(json.dumps(test))
    return folder


def test_both_indexes_are_read_and_instances_united(root: Path) -> None:
    assert detect_format(root) == "sam-med2d"
    [hip] = list(open_dataset(root, options=ReadOptions(split="train")))
    assert hip.target == "hip left" and np.array_equal(hip.truth, LEFT | RIGHT)
    labels = ReadOptions(split="test", labels={"3": "left kidney"})
    found = {sample.target: sample for sample in open_dataset(root, options=labels)}
    assert set(found) == {"liver", "left kidney"}
    assert np.array_equal(found["liver"].truth, LIVER) and found["liver"].dataset == "data_demo"
    kidney = found["left kidney"]
    assert (kidney.dataset, kidney.modality) == ("AMOS", "CT") and np.array_equal(kidney.truth, LIVER)
    assert not any(word in sample.sample_id for sample in found.values() for word in ("amos_0004", "case_7"))
    ignored = open_dataset(root, options=ReadOptions(split="test", labels={"3": "ignore"}))
    assert {sample.target for sample in ignored} == {"liver"}
    unnamed = open_dataset(root, options=ReadOptions(split="test"))
    assert "class 3" in {sample.target for sample in unnamed}


def test_what_is_missing_or_odd_is_a_fault(root: Path) -> None:
    found = open_dataset(root)
    assert sorted(fault.kind for fault in found.faults) == ["index", "index", "missing mask"]
    [led_out] = [fault for fault in found.faults if "leads out" in fault.value]
    assert led_out.value == "../secret.png leads out of the data set"
    assert {case.patient_known for case in found.cases if case.dataset == "AMOS"} == {True}
    assert {case.patient_known for case in found.cases if case.dataset != "AMOS"} == {False}


def test_masks_that_lead_out_are_not_followed(root: Path) -> None:
    Image.fromarray(LIVER).save(root.parent / "amos_0004_75_liver_001.png")
    index = {"../amos_0004_75_liver_001.png": "images/amos_0004_75.png"}
    (root / "label2image_test.json").write_text(json.dumps(index))
    found = open_dataset(root)
    assert {case.split for case in found.cases} == {"train"}
    assert [fault.value for fault in found.faults] == [f"{next(iter(index))} leads out of the data set"]


@pytest.mark.parametrize("index", [[1], {"a.png": 3}])
def test_an_index_of_another_kind_is_named(root: Path, index: object) -> None:
    (root / "label2image_test.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="index of SAM-Med2D"):
        open_dataset(root)
