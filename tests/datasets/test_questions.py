"""MeCoVQA and LISA ReasonSeg: an instruction in words for every mask."""

import cv2
import numpy as np
import pytest
from layouts import box, picture, save, write_json

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.mecovqa import sa_med2d_name
from ibisagent.errors import InputError

STEM = "ct_00--AMOS2022--amos_0001--x_0020"
A, B = box(2, 3, 10, 12), box(12, 20, 20, 30)


def entry(mask, image=f"images/{STEM}.png", asked="<image>\nWhere is the liver?"):
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"Here. <SEG><mask>{mask}</mask>"}]
    return {"id": STEM, "image": image, "conversations": turns}


def test_missing_merged_masks_are_united_from_instances(tmp_path):
    save(tmp_path / f"images/{STEM}.png", picture())
    save(tmp_path / f"masks/{STEM}--0003_0000.png", A.astype(np.uint8))
    save(tmp_path / f"masks/{STEM}--0003_0001.png", B.astype(np.uint8) * 255)
    save(tmp_path / f"masks/{STEM}--0004_0000.png", np.ones_like(A))
    save(tmp_path / f"masks_merged/{STEM}--0005_merged.png", A)
    lists = [
        entry(f"masks_merged/{STEM}--0003_merged.png"),
        entry(f"masks_merged/{STEM}--0005_merged.png", asked="Segment the\n spleen <image>"),
        entry(f"masks_merged/{STEM}--0009_merged.png"),
        entry("masks/x.png", image="images/gone.png"),
        {
            "id": STEM,
            "image": f"images/{STEM}.png",
            "conversations": [{"from": "human", "value": "Which organ?"}],
        },
    ]
    found = open_dataset(write_json(tmp_path / "MeCoVQA_Grounding_test.json", lists))
    first, second = found
    assert found.format == "mecovqa"
    np.testing.assert_array_equal(first.truth, A | B)
    np.testing.assert_array_equal(second.truth, A)
    assert (first.instruction, second.instruction) == ("Where is the liver?", "Segment the spleen")
    assert (first.target, first.split, first.modality) == (None, "test", "CT")
    assert first.sample_id != second.sample_id and first.patient == second.patient
    assert [fault.kind for fault in found.faults] == ["missing mask", "missing picture"]


@pytest.mark.parametrize("lead", ["{root}/", "../", "masks/../../"])
def test_names_that_lead_out_are_not_followed(tmp_path, lead):
    for place in (f"set/images/{STEM}.png", f"{STEM}.png"):
        save(tmp_path / place, picture())
    save(tmp_path / "set/masks/a.png", A)
    save(tmp_path / "a.png", A)
    lead = lead.format(root=tmp_path)
    save(tmp_path / "masks/b_0001.png", A)
    lists = [
        entry("masks/a.png"),
        entry(f"{lead}a.png"),
        entry("masks/a.png", f"{lead}{STEM}.png"),
        entry("b_merged.png"),  # whose instances would lie beside the data set
    ]
    found = open_dataset(write_json(tmp_path / "set/x.json", lists))
    assert [case.where for case in found.cases] == [f"images/{STEM}.png, entry 0"]
    assert [(fault.kind, fault.where, fault.value) for fault in found.faults] == [
        ("index", "entry 1", f"{lead}a.png leads out of the data set"),
        ("index", "entry 2", f"{lead}{STEM}.png leads out of the data set"),
        ("missing mask", "entry 3", "b_merged.png, nor its instances"),
    ]


def test_names_of_sa_med2d():
    assert sa_med2d_name(STEM) == ("CT", "AMOS2022", "amos_0001")
    assert sa_med2d_name("images/mr_t1--BraTS--x--y_001--0001_000.png") == ("MR", "BraTS", "x")
    assert sa_med2d_name("plain.png")[1:] == ("", "")


def shape(label, points):
    return {"label": label, "points": points, "shape_type": "polygon"}


def test_lisa_draws_large_shapes_first_and_cuts_out_the_ignored(tmp_path):
    outer, hole = [[2, 2], [28, 2], [28, 20], [2, 20]], [[8, 6], [14, 6], [14, 12], [8, 12]]
    save(tmp_path / "train/a.jpg", picture())
    shapes = [shape("ignore", hole), shape("target", outer), shape("flag", outer)]
    write_json(
        tmp_path / "train/a.json",
        {"text": ["the organ left of the liver", "it filters"], "is_sentence": True, "shapes": shapes},
    )
    write_json(tmp_path / "train/b.json", {"text": ["x"], "shapes": shapes})
    save(tmp_path / "train/c.jpg", picture(1))
    write_json(tmp_path / "train/c.json", {"text": ["x"], "shapes": []})
    save(tmp_path / "train/d.jpg", picture(2))
    (tmp_path / "train/d.json").write_text("{")
    found = open_dataset(tmp_path)
    first, second = found
    expected = np.zeros((24, 32), np.uint8)
    cv2.fillPoly(expected, [np.array(outer)], 1)
    cv2.fillPoly(expected, [np.array(hole)], 0)
    assert found.format == "lisa"
    np.testing.assert_array_equal(first.truth, expected.astype(bool))
    assert (first.instruction, second.instruction) == ("the organ left of the liver", "it filters")
    assert sorted(fault.kind for fault in found.faults) == ["missing mask", "missing picture", "unreadable"]


def test_lisa_reads_the_old_encoding(tmp_path):
    save(tmp_path / "a.jpg", picture())
    text = '{"text": ["caf\xe9"], "shapes": [{"label": "target", "points": [[1, 1], [9, 1], [9, 9]]}]}'
    (tmp_path / "a.json").write_bytes(text.encode("cp1252"))
    [sample] = open_dataset(tmp_path, "lisa")
    assert sample.instruction == "café"
    with pytest.raises(InputError, match="split"):
        open_dataset(tmp_path, "lisa", ReadOptions(split="test"))
