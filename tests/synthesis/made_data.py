"""A small BiomedParseData set, and what two synthesis folders must agree in."""

import json
from pathlib import Path

import numpy as np
from conftest import disc
from PIL import Image


def make_set(root: Path, pictures: int = 6, enlarged: int = 1) -> Path:
    """A set of 48x64 pictures with one or two discs of other brightness; the third target is absent.

    `enlarged` so many times, they fill more of the embedded policy's square.
    """
    images = []
    for folder in ("train", "train_mask"):
        (root / "SET" / folder).mkdir(parents=True, exist_ok=True)
    for index in range(pictures):
        rng = np.random.default_rng(index)
        name = f"p{index}_CT_abdomen"
        masks = {"liver": disc(48, 64, *rng.uniform(14, 34, 1), 18, 9), "spleen": disc(48, 64, 24, 48, 7)}
        if index % 2:
            del masks["spleen"]
        grey = 50 + rng.normal(0, 25, (48, 64)) + sum(60 * mask for mask in masks.values())
        block = np.ones((enlarged, enlarged), np.uint8)
        pixels = np.kron(np.clip(grey, 0, 255).astype(np.uint8), block)
        Image.fromarray(pixels).save(root / f"SET/train/{name}.png")
        for target, mask in masks.items():
            Image.fromarray(np.kron(mask, block) > 0).save(root / f"SET/train_mask/{name}_{target}.png")
        targets = [{"target": target, "mask_file": f"{name}_{target}.png"} for target in masks]
        images.append({"file_name": f"{name}.png", "targets": targets, "absent": ["left kidney"]})
    (root / "SET/train.json").write_text(json.dumps({"images": images}))
    return root


def made(out: Path) -> dict[str, list]:
    """All that equal runs agree in (STYLE): every field but times and host, by file."""
    found = {}
    for path in sorted(out.glob("*.json*")):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        found[path.name] = [without_times(json.loads(line)) for line in lines]
    found["pictures"] = sorted(path.name for path in (out / "pictures").glob("*.png"))
    return found


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "tool_seconds", "host")}
    return [without_times(item) for item in value] if isinstance(value, list) else value
