"""Slices are those of `load_picture` and `load_mask`, whatever the orientation of the file."""

import itertools

import numpy as np
import pytest
from layouts import save_volume

from ibisagent.agent import make_sample
from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.check import check
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.volumes import VolumeMask, VolumePicture
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
        count = 5 + order.index(("sagittal", "coronal", "axial").index(axis))
        for index in (0, count - 1):
            ours, theirs = (
                VolumePicture(image, axis, index).read(),
                load_picture(image, axis=axis, index=index),
            )
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
            assert ours.spacing == pytest.approx(theirs.spacing)
            assert (ours.laterality, ours.laterality) == (theirs.laterality, "known")
            shape = (ours.height, ours.width)
            np.testing.assert_array_equal(
                VolumeMask(labels, image, axis, index, (1,)).read(shape),
                load_mask(labels, shape, picture=image, axis=axis, index=index),
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
    with pytest.raises(InputError, match="NIfTI file must be whole"):
        VolumePicture(path, "axial", 0).read()
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"A picture file is .*NIfTI"):
        VolumePicture(path, "axial", 0).read()


def test_a_damaged_volume_does_not_hide_the_others(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for stem in "ab":
            save_volume(tmp_path / name / f"{stem}.nii.gz", np.ones((4, 4, 3), np.uint8))
    (tmp_path / "images" / "a.nii.gz").write_bytes(b"nothing")
    found = open_dataset(tmp_path, options=ReadOptions(target="organ"))
    assert [(fault.kind, fault.where) for fault in found.faults] == [("unreadable", "images/a.nii.gz")]
    assert len(list(found)) == 3


@pytest.mark.parametrize("trouble", ["metres", "micrometres", "flat sform", "no sizes"])
def test_odd_headers_are_read_as_by_load_picture(tmp_path, trouble):
    import nibabel as nib

    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units({"metres": "meter", "micrometres": "micron"}.get(trouble, "mm"))
    if trouble == "flat sform":
        image.set_qform(np.diag([-2.0, 3.0, 4.0, 1.0]), code=1)
        image.header["sform_code"] = 1
        for row in "xyz":
            image.header[f"srow_{row}"] = 0
    if trouble == "no sizes":
        image.header["sform_code"] = image.header["qform_code"] = 0
        image.header["pixdim"][1:4] = 0
    (tmp_path / "i.nii").write_bytes(image.header.binaryblock + bytes(4) + image.dataobj.tobytes(order="F"))
    spacings = {"metres": (3000, 2000), "micrometres": (0.003, 0.002), "flat sform": (3, 2), "no sizes": None}
    ours = VolumePicture(tmp_path / "i.nii", "axial", 3).read()
    theirs = load_picture(tmp_path / "i.nii", axis="axial", index=3)
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.laterality == theirs.laterality == ("assumed" if trouble == "no sizes" else "known")
    assert ours.spacing == theirs.spacing
    assert ours.spacing == (spacings[trouble] and pytest.approx(spacings[trouble], rel=1e-5))


def test_one_volume_of_several(tmp_path):
    values = np.random.default_rng(4).integers(0, 200, (5, 6, 7, 3)).astype(np.int16)
    save_volume(tmp_path / "four.nii.gz", values)
    for channel in range(3):
        save_volume(tmp_path / f"{channel}.nii", values[..., channel])
        ours = VolumePicture(tmp_path / "four.nii.gz", "coronal", 2, channel=channel).read()
        alone = VolumePicture(tmp_path / f"{channel}.nii", "coronal", 2).read()
        np.testing.assert_array_equal(ours.pixels, alone.pixels)


def test_every_mask_file_of_a_volume_counts(tmp_path):
    """One folder a target, several numbered files of one target, and values above 255."""
    boxes = {"liver/x": 1, "spleen/x_1": 3, "spleen/x_2": 1000}
    (tmp_path / "images").mkdir()
    save_volume(tmp_path / "images" / "x.nii.gz", np.zeros((8, 8, 2), np.int16))
    for number, (place, value) in enumerate(boxes.items()):
        mask = np.zeros((8, 8, 2), np.int16)
        mask[number * 2 : number * 2 + 2, :4] = value
        (tmp_path / "masks" / place).parent.mkdir(parents=True, exist_ok=True)
        save_volume(tmp_path / "masks" / f"{place}.nii.gz", mask)
    samples = list(open_dataset(tmp_path))
    assert [(s.target, int(s.truth.sum())) for s in samples] == [("liver", 8), ("spleen", 16)] * 2


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def pair(root, label, affine, picture_affine=LPS):
    """images/p.nii.gz of 5 x 6 x 7 voxels with labels/p.nii.gz; `affine` None: a header without one."""
    import nibabel as nib

    voxels = np.random.default_rng(2).normal(size=(5, 6, 7)).astype(np.float32)
    save_volume(root / "images/p.nii.gz", voxels, picture_affine)
    (root / "labels").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), root / "labels/p.nii.gz")
    return open_dataset(root, options=ReadOptions(labels={"1": "liver"}))


def test_a_label_without_orientation_lies_like_its_picture(tmp_path):
    label = np.zeros((5, 6, 7), bool)
    label[0, :2, 3] = True  # at the patient's left, to the front, in LPS
    found = pair(tmp_path, label, None)
    [fault] = found.faults
    assert (fault.kind, fault.where) == ("assumed orientation", "images/p.nii.gz, labels/p.nii.gz")
    [sample] = found
    expected = np.zeros((6, 5), bool)
    expected[:2, 0] = True  # image left is where x of LPS begins, image top is the front
    np.testing.assert_array_equal(sample.truth, expected)
    path = tmp_path / "labels/p.nii.gz"
    mask = load_mask(path, (6, 5), picture=tmp_path / "images/p.nii.gz", axis="axial", index=3)
    np.testing.assert_array_equal(mask, expected)
    sample = make_sample(tmp_path / "images/p.nii.gz", "Find the liver", path)
    np.testing.assert_array_equal(sample.start_mask, expected)
    with pytest.raises(InputError, match=r"states its orientation.*no usable orientation"):
        load_mask(path, (6, 5), axis="axial", index=3)
    same = pair(tmp_path, label, LPS)
    assert same.faults == () and np.array_equal(next(iter(same)).truth, expected)


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((5, 6, 4), LPS, "5 x 6 x 4 voxels, LPS, 1 x 1 x 1 mm for 5 x 6 x 7 voxels, LPS, 1 x 1 x 1 mm"),
        ((5, 6, 4), None, "5 x 6 x 4 voxels, no orientation, 1 x 1 x 1 mm for 5 x 6 x 7 voxels, LPS"),
        ((5, 6, 7), np.eye(4), "RAS, 1 x 1 x 1 mm for 5 x 6 x 7 voxels, LPS"),
        ((5, 6, 7), LPS * [[2], [1], [1], [1]], "LPS, 2 x 1 x 1 mm for 5 x 6 x 7 voxels, LPS"),
    ],
    ids=["slices", "slices, no orientation", "orientation", "spacing"],
)
def test_a_label_of_another_grid_is_a_fault_that_names_both(tmp_path, shape, affine, said):
    found = pair(tmp_path, np.ones(shape), affine)
    report = check(found)
    [fault] = report.faults
    assert (fault.kind, fault.done) == ("size mismatch", "left out") and said in fault.value
    assert report.pictures == {"train": 7} and list(found) == []
    image, label = tmp_path / "images/p.nii.gz", tmp_path / "labels/p.nii.gz"
    with pytest.raises(InputError, match="size, orientation and spacing of its picture"):
        VolumeMask(label, image, "axial", 0, None).read((6, 5))
    with pytest.raises(InputError, match="size, orientation and spacing of its picture"):
        load_mask(label, (6, 5), picture=image, axis="axial", index=0)


def test_a_set_without_a_readable_volume_is_checked_not_refused(tmp_path):
    for place in ("images/p.nii", "labels/p.nii"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(b"nothing")
    found = open_dataset(tmp_path, options=ReadOptions(target="liver"))
    assert [(fault.kind, fault.where) for fault in check(found).faults] == [("unreadable", "images/p.nii")]


def test_rounded_spacings_are_the_same_grid(tmp_path):
    found = pair(
        tmp_path, np.ones((5, 6, 7)), np.diag([-0.742, -0.742, 2, 1]), np.diag([-0.7421875, -0.7421875, 2, 1])
    )
    assert found.faults == () and len(list(found)) == 7


def test_a_target_with_one_label_file_that_does_not_fit_is_left_out_whole(tmp_path):
    save_volume(tmp_path / "images/x.nii.gz", np.zeros((8, 8, 2), np.int16))
    save_volume(tmp_path / "masks/liver/x.nii.gz", np.ones((8, 8, 2), np.int16))
    save_volume(tmp_path / "masks/spleen/x_1.nii.gz", np.ones((8, 8, 2), np.int16))
    save_volume(tmp_path / "masks/spleen/x_2.nii.gz", np.ones((8, 8, 3), np.int16))
    (tmp_path / "masks/kidney").mkdir()
    (tmp_path / "masks/kidney/x.nii.gz").write_bytes(b"nothing")
    found = open_dataset(tmp_path)
    assert {sample.target for sample in found} == {"liver"}
    assert [(fault.kind, fault.where) for fault in found.faults] == [
        ("unreadable", "images/x.nii.gz, kidney/x.nii.gz"),
        ("size mismatch", "images/x.nii.gz, spleen/x_2.nii.gz"),
    ]


def test_real_pairs(data_root):
    labels = {"1": "anterior hippocampus", "2": "posterior hippocampus"}
    found = open_dataset(data_root / "volumes", options=ReadOptions(labels=labels, every=4))
    samples = list(found)
    assert len({sample.patient for sample in samples}) == 10 and found.faults == ()
    assert {sample.target for sample in samples} == set(labels.values())


def test_a_label_stored_the_other_way_round_lies_where_its_affine_says(tmp_path):
    """The same voxels at the same places in millimetres, stored along turned axes."""
    shape, lps, ras = (5, 6, 7), np.diag([-1.0, -1.0, 2.0, 1.0]), np.diag([1.0, 1.0, 2.0, 1.0])
    lps[:2, 3], ras[:2, 3] = (10, 20), (10 - 4, 20 - 5)
    mask = np.random.default_rng(6).random(shape) > 0.5
    alike = [s.truth for s in pair(tmp_path / "alike", mask.astype(np.uint8), lps, lps)]
    found = pair(tmp_path / "turned", mask[::-1, ::-1].astype(np.uint8), ras, lps)
    assert found.faults == () and len(alike) == 7
    for ours, theirs in zip(found, alike, strict=True):
        np.testing.assert_array_equal(ours.truth, theirs)


def test_a_label_of_another_origin_is_read_voxel_by_voxel_and_says_so(tmp_path):
    moved = LPS.copy()
    moved[:3, 3] = 60, 80, 100
    found = pair(tmp_path, np.ones((5, 6, 7), np.uint8), moved)
    [fault] = found.faults
    assert fault.kind == "assumed orientation" and "origin is not the picture's" in fault.value
    assert len(list(found)) == 7


def test_blank_slices_are_samples_too(tmp_path):
    volume = np.full((8, 8, 6), -1000, np.int16)
    volume[2:5, 2:5, 3] = 60
    save_volume(tmp_path / "images/x.nii.gz", volume)
    save_volume(tmp_path / "masks/x.nii.gz", (volume > 0).astype(np.uint8))
    options = ReadOptions(target="liver", window=(-150, 250))
    found = open_dataset(tmp_path, options=options)
    assert len([s for case in found.cases for s in samples_of(case, options, absent=True)]) == 6
