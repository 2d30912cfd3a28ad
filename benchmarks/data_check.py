"""Plants 30 faults into a copy of a BiomedParseData corpus and asks `ibisagent data check` for them.

    python benchmarks/data_check.py DATA

Prints what is reported on the clean copy, which of the 30 are named, and what else was reported. Exit code 0
where all 30 are named and nothing else is new.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ibisagent.datasets.cases import Fault
from ibisagent.datasets.check import check
from ibisagent.datasets.detect import open_dataset


def plant(root: Path) -> dict[str, str]:
    """30 faults over the sets of `root`; what must be reported for each: a part of `where` -> kind."""
    expected: dict[str, str] = {}
    sets = sorted(folder.parent for folder in root.glob("*/train.json"))
    rng = np.random.default_rng(0)
    for number in range(30):
        folder = sets[number % len(sets)]
        index = json.loads((folder / "train.json").read_text())
        entry = index["images"][3 + number]
        picture, item = folder / "train" / entry["file_name"], entry["targets"][0]
        mask = folder / "train_mask" / item["mask_file"]
        kind = (
            "missing picture",
            "missing mask",
            "unreadable",
            "size mismatch",
            "empty mask",
            "odd label value",
            "label typo",
            "duplicate",
            "near-duplicate",
            "patient in two splits",
        )[number // 3]
        where = entry["file_name"]
        if kind == "missing picture":
            picture.unlink()
        elif kind == "missing mask":
            mask.unlink()
        elif kind == "unreadable":
            picture.write_bytes(picture.read_bytes()[:60])
        elif kind == "size mismatch":
            with Image.open(mask) as image:
                small = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
            small.save(mask)
        elif kind == "empty mask":
            with Image.open(mask) as image:
                empty = Image.new("1", image.size)
            empty.save(mask)
        elif kind == "odd label value":
            with Image.open(mask) as image:
                values = np.asarray(image).astype(np.uint8)
            rows, columns = np.nonzero(values)
            values[rows[: len(rows) // 2], columns[: len(rows) // 2]] = 7
            Image.fromarray(values).save(mask)
        elif kind == "label typo":
            where = item["target"] = item["target"][:-2] + item["target"][-1] + "q"
            (folder / "train.json").write_text(json.dumps(index))
        else:
            where = add_to_test(folder, entry, kind, rng)
        expected[where] = kind
    return expected


def add_to_test(folder: Path, entry: dict, kind: str, rng: np.random.Generator) -> str:
    """A picture of train that also stands in test: as it is, slightly changed, or another of its patient."""
    index = json.loads((folder / "test.json").read_text())
    stem, suffix = entry["file_name"].rsplit(".", 1)
    name = f"planted{len(index['images'])}-{stem}.{suffix}"
    source = folder / "train" / entry["file_name"]
    if kind == "patient in two splits":  # the name of a BTCV patient, with other pixels
        folder = folder.parent / "BTCV"
        index = json.loads((folder / "test.json").read_text())
        first = json.loads((folder / "train.json").read_text())["images"][31 * len(index["images"]) % 120]
        stem = first["file_name"].split("_CT_")[0].rsplit("-", 1)[0]
        name = f"{stem}-9{len(index['images'])}_CT_abdomen.png"
        noise = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((320, 320), Image.Resampling.BICUBIC).save(folder / "test" / name)
    elif kind == "duplicate":
        shutil.copy(source, folder / "test" / name)
    else:
        with Image.open(source) as image:
            grey = np.asarray(image.convert("RGB")).astype(int) + 5
        name = f"{name.rsplit('.', 1)[0]}.png"
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / "test" / name)
    index["images"].append({"file_name": name, "targets": [], "absent": []})
    (folder / "test.json").write_text(json.dumps(index))
    return name if kind != "near-duplicate" else entry["file_name"]


def main() -> int:
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for index in sorted(data.glob("*/train.json")):
            shutil.copytree(index.parent, root / index.parent.name)
        began = time.monotonic()
        clean = check(open_dataset(root))
        print(f"clean, {time.monotonic() - began:.0f} s: {len(clean.faults)} faults")
        for fault in clean.faults:
            print(f"clean: {fault.kind}: {fault.where}: {fault.value}")
        known = {(fault.kind, fault.where, fault.value) for fault in clean.faults}
        expected = plant(root)
        new = [
            fault
            for fault in check(open_dataset(root)).faults
            if (fault.kind, fault.where, fault.value) not in known
        ]

        def planted(fault: Fault) -> set[str]:
            text = f"{fault.where} {fault.value}"
            return {where for where, kind in expected.items() if fault.kind == kind and where in text}

        named = set().union(*map(planted, new))
        other = [fault for fault in new if not planted(fault)]
        for where in sorted(set(expected) - named):
            print(f"not named: {expected[where]}: {where}")
        for fault in other:
            print(f"not planted: {fault.kind}: {fault.where}: {fault.value}")
        print(f"{len(named)} of {len(expected)} planted faults are named, {len(other)} reports beside them")
        return 0 if len(named) == len(expected) == 30 and not other else 1


if __name__ == "__main__":
    sys.exit(main())
