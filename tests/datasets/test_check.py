"""Planted faults are all named, and a clean set has none."""

import json
import shutil

import numpy as np
import pytest
from layouts import box, parallel, picture, save, write_json
from PIL import Image

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.check import Check, check, perceptual_hash, run
from ibisagent.datasets.detect import open_dataset
from ibisagent.errors import InputError
from ibisagent.types import Picture


def kinds(report):
    return sorted((fault.kind, fault.where) for fault in report.faults)


def scene(seed):
    """A smooth picture, as photographs are; noise has no neighbours that mean anything."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC))


def biomed(root, names):
    """SET with the named pictures per split: {split: {name: (pixels, {target: mask})}}."""
    for split, entries in names.items():
        images = []
        for name, (pixels, masks) in entries.items():
            stem = f"{name}_CT_abdomen"
            save(root / f"SET/{split}/{stem}.png", pixels)
            targets = []
            for target, mask in masks.items():
                save(root / f"SET/{split}_mask/{stem}_{target.replace(' ', '+')}.png", mask)
                targets.append({"target": target, "mask_file": f"{stem}_{target.replace(' ', '+')}.png"})
            images.append({"file_name": f"{stem}.png", "targets": targets, "absent": []})
        write_json(root / f"SET/{split}.json", {"images": images})
    return root


def mask(shape=(240, 320)):
    return box(20, 30, 90, 120, shape)


def test_a_clean_set_has_no_faults(tmp_path):
    masks = {"left kidney": mask(), "right kidney": mask(), "liver": mask()}
    names = {
        "train": {f"t{i}": (scene(i), masks) for i in range(30)},
        "test": {f"e{i}": (scene(100 + i), masks) for i in range(5)},
    }
    report = check(open_dataset(biomed(tmp_path, names)))
    assert report.faults == () and report.pictures == {"test": 5, "train": 30}
    assert report.targets == {"left kidney": 35, "right kidney": 35, "liver": 35}


def test_planted_faults_are_named(tmp_path):
    good = {"pancreas": mask()}
    train = {f"t{i}": (scene(i), good) for i in range(8)}
    train["typo"] = (scene(20), {"panreas": mask()})
    train["empty"] = (scene(21), {"pancreas": np.zeros_like(mask())})
    train["small"] = (scene(22), {"pancreas": mask((120, 160))})
    train["odd"] = (
        scene(23),
        {"pancreas": mask().astype(np.uint8) * 3 + box(0, 0, 9, 9, (240, 320)).astype(np.uint8)},
    )
    train["gone"], train["nomask"], train["broken"] = (scene(24), good), (scene(25), good), (scene(26), good)
    test = {"copy": (scene(0), good)}
    smaller = np.asarray(Image.fromarray(scene(1)).resize((300, 226), Image.Resampling.BILINEAR))
    test["near"] = (np.clip(smaller.astype(int) + 6, 0, 255).astype(np.uint8), {"pancreas": mask((226, 300))})
    biomed(tmp_path, {"train": train, "test": test})
    (tmp_path / "SET/train/gone_CT_abdomen.png").unlink()
    (tmp_path / "SET/train_mask/nomask_CT_abdomen_pancreas.png").unlink()
    (tmp_path / "SET/train/broken_CT_abdomen.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    report = check(open_dataset(tmp_path))
    assert kinds(report) == [
        ("duplicate", "SET/test/copy_CT_abdomen.png"),
        ("empty mask", "SET/train/empty_CT_abdomen.png, pancreas"),
        ("label typo", "panreas"),
        ("missing mask", "SET/train/nomask_CT_abdomen.png, pancreas"),
        ("missing picture", "SET/train/gone_CT_abdomen.png"),
        ("near-duplicate", "SET/train/t1_CT_abdomen.png"),
        ("odd label value", "SET/train/odd_CT_abdomen.png, odd_CT_abdomen_pancreas.png"),
        ("size mismatch", "SET/train/small_CT_abdomen.png, pancreas"),
        ("unreadable", "SET/train/broken_CT_abdomen.png"),
    ]
    assert report.counts()["near-duplicate"] == 1


def test_a_patient_in_two_splits(tmp_path):
    for split, value in (("train", 1), ("test", 2)):
        for index in range(3):
            patient = "p7" if index == 0 else f"{split}{index}"
            save(
                tmp_path / f"BTCV/{split}/{patient}-{value}{index}_CT_abdomen.png", scene(10 * value + index)
            )
        files = sorted(path.name for path in (tmp_path / f"BTCV/{split}").iterdir())
        write_json(
            tmp_path / f"BTCV/{split}.json",
            {"images": [{"file_name": name, "targets": [], "absent": []} for name in files]},
        )
    [fault] = check(open_dataset(tmp_path)).faults
    assert fault.kind == "patient in two splits" and "p7" in fault.where and "p7" in fault.value
    (tmp_path / "BTCV").rename(tmp_path / "USGRA")  # there only neighbouring numbers tell
    assert check(open_dataset(tmp_path)).faults == ()


def test_rare_names_like_common_ones(tmp_path):
    names = {f"t{i}": (scene(i), {"left kidney": mask(), "nucleus": mask()}) for i in range(24)}
    names["a"] = (scene(50), {"left kidny": mask(), "right kidney": mask()})
    names["b"] = (scene(51), {"nucleuss": mask()})
    faults = check(open_dataset(biomed(tmp_path, {"train": names}))).faults
    assert [(fault.where, fault.value) for fault in faults] == [
        ("left kidny", "in 1 masks; perhaps left kidney")
    ]


def test_unnamed_labels_of_folders(tmp_path):
    values = np.where(box(1, 1, 4, 4), 1, np.where(box(9, 9, 20, 20), 5, 0)).astype(np.uint8)
    save(tmp_path / "images/a.png", picture())
    save(tmp_path / "masks/a.png", values)
    [fault] = check(open_dataset(tmp_path, options=ReadOptions(labels={"1": "liver", "2": "spleen"}))).faults
    assert (fault.kind, fault.value, fault.done) == ("odd label value", "5", "read as background")


def test_unnamed_colours_of_a_palette(tmp_path):
    values = np.where(box(1, 1, 4, 4), 1, np.where(box(9, 9, 20, 20), 2, 0)).astype(np.uint8)
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    save(tmp_path / "images/a.png", picture())
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks/a.png")
    report = check(open_dataset(tmp_path, options=ReadOptions(labels={"#ff0000": "liver"})))
    assert [(fault.kind, fault.value) for fault in report.faults] == [("odd label value", "#0000ff")]
    assert report.targets == {"liver": 1}


def test_hashes_are_robust_and_apart():
    def bits(pixels):
        return np.unpackbits(perceptual_hash(Picture(np.ascontiguousarray(pixels))).view(np.uint8))

    assert perceptual_hash(Picture(np.full((50, 60, 3), 90, np.uint8))) is None
    one = scene(1)
    brighter = np.clip(one.astype(int) + 15, 0, 255).astype(np.uint8)
    half = np.asarray(Image.fromarray(one).resize((160, 120), Image.Resampling.BICUBIC))
    assert (bits(one) != bits(brighter)).sum() <= 6 and (bits(one) != bits(half)).sum() <= 6
    assert min((bits(scene(a)) != bits(scene(b))).sum() for a in range(12) for b in range(a)) > 40


def test_the_command(tmp_path, capsys):
    parallel(tmp_path / "set")
    assert run(Check(tmp_path / "set", target="lesion")) == 0
    said = capsys.readouterr().out
    assert "3 pictures" in said and "0 patients are told apart\n3 pictures have no known patient" in said
    assert run(Check(tmp_path / "set", target="lesion", patient=r"case(\d)")) == 0
    said = capsys.readouterr().out
    assert "3 patients are told apart" in said and "no known patient" not in said
    (tmp_path / "set/masks/case0.png").unlink()
    assert run(Check(tmp_path / "set", target="lesion", json=tmp_path / "report.json")) == 1
    assert "missing mask: images/case0.png" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"missing mask": 1}
    with pytest.raises(InputError, match="pairs"):
        run(Check(tmp_path / "set", labels=("1",)))


def test_real_data_with_faults_planted(data_root, tmp_path):
    """A part of the corpus: nothing is reported that is not real, and what is planted is."""
    for split in ("train", "test"):
        shutil.copytree(data_root / f"DSB2018/{split}", tmp_path / f"DSB2018/{split}")
        shutil.copytree(data_root / f"DSB2018/{split}_mask", tmp_path / f"DSB2018/{split}_mask")
        shutil.copy(data_root / f"DSB2018/{split}.json", tmp_path / f"DSB2018/{split}.json")
    clean = check(open_dataset(tmp_path))
    masks = sorted((tmp_path / "DSB2018/train_mask").iterdir())
    masks[0].unlink()
    Image.new("1", (9, 9)).save(masks[1])
    Image.new("1", Image.open(masks[2]).size).save(masks[2])
    planted = check(open_dataset(tmp_path))
    before, after = clean.counts(), planted.counts()
    new = {kind: count - before.get(kind, 0) for kind, count in after.items() if count != before.get(kind, 0)}
    assert new == {"missing mask": 1, "size mismatch": 1, "empty mask": 1}
