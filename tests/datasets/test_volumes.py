"""Slices are those of `load_picture` and `load_mask`, whatever the orientation of the file."""

import itertools

import numpy as np
import pytest
from layouts import save_volume

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.volumes import VolumeMask, VolumePicture, slice_count
from ibisagent.errors import InputError
from ibisagent.images import load_mask, load_picture

FLIPS = list(itertools.product((1, -1), repeat=3))
ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("number", range(12))
def test_every_slice_equals_load_picture(tmp_path, number):
    flips, order = FLIPS[number % 8], ORDERS[number % 6]
    affine = np.zeros((4, 4))
    for axis, target in enumerate(order):
        affine[target, axis] = flips[axis] * (1.0, 1.5, 2.5)[target]
    affine[3, 3] = 1
    values = np.random.default_rng(number).normal(50, 30, (5, 6, 7)).astype(np.float32)
    image = save_volume(tmp_path / "i.nii.gz", values, affine)
    labels = save_volume(tmp_path / "l.nii", (values > 60).astype(np.int16), affine)
    for axis in ("axial", "coronal", "sagittal"):
        assert slice_count(image, axis) == 5 + order.index(("sagittal", "coronal", "axial").index(axis))
        for index in (0, slice_count(image, axis) - 1):
            ours, theirs = (
                VolumePicture(image, axis, index).read(),
                load_picture(image, axis=axis, index=index),
            )
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
            assert ours.spacing == pytest.approx(theirs.spacing)
            assert (ours.laterality, ours.laterality) == (theirs.laterality, "known")
            shape = (ours.height, ours.width)
            np.testing.assert_array_equal(
                VolumeMask(labels, axis, index, (1,)).read(shape),
                load_mask(labels, shape, axis=axis, index=index),
            )


def test_no_orientation_and_a_window(tmp_path):
    import nibabel as nib

    values = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, None), tmp_path / "i.nii")
    ours = VolumePicture(tmp_path / "i.nii", "axial", 3, window=(-160, 240)).read()
    theirs = load_picture(tmp_path / "i.nii", axis="axial", index=3, window=(-160, 240))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.laterality == theirs.laterality == "assumed"


def test_damaged_volumes_are_named(tmp_path):
    path = save_volume(tmp_path / "i.nii", np.zeros((5, 6, 7), np.float32))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="whole NIfTI"):
        VolumePicture(path, "axial", 0).read()
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="whole NIfTI"):
        slice_count(path, "axial")


def test_real_pairs(data_root):
    labels = {"1": "anterior hippocampus", "2": "posterior hippocampus"}
    found = open_dataset(data_root / "volumes", options=ReadOptions(labels=labels, every=4))
    samples = list(found)
    assert len({sample.patient for sample in samples}) == 10 and found.faults == ()
    assert {sample.target for sample in samples} == set(labels.values())
