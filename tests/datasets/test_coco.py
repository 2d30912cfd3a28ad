"""COCO and SegAgent: polygons and run lengths, categories united, faults named."""

import json

import numpy as np
import pytest
from layouts import box, picture, save, write_json

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.check import check
from ibisagent.datasets.detect import open_dataset
from ibisagent.errors import InputError
from ibisagent.masks import encode_rle

A, B = box(2, 3, 10, 12), box(12, 20, 20, 30)
TURNS = [{"from": "gpt", "value": "<mask>m.png</mask>"}]
SQUARE = [[3, 2, 12, 2, 12, 10, 3, 10]]  # A as a polygon


def index():
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 24, "width": 32, "neg_category_ids": [8, 7]},
            {"id": 2, "file_name": "gone.png", "height": 24, "width": 32},
        ],
        "categories": [{"id": 7, "name": "left_kidney"}, {"id": 8, "name": "liver"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": SQUARE, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 7, "segmentation": encode_rle(B), "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 7, "segmentation": SQUARE},
            {"id": 4, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
        ],
    }


@pytest.mark.parametrize("layout", ["images/a.png", "train2017/a.png", "a.png"])
def test_instances_of_a_category_are_united(tmp_path, layout):
    save(tmp_path / layout, picture())
    write_json(tmp_path / "annotations/instances_train2017.json", index())
    found = open_dataset(tmp_path)
    assert found.format == "coco"
    [sample] = found
    np.testing.assert_array_equal(sample.truth, A | B)
    assert (sample.target, sample.split) == ("left kidney", "train")
    assert found.cases[0].absent == ("liver",), "a category with instances is not absent"
    assert sorted((fault.kind, fault.where) for fault in found.faults) == [
        ("index", "annotation 3"),
        ("missing mask", "annotation 4"),
        ("missing picture", "gone.png"),
    ]


def test_pictures_must_be_found(tmp_path):
    path = write_json(tmp_path / "val.json", index())
    with pytest.raises(InputError, match="must be found"):
        open_dataset(path)
    save(tmp_path / "elsewhere/a.png", picture())
    [sample] = open_dataset(path, options=ReadOptions(pictures=tmp_path / "elsewhere"))
    assert sample.split == "val"
    with pytest.raises(InputError, match="split"):
        open_dataset(path, options=ReadOptions(pictures=tmp_path / "elsewhere", split="train"))


def test_bad_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{ nothing")
    with pytest.raises(InputError, match="readable JSON"):
        open_dataset(tmp_path / "x.json")
    write_json(tmp_path / "x.json", {"images": [], "annotations": []})
    with pytest.raises(InputError, match="categories"):
        open_dataset(tmp_path / "x.json")
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(InputError, match="recognised"):
        open_dataset(tmp_path / "x.json")


def test_a_mask_of_another_size_is_refused(tmp_path):
    data = index()
    data["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": encode_rle(A.T.copy())}]
    save(tmp_path / "a.png", picture())
    with pytest.raises(InputError, match="height and width"):
        list(open_dataset(write_json(tmp_path / "x.json", data)))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/secret.png", "..\\secret.png", "C:\\secret.png", "x/../../secret.png"]
)
def test_names_that_lead_out_are_not_followed(tmp_path, name):
    save(tmp_path / "secret.png", picture(9))
    save(tmp_path / "set/a.png", picture())
    if name == "/secret.png":
        name = str(tmp_path / "secret.png")
    data = index()
    data["images"][1]["file_name"] = name
    data["annotations"][0]["image_id"] = 2
    found = open_dataset(write_json(tmp_path / "set/x.json", data))
    assert [sample.picture.pixels[0, 0].tolist() for sample in found] == [picture()[0, 0].tolist()]
    assert ("index", "image 2", f"{name} leads out of the data set", "left out") in [
        (fault.kind, fault.where, fault.value, fault.done) for fault in found.faults
    ]
    entries = [
        {"image_name": place, "gt_ann": {"caption": "liver", "segmentation": SQUARE}}
        for place in ("a.png", name)
    ]
    found = open_dataset(write_json(tmp_path / "set/y.json", {"data": entries}))
    assert [case.where for case in found.cases] == ["a.png, entry 0"]
    assert [fault.value for fault in found.faults] == [f"{name} leads out of the data set"]
    data["images"] = data["images"][1:]
    with pytest.raises(InputError, match="must be found by relative names"):
        open_dataset(write_json(tmp_path / "set/x.json", data))


def without(key, place="images"):
    data = index()
    del data[place][0][key]
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (without("file_name"), "no field 'file_name'"),
        (without("id"), "no field 'id'"),
        (without("name", "categories"), "no field 'name'"),
        (index() | {"annotations": ["x"]}, "AttributeError"),
        (index() | {"categories": [7]}, "TypeError"),
        (index() | {"annotations": [{"image_id": [1], "category_id": 7}]}, "TypeError"),
        ({"data": [{"gt_ann": {}}]}, "no field 'image_name'"),
        ({"data": [{"gt_ann": {}, "image_name": "a.png"}, 3]}, "TypeError"),
        ([{"image": "a.png", "conversations": TURNS}, {"conversations": TURNS}], "no field 'image'"),
        ([{"image": "a.png", "conversations": ["x"]}], "AttributeError"),
    ],
)
def test_missing_and_odd_fields_are_named(tmp_path, data, said):
    save(tmp_path / "a.png", picture())
    path = write_json(tmp_path / "x.json", data)
    with pytest.raises(InputError, match=r"has the fields that docs/data\.md names") as caught:
        open_dataset(path)
    assert said in str(caught.value) and caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"counts": encode_rle(B)["counts"]}, "size"),
        ({"counts": [3, 4]}, "size"),
        ({"counts": [float("inf")], "size": [24, 32]}, "whole counts"),
        ({"counts": None, "size": [24, 32]}, "COCO RLE"),
        (encode_rle(B.T.copy()), "masks of one picture have one size"),
    ],
)
def test_odd_run_lengths_are_named_and_checked(tmp_path, segmentation, said):
    save(tmp_path / "a.png", picture())
    data = index()
    data["annotations"][1]["segmentation"] = segmentation
    found = open_dataset(write_json(tmp_path / "x.json", data))
    with pytest.raises(InputError, match=said):
        list(found)
    faults = [fault for fault in check(found).faults if fault.kind == "unreadable"]
    assert [fault.where for fault in faults] == ["a.png, left kidney"]


def test_segagent(tmp_path):
    save(tmp_path / "images/a.png", picture())
    data = [
        {
            "image_name": "a.png",
            "height": 24,
            "width": 32,
            "gt_ann": {"caption": "the liver", "segmentation": SQUARE},
        },
        {
            "image_name": "a.png",
            "height": 24,
            "width": 32,
            "gt_ann": {"caption": "a vessel", "segmentation": encode_rle(B)},
        },
        {
            "image_name": "b.png",
            "height": 24,
            "width": 32,
            "gt_ann": {"caption": "x", "segmentation": SQUARE},
        },
        {"image_name": "a.png", "height": 24, "width": 32, "gt_ann": {"caption": "x", "segmentation": []}},
    ]
    (tmp_path / "train.json").write_text(json.dumps({"data": data}))
    found = open_dataset(tmp_path)
    first, second = found
    assert found.format == "segagent" and first.instruction == "Find the the liver in this image."
    np.testing.assert_array_equal(first.truth, A)
    np.testing.assert_array_equal(second.truth, B)
    assert [fault.kind for fault in found.faults] == ["missing picture", "missing mask"]
