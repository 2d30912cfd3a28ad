"""nnU-Net 1 and 2 and the Decathlon: labels in both directions, regions, channels, faults."""

import numpy as np
import pytest
from layouts import picture, save, save_volume, write_json

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.nnunet import label_values_by_name
from ibisagent.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 3, (6, 7, 4)).astype(np.uint8)


def decathlon(root):
    data = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
    }
    write_json(root / "dataset.json", data)
    save_volume(
        root / "imagesTr/hippocampus_001.nii.gz",
        np.random.default_rng(1).normal(size=(6, 7, 4)).astype(np.float32),
    )
    save_volume(root / "labelsTr/hippocampus_001.nii.gz", LABELS)
    return root


def test_decathlon(tmp_path):
    found = open_dataset(decathlon(tmp_path))
    assert found.format == "nnunet" and len(found.cases) == 4 and found.faults == ()
    samples = list(found)
    assert {sample.target for sample in samples} == {"Anterior", "Posterior"}
    assert {sample.modality for sample in samples} == {"MRI"}
    assert (
        sum(sample.truth.sum() for sample in samples if sample.target == "Posterior") == (LABELS == 2).sum()
    )


def test_nnunet_2_regions_and_channels(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2], "core": 2, "ignore": 3}
    write_json(
        tmp_path / "dataset.json",
        {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz"},
    )
    for channel in (0, 1):
        save_volume(
            tmp_path / f"imagesTr/c1_{channel:04d}.nii.gz", np.full((6, 7, 4), channel, np.float32) + LABELS
        )
    save_volume(tmp_path / "labelsTr/c1.nii.gz", LABELS)
    found = open_dataset(tmp_path, options=ReadOptions(channel=1))
    assert found.cases[0].modality == "FLAIR"
    whole = sum(sample.truth.sum() for sample in found if sample.target == "whole tumor")
    assert whole == (LABELS > 0).sum()
    assert found.faults == (), "both channels belong to the label"


def test_png_pairs_and_missing_halves(tmp_path):
    write_json(
        tmp_path / "dataset.json",
        {"channel_names": {"0": "R"}, "labels": {"background": 0, "road": 1}, "file_ending": ".png"},
    )
    mask = np.zeros((24, 32), np.uint8)
    mask[3:9, 4:10] = 1
    save(tmp_path / "imagesTr/a_0000.png", picture())
    save(tmp_path / "labelsTr/a.png", mask)
    save(tmp_path / "imagesTr/lonely_0000.png", picture())
    save(tmp_path / "labelsTr/orphan.png", mask)
    save(tmp_path / "imagesTs/t_0000.png", picture())  # no labelsTs: left alone
    found = open_dataset(tmp_path)
    [sample] = found
    np.testing.assert_array_equal(sample.truth, mask == 1)
    assert sorted((fault.kind, fault.where) for fault in found.faults) == [
        ("mask without picture", "labelsTr/orphan.png"),
        ("missing mask", "imagesTr/lonely_0000.png"),
    ]


def test_labels_must_be_a_mapping():
    assert label_values_by_name({"1": "a", "3": "a", "2": "b"}) == {"a": (1, 3), "b": (2,)}
    for wrong in (None, ["liver"], {"liver": "x"}):
        with pytest.raises(InputError, match="labels map"):
            label_values_by_name(wrong)
