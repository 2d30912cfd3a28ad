"""CVPR-25 npz files: slices, labels, text prompts, and a malicious file."""

import numpy as np
import pytest

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 10, 12)).astype(np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (4, 10, 12)).astype(np.uint8)
PROMPTS = {"1": ["Liver in abdominal CT", "the liver"], "2": "Spleen", "instance_label": 0}


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (eval, (f"open({self.path!r}, 'w').close()",))


def test_slices_and_text_prompts(tmp_path):
    np.savez(
        tmp_path / "CT_a_1.npz",
        imgs=IMAGES,
        gts=LABELS,
        spacing=np.array([0.8, 0.9, 2.5]),
        text_prompts=PROMPTS,
    )
    found = open_dataset(tmp_path / "CT_a_1.npz")
    samples = list(found)
    assert found.format == "npz" and len(found.cases) == 4 and len(samples) == 8
    np.testing.assert_array_equal(samples[3].truth, LABELS[1] == 2)
    np.testing.assert_array_equal(samples[3].picture.pixels[..., 0], IMAGES[1])
    assert samples[0].target == "Liver in abdominal CT" and samples[0].modality == "CT"
    assert samples[0].picture.spacing == (0.9, 0.8), "rows are y, columns x"
    named = open_dataset(tmp_path, options=ReadOptions(labels={"1": "liver"}, every=3))
    assert [sample.target for sample in named] == ["liver", "Spleen"] * 2


def test_a_colour_picture_is_not_a_volume(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=np.repeat(IMAGES[0][..., None], 3, axis=2), gts=LABELS[0])
    sample, _ = open_dataset(tmp_path / "a.npz", options=ReadOptions(labels={"1": "x", "2": "y"}))
    assert sample.picture.pixels.shape == (10, 12, 3)
    np.testing.assert_array_equal(sample.truth, LABELS[0] == 1)


def test_what_is_to_be_ignored_is_no_target(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=IMAGES, gts=LABELS)
    samples = open_dataset(tmp_path / "a.npz", options=ReadOptions(labels={"1": "liver", "2": "ignore"}))
    assert [sample.target for sample in samples] == ["liver"] * 4


def test_labels_without_names_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=IMAGES, gts=LABELS)
    with pytest.raises(InputError, match="--labels 1=NAME"):
        open_dataset(tmp_path / "a.npz")


def test_a_bad_file_in_a_folder_is_a_fault_and_code_never_runs(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", imgs=IMAGES, gts=LABELS, text_prompts=PROMPTS)
    np.savez(tmp_path / "b.npz", imgs=IMAGES, gts=LABELS, text_prompts=np.array(Touch(mark), object))
    np.savez(tmp_path / "c.npz", imgs=IMAGES, gts=LABELS[:3])
    np.savez(tmp_path / "d.npz", images=IMAGES)
    found = open_dataset(tmp_path)
    assert len(found.cases) == 4 and not mark.exists()
    assert [(fault.kind, fault.where) for fault in found.faults] == [
        ("unreadable", f"{name}.npz") for name in "bcd"
    ]
    with pytest.raises(InputError, match="plain values"):
        open_dataset(tmp_path / "b.npz")
    with pytest.raises(InputError, match="split"):
        open_dataset(tmp_path / "a.npz", options=ReadOptions(split="test"))
