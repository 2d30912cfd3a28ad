"""The README's first command on the abdominal MR inside pydicom, against an outline drawn by hand.

The outline was drawn for this test by looking at the picture; nothing was trained on the picture.
Beside the liver lies a round mass that may be its lesion or a diseased gallbladder: whoever drew this
cannot tell, so its pixels do not count.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ibisagent.cli import main
from ibisagent.masks import iou

MASS = (151, 134), 32  # centre and radius
LIVER = [  # x, y in pixels of the 484x300 picture
    (110.6, 82.3), (119.3, 83.7), (127.2, 90.6), (135.5, 98.2), (145.2, 102.7), (153.8, 105.8), (162.5, 108.9),
    (171.1, 114.1), (178.0, 121.7), (181.8, 134.8), (180.1, 145.9), (173.9, 153.5), (165.9, 159.0), (152.1, 165.3),
    (138.3, 169.1), (117.5, 175.6), (100.3, 181.8), (83.0, 190.1), (70.9, 194.3), (62.2, 190.8), (56.0, 178.0),
    (52.5, 161.8), (53.9, 146.9), (58.8, 129.6), (66.7, 111.3), (77.8, 96.8), (89.2, 88.5), (100.9, 84.0),
]  # fmt: skip


def outline() -> tuple[np.ndarray, np.ndarray]:
    """Which pixels are liver, and which count."""
    liver, mass = np.zeros((2, 300, 484), np.uint8)
    cv2.fillPoly(liver, [np.round(LIVER).astype(np.int32)], 1)
    cv2.circle(mass, *MASS, 1, -1)
    return liver > 0, mass == 0


def test_the_demo_finds_the_liver(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "mask.png")) > 0
    liver, counts = outline()
    assert iou(mask & counts, liver & counts) >= 0.85
    record = json.loads((tmp_path / "out" / "episode.jsonl").read_text())
    assert record["picture"]["laterality"] == "known" and record["result"]["status"] == "terminated"
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == ["mask", "overlay", "episode", "report"]
