"""SAM and MedSAM tools: equal to numbers recorded from the original, strict loading, boxes only."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_weights import seeded_picture, seeded_weights
from skimage import transform

from ibisagent.actions import click_at, coordinate_from_pixel
from ibisagent.errors import InputError, ToolError
from ibisagent.tools import sam_convert
from ibisagent.tools.point_to_box import PointToBox
from ibisagent.tools.sam import load_sam, resize_spline
from ibisagent.types import Box, Click, Picture, Tool, ToolRequest

DATA = Path(__file__).parent / "data"
HEIGHT, WIDTH = 300, 220  # of the picture in benchmarks/record_sam.py
TINY = sam_convert.ViT("vit-test", 32, 2, 2, (1,))
LAYOUTS = json.loads(gzip.decompress((DATA / "sam_layouts.json.gz").read_bytes()))
PICTURE = Picture(seeded_picture("sam", HEIGHT, WIDTH))
CORNERS = (WIDTH // 5, HEIGHT // 4, WIDTH * 3 // 4, HEIGHT * 4 // 5)
BOX = Box(*[coordinate_from_pixel(c, side) for c, side in zip(CORNERS, (WIDTH, HEIGHT) * 2)])


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch):
    monkeypatch.setattr(sam_convert, "ENCODERS", (*sam_convert.ENCODERS, TINY))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    weights = seeded_weights(LAYOUTS["tiny for tests"])
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, path)
    return str(path)


def agree(reply, case: str) -> None:
    reference = np.load(DATA / "sam_reference.npz")
    logits = reply.low_res_logits[::2, ::2]
    np.testing.assert_allclose(logits, reference[f"{case}/logits"], atol=1e-4, rtol=0)
    expected = np.unpackbits(reference[f"{case}/mask"], count=HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    assert int((reply.mask != expected).sum()) <= 1  # one pixel may lie on the threshold
    if f"{case}/iou" in reference:
        best = float(reference[f"{case}/iou"].max())
        assert reply.score == pytest.approx(min(max(best, 0), 1), abs=1e-4)


def test_sam_gives_the_originals_masks_and_scores(checkpoint):
    tool = load_sam(checkpoint, "sam", "cpu")
    first = click_at(HEIGHT * 6 // 10, WIDTH * 3 // 10, HEIGHT, WIDTH, True)
    second = click_at(HEIGHT * 2 // 10, WIDTH * 8 // 10, HEIGHT, WIDTH, False)
    alone = tool.predict([ToolRequest(PICTURE, (first,))])[0]
    agree(alone, "sam/point")
    requests = {
        "points": ToolRequest(PICTURE, (first, second)),
        "points_and_logits": ToolRequest(PICTURE, (first, second), low_res_logits=alone.low_res_logits),
        "box": ToolRequest(PICTURE, boxes=(BOX,)),
        "box_and_point": ToolRequest(PICTURE, (first,), boxes=(BOX,)),
    }
    for case, reply in zip(requests, tool.predict(list(requests.values()))):
        agree(reply, f"sam/{case}")


def test_medsam_gives_the_originals_mask_and_no_score(checkpoint):
    tool = load_sam(checkpoint, "medsam", "cpu")
    reply = tool.predict([ToolRequest(PICTURE, boxes=(BOX,))])[0]
    agree(reply, "medsam/box")
    assert reply.score is None
    again = ToolRequest(PICTURE, boxes=(BOX,), low_res_logits=reply.low_res_logits)
    assert np.array_equal(tool.predict([again])[0].mask, reply.mask)  # it was never taught to use them


def test_medsam_takes_boxes_only_and_says_what_to_do(checkpoint):
    tool = load_sam(checkpoint, "medsam", "cpu")
    assert tool.prompts == {"box"}
    with pytest.raises(ToolError, match="--point-to-box PERCENT"):
        tool.predict([ToolRequest(PICTURE, (Click(0.5, 0.5, True),))])
    clicked = PointToBox(tool, 50).predict([ToolRequest(PICTURE, (Click(0.5, 0.5, True),))])[0]
    boxed = tool.predict([ToolRequest(PICTURE, boxes=(Box(0.25, 0.25, 0.75, 0.75),))])[0]
    assert np.array_equal(clicked.mask, boxed.mask)


@pytest.mark.parametrize("shape", [(300, 220), (40, 90), (256, 256), (513, 31)])
def test_medsam_resizing_is_that_of_scikit_image(shape):
    pixels = seeded_picture("resize", *shape)
    expected = transform.resize(pixels, (256, 256), order=3, preserve_range=True, anti_aliasing=True)
    np.testing.assert_allclose(resize_spline(pixels, 256), expected, atol=1e-9)


def test_medsam_stretches_by_the_pictures_own_range(checkpoint):
    tool = load_sam(checkpoint, "medsam", "cpu")
    for low, high in ((0, 255), (10, 60), (7, 7)):
        pixels = np.full((50, 60, 3), low, np.uint8)
        pixels[10:40, 10:40] = high
        values = tool._pixel_values(Picture(pixels), tool._frame(Picture(pixels)))
        assert float(values.min()) == 0
        assert float(values.max()) == (1 if high > low else 0)


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_published_layouts_convert_with_every_weight_used(kind):
    state = {name: torch.empty(shape, device="meta") for name, shape in LAYOUTS[kind].items()}
    model = sam_convert.convert(state)
    assert sam_convert.encoder_name(model.config) == kind.replace("_", "-")
    copied_position = model.shared_image_embedding.positional_embedding.numel()
    total = sum(value.numel() for value in state.values()) + copied_position
    assert sum(value.numel() for value in model.state_dict().values()) == total
    with_constants = {**state, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    sam_convert.convert(with_constants)


def test_conversion_is_strict():
    state = {name: torch.empty(shape, device="meta") for name, shape in LAYOUTS["vit_b"].items()}
    for name in list(state)[::40]:
        with pytest.raises(InputError):
            sam_convert.convert({key: value for key, value in state.items() if key != name})
    with pytest.raises(InputError, match="1 unknown"):
        sam_convert.convert({**state, "image_encoder.adapter.weight": torch.empty(1)})
    with pytest.raises(InputError, match="one of vit-b"):
        sam_convert.convert({**state, "image_encoder.pos_embed": torch.empty(1, 64, 64, 160)})
    with pytest.raises(InputError, match="use sam2: or medsam2:"):
        sam_convert.convert({"image_encoder.trunk.pos_embed": torch.empty(1, 96, 7, 7)})


def test_a_folder_loads_as_the_same_tool(checkpoint, tmp_path):
    tool = load_sam(checkpoint, "sam", "cpu")
    tool._model.save_pretrained(tmp_path)
    other = load_sam(str(tmp_path), "sam", "cpu")
    assert other.fingerprint() == tool.fingerprint()
    request = ToolRequest(PICTURE, (Click(0.4, 0.4, True),))
    assert np.array_equal(other.predict([request])[0].mask, tool.predict([request])[0].mask)
    assert isinstance(tool, Tool)
    assert tool.name == "sam:vit-test@256"
    assert load_sam(str(tmp_path), "medsam", "cpu").name == "medsam:vit-test@256"


def test_wrong_kinds_and_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="sam or medsam"):
        load_sam(checkpoint, "sam3", "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(InputError, match="model_type must be sam; got sam2"):
        load_sam(str(tmp_path), "sam", "cpu")


def test_spacing_changes_what_sam_sees_and_is_not_confused_in_the_cache(checkpoint):
    tool = load_sam(checkpoint, "sam", "cpu")
    click = (Click(0.5, 0.5, True),)
    square = tool.predict([ToolRequest(PICTURE, click)])[0]
    stretched = tool.predict([ToolRequest(Picture(PICTURE.pixels, (3.0, 1.0)), click)])[0]
    assert len(tool._cache) == 2
    assert stretched.mask.shape == square.mask.shape == (HEIGHT, WIDTH)
    assert not np.array_equal(square.low_res_logits, stretched.low_res_logits)
