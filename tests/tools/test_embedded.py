"""The packaged tool: frames, prompts, errors, equal runs, and what it does on real pictures."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.errors import InputError
from ibisagent.masks import iou
from ibisagent.synthesis.clicks import next_click
from ibisagent.tools.embedded import GRID, SIDE, EmbeddedTool, Frame
from ibisagent.types import Box, Click, Picture, Tool, ToolRequest


@pytest.fixture(scope="module")
def tool():
    return EmbeddedTool.load()


def blob(height, width, row, column, radius):
    y, x = np.mgrid[:height, :width]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def picture(seed=0, height=90, width=120, spacing=None):
    rng = np.random.default_rng(seed)
    grey = (
        60 + 120 * blob(height, width, height / 2, width / 3, height / 5) + rng.normal(0, 5, (height, width))
    )
    return Picture(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2), spacing=spacing)


def test_is_a_tool_with_text(tool):
    assert isinstance(tool, Tool)
    assert tool.prompts == {"point", "mask", "text"}
    assert len(tool.fingerprint()["weights"]) == 16


# --- frames ---


@pytest.mark.parametrize(
    ("height", "width", "spacing", "expected"),
    [
        (100, 200, None, (128, 256)),
        (200, 100, None, (256, 128)),
        (100, 100, (2.0, 1.0), (256, 128)),
        (300, 484, (1.0, 1.0), (159, 256)),
        (1, 1, None, (256, 256)),
        (2, 8000, None, (1, 256)),
    ],
)
def test_the_longest_side_in_millimetres_fills_the_frame(height, width, spacing, expected):
    frame = Frame.of(Picture(np.zeros((height, width, 3), np.uint8), spacing=spacing))
    assert (frame.height, frame.width) == expected


def test_the_frame_image_is_normalised_and_zero_outside():
    shown = picture()
    image = Frame.of(shown).image(shown)
    assert image.shape == (1, 5, SIDE, SIDE)
    inside = image[0, :3, :192]
    assert abs(inside.mean()) < 0.05
    assert 0.6 < inside.std() < 1.0
    assert (image[0, :, 192:] == 0).all()
    assert (image[0, 3, :192] == 1).all()
    assert (image[0, 4] == 0).all(), "nobody says which side is where"
    sided = replace(shown, laterality="known")
    assert (Frame.of(sided).image(sided)[0, 4] == image[0, 3]).all()


@pytest.mark.parametrize(
    ("height", "width", "spacing"), [(90, 120, None), (700, 500, None), (64, 64, (3.0, 1.0))]
)
def test_a_mask_survives_the_way_into_the_frame_and_back(height, width, spacing):
    mask = blob(height, width, height * 0.4, width * 0.6, min(height, width) / 4)
    shown = Picture(np.zeros((height, width, 3), np.uint8), spacing=spacing)
    frame = Frame.of(shown)
    assert iou(frame.mask_of(frame.logits_of(mask), shown), mask) > 0.95


@pytest.mark.parametrize(("height", "width"), [(90, 120), (256, 253), (120, 90), (64, 31)])
def test_what_is_seen_in_the_mirror_comes_back_to_its_place(height, width):
    mask = blob(height, width, height * 0.4, width * 0.3, min(height, width) / 4)
    shown = Picture(np.repeat(mask[..., None] * np.uint8(200), 3, axis=2))
    frame = Frame.of(shown)
    mirrored = Picture(np.ascontiguousarray(shown.pixels[:, ::-1]))
    assert np.array_equal(frame.image(shown, mirrored=True), frame.image(mirrored))
    back = frame.unmirrored(frame.logits_of(mask[:, ::-1]))
    assert iou(frame.mask_of(back, shown), mask) > 0.95
    if frame.width % 2 == 0:
        inside = np.s_[: (frame.height + 1) // 2, : frame.width // 2]
        assert np.array_equal(back[inside], frame.logits_of(mask)[inside])


def test_two_looks_make_proposals_that_follow_the_mirror(tool):
    """Whatever the weights: the proposal of the mirrored picture is the proposal in the mirror."""
    shown = picture(3, 100, 75)
    mirrored = Picture(np.ascontiguousarray(shown.pixels[:, ::-1]))
    differs = False
    for name, there in (("liver", "liver"), ("left kidney", "right kidney"), ("polyp", "polyp")):
        asked, swapped = ToolRequest(shown, instruction=name), ToolRequest(mirrored, instruction=there)
        here, other = tool.propose([asked])[0], tool.propose([swapped])[0]
        frame = Frame.of(shown)
        inside = np.s_[: frame.height // 2, : (frame.width + 1) // 2]
        assert np.abs(frame.unmirrored(other.low_res_logits) - here.low_res_logits)[inside].max() < 1e-4
        assert here.score == pytest.approx(other.score, abs=1e-4)
        looked_once = tool.predict([asked])[0].low_res_logits
        differs |= np.abs(looked_once - here.low_res_logits)[inside].max() > 0.1
        known = ToolRequest(replace(shown, laterality="known"), instruction=name)
        replies = tool.propose([known])[0], tool.predict([known])[0]
        assert np.array_equal(replies[0].low_res_logits, replies[1].low_res_logits), "sides are stated"
    assert differs


def test_equal_pixels_of_other_spacing_or_sides_are_other_pictures(tool):
    shown, clicks = picture(5), (Click(0.3, 0.4, True),)
    kinds = [shown, replace(shown, spacing=(1.0, 2.5)), replace(shown, laterality="known")]
    fresh = [EmbeddedTool.load().predict([ToolRequest(kind, clicks)])[0] for kind in kinds]
    for order in ([0, 1, 2], [2, 1, 0]):
        shared = EmbeddedTool.load()
        shared.set_image([kinds[i] for i in order])
        replies = shared.predict([ToolRequest(kinds[i], clicks) for i in order])
        for i, reply in zip(order, replies, strict=True):
            assert np.array_equal(reply.low_res_logits, fresh[i].low_res_logits)
    for other in fresh[1:]:
        assert not np.array_equal(fresh[0].low_res_logits, other.low_res_logits)


def test_clicks_keep_their_place_in_the_frame():
    shown = picture(height=100, width=200)
    points = Frame.of(shown).clicks((Click(0.5, 0.5, True), Click(1.0, 1.0, False)))
    assert points.tolist() == [[[0.5, 0.25, 1.0], [1.0, 0.5, -1.0]]]


# --- requests ---


def test_replies(tool):
    shown = picture()
    reply = tool.predict([ToolRequest(shown, (Click(1 / 3, 0.5, True),))])[0]
    assert reply.error is None
    assert reply.mask.shape == (90, 120)
    assert reply.mask.dtype == bool
    assert reply.low_res_logits.shape == (GRID, GRID)
    assert reply.low_res_logits.dtype == np.float32
    assert 0 <= reply.score <= 1
    assert iou(reply.mask, blob(90, 120, 45, 40, 18)) > 0.7


def test_a_reply_does_not_depend_on_the_batch_or_on_earlier_calls(tool):
    requests = [
        ToolRequest(picture(seed, 60 + 10 * seed, 90), (Click(0.3, 0.5, True), Click(0.9, 0.1, False)))
        for seed in range(4)
    ]
    together = tool.predict(requests)
    alone = [EmbeddedTool.load().predict([request])[0] for request in requests]
    again = tool.predict(requests[::-1])[::-1]
    for a, b, c in zip(together, alone, again):
        assert (a.low_res_logits == b.low_res_logits).all()
        assert (a.low_res_logits == c.low_res_logits).all()
        assert a.score == b.score == c.score


def test_the_number_of_threads_changes_nothing(tool):
    requests = [ToolRequest(picture(seed), (Click(0.3, 0.5, True),)) for seed in range(3)]
    before = torch.get_num_threads()
    replies = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        replies.append(EmbeddedTool(tool.network, "same").predict(requests))
    torch.set_num_threads(before)
    for a, b in zip(*replies, strict=True):
        assert (a.low_res_logits == b.low_res_logits).all()
        assert a.score == b.score


def test_a_picture_is_encoded_once(tool, monkeypatch):
    shown, calls = picture(11), []
    encode = tool.network.encode
    monkeypatch.setattr(tool.network, "encode", lambda image: calls.append(1) or encode(image))
    tool.set_image([shown, shown])
    for _ in range(3):
        tool.predict([ToolRequest(shown, (Click(0.5, 0.5, True),))])
    assert len(calls) == 1


def test_a_starting_mask_steers_the_answer(tool):
    shown = Picture(np.full((80, 80, 3), 90, np.uint8))
    start = blob(80, 80, 40, 40, 20)
    reply = tool.predict([ToolRequest(shown, (Click(0.5, 0.5, True),), start_mask=start)])[0]
    bare = tool.predict([ToolRequest(shown, (Click(0.5, 0.5, True),))])[0]
    assert iou(reply.mask, start) > iou(bare.mask, start)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"instruction": "Find the unicorn"},
        {"clicks": (Click(0.5, 0.5, True),), "boxes": (Box(0.1, 0.1, 0.2, 0.2),)},
        {"clicks": (Click(0.5, 0.5, True),), "low_res_logits": np.zeros((64, 64), np.float32)},
        {"start_mask": np.zeros((5, 5), bool)},
    ],
)
def test_what_cannot_be_answered_is_an_error_for_that_request_alone(tool, change):
    good = ToolRequest(picture(), (Click(0.5, 0.5, True),))
    bad, fine = tool.predict([ToolRequest(picture(), **change), good])
    assert bad.error
    assert bad.mask is None
    assert fine.error is None


def test_an_unknown_name_gives_no_proposal_and_no_error(tool):
    known, unknown, bare = tool.propose(
        [ToolRequest(picture(), instruction=text) for text in ("Find the liver", "Find the spaceship", None)]
    )
    assert known.mask is not None
    for reply in (unknown, bare):
        assert reply.mask is None
        assert reply.error is None


def test_weights_that_are_none_are_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    for path in (tmp_path / "bad.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(InputError, match="weights"):
            EmbeddedTool.load(path)


def test_weights_can_lie_elsewhere(tool, tmp_path):
    packaged = files("ibisagent") / "weights" / "embedded_tool.safetensors"
    (tmp_path / "copy.safetensors").write_bytes(packaged.read_bytes())
    assert EmbeddedTool.load(tmp_path / "copy.safetensors").fingerprint() == tool.fingerprint()


# --- real pictures ---


def test_real_pictures(tool, data_root):
    """A few test cases of every set: clicks repair, and names propose."""
    after, proposed = [], []
    for name in ("BTCV", "HC18", "HyperKvasir", "ISIC2017", "MontgomeryCXR", "Sunnybrook"):
        for k, sample in enumerate(open_dataset(data_root / name, options=ReadOptions(split="test"))):
            if k == 4:
                break
            reply = tool.propose([ToolRequest(sample.picture, instruction=sample.instruction)])[0]
            proposed.append(iou(sample.truth, reply.mask))
            mask, logits, clicks = None, None, ()
            for _ in range(5):
                click = next_click(sample.truth, mask, clicks)
                clicks += (click,)
                reply = tool.predict([ToolRequest(sample.picture, clicks, low_res_logits=logits)])[0]
                mask, logits = reply.mask, reply.low_res_logits
            after.append(iou(sample.truth, mask))
    assert np.mean(after) > 0.8
    assert np.mean(proposed) > 0.6
