from pathlib import Path

import numpy as np
import pytest
from small_sets import make_sets

from ibisagent.datasets.cases import Case, PictureFile, Target
from ibisagent.datasets.mask_sources import MaskFiles
from ibisagent.errors import InputError
from ibisagent.evaluation.cases import _foreign, plan, samples

NOWHERE = Path("nowhere.png")


def entry(dataset: str, site: str, targets: list[str], absent: tuple[str, ...] = ()) -> Case:
    found = tuple(Target(name, MaskFiles((NOWHERE,))) for name in targets)
    return Case(f"{dataset}/k", "", PictureFile(NOWHERE), found, dataset, "test", site=site, absent=absent)


def test_easy_absent_targets_come_from_other_parts_of_the_body() -> None:
    entries = [
        entry("CT", "abdomen", ["liver"], ("spleen",)),
        entry("XR", "chest", ["lungs"]),
        entry("Skin", "skin", ["skin lesion", "liver"]),
        entry("US", "limb", ["nerve", "blood vessel", "tendon"]),
    ]
    assert _foreign(entries) == {
        "CT": ("skin lesion", "tendon"),  # its own liver, listed anywhere, is not easy
        "XR": ("liver", "skin lesion", "tendon"),
        "Skin": ("lungs", "tendon"),
        "US": ("liver", "lungs", "skin lesion"),
    }


def test_each_picture_gets_one_easy_absent_target(tmp_path: Path) -> None:
    root = make_sets(tmp_path)
    index = root / "Other" / "test.json"
    index.write_text(index.read_text().replace('"site": "heart"', '"site": "skin"').replace("tumor", "mole"))
    for file in (root / "Other" / "test_mask").iterdir():
        file.rename(file.with_name(file.name.replace("tumor", "mole")))
    plain, easy, both = (plan(root, absent=kind) for kind in ("none", "easy", "both"))  # type: ignore[arg-type]
    count = {name: sum(len(task.targets) for task in found.tasks)
             for name, found in (("plain", plain), ("easy", easy), ("both", both))}  # fmt: skip
    assert count == {"plain": 8, "easy": 8 + 5, "both": 8 + 5 + 2}
    for task in both.tasks:
        assert (
            task.easy is not None and task.absence(task.easy) == "easy" and task.absence("spleen") == "hard"
        )
        assert task.easy == {"BTCV": "mole", "Other": "tumor"}[task.entry.dataset]
        found = {sample.target: sample.truth for sample in samples(task, both.options)}
        assert set(found) == set(task.targets) and not np.any(found[task.easy])
    again = plan(root, absent="easy", datasets=["BTCV"])
    assert [task.easy for task in again.tasks] == ["mole"] * 3, "sets that are left out still lend targets"
    assert {t for task in plan(root, without=["mole"]).tasks for t in task.targets} == {
        "left ventricle",
        "tumor",
    }


def test_one_part_of_the_body_lends_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another part of the body"):
        plan(make_sets(tmp_path), absent="easy")
