"""Recorded NIfTI slices against our own reader of volumes, for every axis and several orientations."""

import json

import nibabel as nib
import numpy as np
import pytest
from test_importers import text_code

from ibisagent.episodes import read_episodes
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from ibisagent.synthesis.importers import Import, run
from ibisagent.types import Click

SHAPE = (24, 30, 18)
AFFINES = {
    "canonical": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "turned": np.array([[0, 0, 2, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]),
}
CENTRE = (13, 12, 7)
AXES = ("sagittal", "coronal", "axial")


def ball(centre, radius):
    places = np.indices(SHAPE)
    return sum((place - at) ** 2 for place, at in zip(places, centre)) <= radius**2


def save(path, values, affine):
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def drawn(volume, direction, index):
    """As the reference draws a slice."""
    return np.rot90(volume.take(index, axis=direction))


def entry(direction, index, steps, pixels, window=None, **fields):
    recorded = {
        "size": list(SHAPE),
        "slice_dir": "xyz"[direction],
        "slice_idx": index,
        "slice_size": list(drawn(steps[0], direction, index).shape),
        "mask_number": 3,
        "window": window,
    }
    made = [
        {"step": n, "coords_norm": [0, 0], "coords_original": list(pixel), "mask_rle": text_code(code)}
        for n, (pixel, code) in enumerate(
            zip(pixels, (drawn(step, direction, index) for step in steps), strict=True)
        )
    ]
    return {
        "file": "/gone/image.nii.gz",
        "type": "nii",
        "mask_file": "/gone/label.nii.gz",
        "nii_data": recorded,
        "img_data": None,
        "trajectory": made,
    } | fields


def pixel_of(voxel, direction):
    """Where the reference's drawing shows a voxel: (x, y)."""
    marked = np.zeros(SHAPE, bool)
    marked[voxel] = True
    [(y, x)] = np.argwhere(drawn(marked, direction, voxel[direction]))
    return int(x), int(y)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("direction", [0, 1, 2])
def test_masks_clicks_and_picture_are_those_of_our_reader(tmp_path, name, direction):
    affine = AFFINES[name]
    rng = np.random.default_rng(direction)
    truth = ball(CENTRE, 6)
    away = tuple(at + 9 if axis == (direction + 1) % 3 else at for axis, at in enumerate(CENTRE))
    steps = [ball(CENTRE, 5) | ball(away, 2), ball(CENTRE, 6)]
    save(tmp_path / "image.nii.gz", (rng.integers(0, 200, SHAPE) + 300 * truth).astype(np.int16), affine)
    save(tmp_path / "label.nii.gz", (3 * truth + 2 * (ball(away, 3) & ~truth)).astype(np.float32), affine)
    voxels = [CENTRE, away]  # the first in the target, the second outside
    pixels = [pixel_of(voxel, direction) for voxel in voxels]
    index = CENTRE[direction]
    (tmp_path / "in.json").write_text(json.dumps(entry(direction, index, steps, pixels, [0, 400])))
    run(Import(tmp_path / "in.json", tmp_path / "log.jsonl", tmp_path, tmp_path, "liver"))
    [episode] = read_episodes(tmp_path / "log.jsonl")

    canonical, flip = nib.io_orientation(affine)[direction]
    axis = AXES[int(canonical)]
    number = SHAPE[direction] - 1 - index if flip < 0 else index

    def ours(volume):
        path = save(tmp_path / "one.nii", volume.astype(np.uint8), affine)
        return load_picture(path, axis=axis, index=number, window=(0, 1)).pixels[..., 0] > 127

    np.testing.assert_array_equal(episode.truth, ours(truth))
    for turn, step in zip(episode.turns, steps, strict=False):
        np.testing.assert_array_equal(turn.mask, ours(step))
    expected = load_picture(tmp_path / "image.nii.gz", axis=axis, index=number, window=(0, 400))
    np.testing.assert_array_equal(episode.picture.pixels, expected.pixels)
    clicks = [turn.action for turn in episode.turns if isinstance(turn.action, Click)]
    assert [click.positive for click in clicks] == [True, False] and episode.kind == "plain"
    for click, voxel in zip(clicks, voxels, strict=True):
        marked = np.zeros(SHAPE, bool)
        marked[voxel] = True
        [(row, column)] = np.argwhere(ours(marked))
        height, width = episode.truth.shape
        assert (int(click.x * width), int(click.y * height)) == (column, row)


def test_a_volume_of_another_size_and_damaged_records_are_named(tmp_path, capsys):
    truth = ball(CENTRE, 6)
    save(tmp_path / "image.nii.gz", truth.astype(np.int16), np.eye(4))
    save(tmp_path / "label.nii.gz", truth[:-1].astype(np.int16), np.eye(4))
    good = entry(2, CENTRE[2], [truth], [pixel_of(CENTRE, 2)])
    outside = good["nii_data"] | {"slice_idx": SHAPE[2]}
    entries = {
        "labels have the size": good,
        "lies in its volume": good | {"nii_data": outside},
        "clicks lie": entry(2, CENTRE[2], [truth], [(SHAPE[0], 0)], mask_file="image.nii.gz"),
    }
    for words, record in entries.items():
        (tmp_path / "in.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="something to import"):
            run(Import(tmp_path / "in.json", tmp_path / "log.jsonl", tmp_path, tmp_path, "liver"))
        assert words in capsys.readouterr().out
    for damaged in (good | {"nii_data": {"size": [1]}}, good | {"nii_data": None}, good | {"type": "dicom"}):
        (tmp_path / "in.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="trajectory"):
            run(Import(tmp_path / "in.json", tmp_path / "log.jsonl", tmp_path, tmp_path, "liver"))
    (tmp_path / "image.nii.gz").write_bytes(b"broken")
    (tmp_path / "in.json").write_text(json.dumps(good))
    with pytest.raises(InputError, match="something to import"):
        run(Import(tmp_path / "in.json", tmp_path / "log.jsonl", tmp_path, tmp_path, "liver"))
    assert (
        "or NIfTI (.nii, .nii.gz); got the volume given (.nii.gz): none of these" in capsys.readouterr().out
    )
