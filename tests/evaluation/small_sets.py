"""Two small sets in the layout of BiomedParseData, with patients, absent targets and one empty name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from conftest import disc
from PIL import Image

SECRET = "Doe-Jane-19700101"  # of a patient; must appear in no output


def write_set(root: Path, name: str, pictures: list[tuple[str, list[str], list[str]]]) -> None:
    """Pictures (stem, targets, absent) of two discs; the second target is the darker one."""
    folder = root / name
    (folder / "test").mkdir(parents=True)
    (folder / "test_mask").mkdir()
    images = []
    for index, (stem, targets, absent) in enumerate(pictures):
        masks = [disc(60, 72, 20 + index, 22, 11), disc(60, 72, 40, 50 - index, 8)]
        noise = np.random.default_rng([index, len(name)]).normal(0, 4, (60, 72))
        grey = np.clip(50 + 110 * masks[0] + 60 * masks[1] + noise, 0, 255).astype(np.uint8)
        file = f"{stem}_MRI_heart.png"
        Image.fromarray(grey).save(folder / "test" / file)
        listed = []
        for target, mask in zip(targets, masks):
            mask_file = f"{stem}_MRI_heart_{target.replace(' ', '+')}.png"
            Image.fromarray(mask).save(folder / "test_mask" / mask_file)
            listed.append({"target": target, "mask_file": mask_file})
        images.append(
            {"file_name": file, "modality": "MRI", "site": "heart", "targets": listed, "absent": absent}
        )
    (folder / "test.json").write_text(json.dumps({"images": images}))


def make_sets(root: Path) -> Path:
    """8 cases and 2 absent ones; in BTCV two pictures belong to one patient."""
    both = ["left ventricle", "tumor"]
    write_set(
        root, "BTCV", [(f"{SECRET}-1", both, []), (f"{SECRET}-2", both, []), ("p7-1", both[:1], ["tumor"])]
    )
    write_set(root, "Other", [("a", both, []), ("b", both[:1], ["tumor"])])
    return root
