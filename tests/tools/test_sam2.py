"""SAM 2 tools: equal to numbers recorded from the original, strict loading, batches, cache."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_weights import seeded_picture, seeded_weights
from transformers import Sam2VideoConfig, Sam2VideoModel

from ibisagent.actions import click_at, coordinate_from_pixel
from ibisagent.errors import InputError, ToolError
from ibisagent.tools import sam2_convert
from ibisagent.tools.sam2 import Sam2Tool, load_sam2
from ibisagent.types import Box, Click, Picture, Tool, ToolReply, ToolRequest

DATA = Path(__file__).parent / "data"
SHAPES = {512: (600, 700), 1024: (72, 96)}  # of the pictures in benchmarks/record_sam2.py
KEEP = {512: 4, 1024: 8}  # every how many low-resolution rows and columns it recorded
TINY = sam2_convert.Hiera("hiera-test", 16, 1, (1, 1, 2, 1), (3,), (8, 4, 14, 7), 7)
LAYOUTS = json.loads(gzip.decompress((DATA / "sam2_layouts.json.gz").read_bytes()))
POINT = (Click(0.3, 0.6, True),)


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch):
    monkeypatch.setattr(sam2_convert, "ENCODERS", (*sam2_convert.ENCODERS, TINY))


def tiny_state() -> dict[str, torch.Tensor]:
    weights = seeded_weights(LAYOUTS["tiny for tests"])
    return {name: torch.from_numpy(value) for name, value in weights.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save({"model": tiny_state()}, path)
    return str(path)


@pytest.fixture
def tool(checkpoint) -> Sam2Tool:
    return load_sam2(checkpoint, 512, "cpu")


def picture_of(size: int) -> Picture:
    return Picture(seeded_picture(f"sam2 {size}", *SHAPES[size]))


def small(name: str) -> Picture:
    return Picture(seeded_picture(name, 40, 50))


def same(a: ToolReply, b: ToolReply) -> bool:
    """Equal but for the last bits, which depend on where the weights lie in memory."""
    return bool(
        np.array_equal(a.mask, b.mask)
        and abs(a.score - b.score) < 1e-5
        and np.abs(a.low_res_logits - b.low_res_logits).max() < 1e-5
    )


# --- the original's numbers -------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 1024])
def test_same_masks_and_scores_as_the_original(checkpoint, size):
    tool = load_sam2(checkpoint, size, "cpu")
    picture, (height, width) = picture_of(size), SHAPES[size]
    first = click_at(height * 6 // 10, width * 3 // 10, height, width, True)
    second = click_at(height * 2 // 10, width * 8 // 10, height, width, False)
    corners = (width // 5, height // 4, width * 3 // 4, height * 4 // 5)
    box = Box(*[coordinate_from_pixel(c, side) for c, side in zip(corners, (width, height) * 2)])
    alone = tool.predict([ToolRequest(picture, (first,))])[0]
    requests = {
        "points": ToolRequest(picture, (first, second)),
        "points_and_logits": ToolRequest(picture, (first, second), low_res_logits=alone.low_res_logits),
        "box": ToolRequest(picture, boxes=(box,)),
        "box_and_point": ToolRequest(picture, (first,), boxes=(box,)),
    }
    replies = {"point": alone, **dict(zip(requests, tool.predict(list(requests.values()))))}
    reference = np.load(DATA / "sam2_reference.npz")
    for case, reply in replies.items():
        logits = reply.low_res_logits[:: KEEP[size], :: KEEP[size]]
        np.testing.assert_allclose(logits, reference[f"{size}/{case}/logits"], atol=1e-4, rtol=0)
        assert reply.score == pytest.approx(reference[f"{size}/{case}/iou"].max(), abs=1e-4)
        mask = reply.mask[::3, ::3]
        expected = np.unpackbits(reference[f"{size}/{case}/mask"], count=mask.size).reshape(mask.shape)
        assert int((mask != expected).sum()) <= 1  # one pixel may lie on the threshold
        assert reply.mask.shape == (height, width)
        assert reply.mask.dtype == np.bool_
        assert reply.low_res_logits.shape == (size // 4, size // 4)


def test_one_point_alone_asks_for_candidates_and_nothing_else_does(tool, monkeypatch):
    asked = []
    forward = tool._model.forward

    def spy(**options):
        asked.append(options["multimask_output"])
        return forward(**options)

    monkeypatch.setattr(tool._model, "forward", spy)
    picture = small("a")
    box = (Box(0.1, 0.1, 0.9, 0.9),)
    logits = np.zeros((128, 128), np.float32)
    start = np.ones((40, 50), bool)
    for request in (
        ToolRequest(picture, POINT),
        ToolRequest(picture, POINT * 2),
        ToolRequest(picture, POINT, boxes=box),
        ToolRequest(picture, boxes=box),
        ToolRequest(picture, POINT, low_res_logits=logits),
        ToolRequest(picture, POINT, start_mask=start),
    ):
        tool.predict([request])
    assert asked == [True, False, False, False, False, False]


# --- conversion -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("sam2")])
def test_published_layouts_convert_with_every_image_weight_used(layout):
    state = {name: torch.empty(shape, device="meta") for name, shape in LAYOUTS[layout].items()}
    model = sam2_convert.convert(state, 512)
    letter = {"t": "tiny", "s": "small", "b+": "base+", "l": "large"}[layout.split("_")[-1]]
    assert sam2_convert.encoder_name(model.config) == f"hiera-{letter}"
    image = [n for name, n in ((k, v.numel()) for k, v in state.items()) if not is_video(name)]
    copied_position = model.shared_image_embedding.positional_embedding.numel()
    assert sum(t.numel() for t in model.state_dict().values()) == sum(image) + copied_position


def is_video(name: str) -> bool:
    """Independent of the converter: by the modules that the original's image path never enters."""
    return name.split(".")[0] not in (
        "image_encoder",
        "sam_prompt_encoder",
        "sam_mask_decoder",
        "no_mem_embed",
    )


def test_video_weights_may_be_absent_but_no_image_weight():
    state = {n: torch.empty(s, device="meta") for n, s in LAYOUTS["sam2.1_hiera_t"].items()}
    image_only = {name: value for name, value in state.items() if not is_video(name)}
    sam2_convert.convert(image_only, 512)
    for name in [*list(image_only)[::40], "no_mem_embed", "sam_prompt_encoder.point_embeddings.2.weight"]:
        damaged = {key: value for key, value in state.items() if key != name}
        with pytest.raises(InputError):
            sam2_convert.convert(damaged, 512)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("sam_mask_decoder.surprise.weight", (3, 3), "1 unknown .mask_decoder.surprise.weight"),
        ("sam_mask_decoder.conv_s0.weight", (32, 255, 1, 1), "255"),
        ("image_encoder.trunk.pos_embed", (1, 80, 7, 7), "one of hiera-tiny"),
        ("image_encoder.trunk.blocks.12.attn.qkv.weight", (2304, 768), "one of hiera-tiny"),
    ],
)
def test_unknown_names_and_shapes_are_refused(name, shape, message):
    state = {n: torch.empty(s, device="meta") for n, s in LAYOUTS["sam2.1_hiera_t"].items()}
    state[name] = torch.empty(shape, device="meta")
    with pytest.raises(InputError, match=message):
        sam2_convert.convert(state, 1024)


def test_half_precision_checkpoints_become_float32(tmp_path):
    path = tmp_path / "half.pt"
    torch.save({"model": {name: value.half() for name, value in tiny_state().items()}}, path)
    tool = load_sam2(str(path), 512, "cpu")
    assert {value.dtype for value in tool._model.state_dict().values()} == {torch.float32}


# --- what a user may name ---------------------------------------------------------------------


def test_folder_and_bare_state_dict_are_the_same_tool_as_the_checkpoint(tool, tmp_path):
    tool._model.save_pretrained(tmp_path / "folder")
    torch.save(tiny_state(), tmp_path / "bare.pt")
    request = ToolRequest(small("a"), POINT)
    for path in ("folder", "bare.pt"):
        other = load_sam2(str(tmp_path / path), 512, "cpu")
        assert other.fingerprint() == tool.fingerprint()
        assert same(other.predict([request])[0], tool.predict([request])[0])
    large = load_sam2(str(tmp_path / "folder"), 1024, "cpu")
    assert large.predict([request])[0].low_res_logits.shape == (256, 256)


def test_a_folder_of_the_video_model_gives_its_image_part(tool, tmp_path):
    config = tool._model.config
    video = Sam2VideoModel(
        Sam2VideoConfig(
            vision_config=config.vision_config.to_dict(),
            prompt_encoder_config=config.prompt_encoder_config.to_dict(),
            mask_decoder_config=config.mask_decoder_config.to_dict(),
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=32,
            memory_encoder_hidden_size=32,
        )
    )
    video.load_state_dict(tool._model.state_dict(), strict=False)
    video.save_pretrained(tmp_path)
    assert load_sam2(str(tmp_path), 512, "cpu").fingerprint() == tool.fingerprint()


def test_name_and_fingerprint_say_what_runs_and_hold_no_path(checkpoint, tool):
    assert isinstance(tool, Tool)
    assert tool.name == "sam2:hiera-test@512"
    assert tool.prompts == {"point", "box", "mask"}
    medsam2 = load_sam2(checkpoint, device="cpu", kind="medsam2")
    assert medsam2.name == "medsam2:hiera-test@512"
    assert load_sam2(checkpoint, device="cpu").name == "sam2:hiera-test@1024"
    assert "tiny" not in repr(dict(tool.fingerprint()))
    assert tool.fingerprint()["dtype"] == "float32"
    assert tool.fingerprint()["weights"] == medsam2.fingerprint()["weights"]


def test_one_changed_weight_changes_the_fingerprint(tool, tmp_path):
    state = tiny_state()
    state["no_mem_embed"][0, 0, 0] += 1
    torch.save(state, tmp_path / "other.pt")
    other = load_sam2(str(tmp_path / "other.pt"), 512, "cpu")
    assert other.fingerprint()["weights"] != tool.fingerprint()["weights"]


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in the checkpoint was run')",))


def test_weights_that_cannot_be_loaded_are_named_with_a_fix(checkpoint, tmp_path):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "sam2",')
    content = Path(checkpoint).read_bytes()
    (tmp_path / "truncated.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "nothing.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("no weights here")
    torch.save({"model": tiny_state(), "epoch": RunsCode()}, tmp_path / "code.pt")
    (tmp_path / "plain pickle.pt").write_bytes(pickle.dumps({"model": RunsCode()}))
    torch.save({"model": {"weight": [1, 2, 3]}}, tmp_path / "lists.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "sam1.pt")
    for name, message in {
        "missing.pt": "missing.pt', which is none of these",
        "empty folder": "without config.json",
        "qwen": "model_type must be sam2 or sam2_video; got qwen2_5_vl",
        "broken": "config.json must be readable",
        "truncated.pt": "damaged or truncated",
        "nothing.pt": "damaged or truncated",
        "text.pt": "asks for code to be run or is no checkpoint",
        "code.pt": "asks for code to be run",
        "plain pickle.pt": "asks for code to be run",
        "lists.pt": "every entry of a state_dict is a tensor; got 'weight'",
        "list.pt": "without one",
        "sam1.pt": "use sam: or medsam:",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_sam2(str(tmp_path / name), 512, "cpu")
        assert str(tmp_path) not in str(caught.value), name


def test_incomplete_folders_are_refused(tool, tmp_path):
    tool._model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="complete"):
        load_sam2(str(tmp_path), 512, "cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="complete"):
        load_sam2(str(tmp_path), 512, "cpu")
    (tmp_path / "model.safetensors").write_bytes(weights)
    config["vision_config"]["backbone_config"]["blocks_per_stage"] = [1, 1, 3, 1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="every weight must have the shape"):
        load_sam2(str(tmp_path), 512, "cpu")
    config["vision_config"] = "nonsense"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json"):
        load_sam2(str(tmp_path), 512, "cpu")


def test_sizes_devices_and_dtypes_that_are_not_there_are_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for size, device, dtype, message in (
        (768, "cpu", "auto", "@512 or @1024"),
        (512, "cuda", "auto", "write --device auto"),
        (512, "cuda:1", "auto", "write --device auto"),
        (512, "mps", "auto", "write --device auto"),
        (512, "tpu", "auto", "auto, cpu, cuda"),
        (512, "cpu", "int8", "float32, bfloat16 or float16"),
    ):
        with pytest.raises(InputError, match=message):
            load_sam2(checkpoint, size, device, dtype)


# --- batches, cache, failures -----------------------------------------------------------------


def test_replies_do_not_depend_on_the_company_they_keep(tool, monkeypatch):
    monkeypatch.setattr(tool, "_batch", 2)  # as on a GPU: short batches are padded
    requests = [
        ToolRequest(small("a"), POINT),
        ToolRequest(small("b"), POINT),
        ToolRequest(small("a"), (*POINT, Click(0.8, 0.2, False))),
        ToolRequest(small("c"), boxes=(Box(0.2, 0.2, 0.7, 0.9),)),
        ToolRequest(small("c"), POINT, start_mask=np.eye(40, 50, dtype=bool)),
    ]
    together = tool.predict(requests)
    for request, reply in zip(requests, together):
        tool._cache.clear()
        assert same(tool.predict([request])[0], reply)


def test_a_picture_is_encoded_once_whoever_asks(tool, monkeypatch):
    encoded = []
    encode = tool._encode
    monkeypatch.setattr(tool, "_encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    a, twin, b = small("a"), Picture(seeded_picture("a", 40, 50)), small("b")
    tool.set_image([a, twin, b])
    assert len(encoded) == 2
    tool.predict([ToolRequest(a, POINT), ToolRequest(twin, POINT * 2), ToolRequest(b, POINT)])
    assert len(encoded) == 2
    assert tool._cache.nbytes == 2 * 4 * (32 * 32 * 32 + 4 * 128 * 128 + 8 * 64 * 64)


def test_a_full_cache_costs_time_and_changes_nothing(checkpoint, tool):
    forgetful = load_sam2(checkpoint, 512, "cpu", cache_bytes=0)
    request = ToolRequest(small("a"), POINT)
    assert same(forgetful.predict([request])[0], tool.predict([request])[0])
    assert len(forgetful._cache) == 0


def test_one_bad_request_spoils_no_other(tool):
    picture = small("a")
    good = ToolRequest(picture, POINT)
    bad = [
        ToolRequest(picture),
        ToolRequest(picture, (Click(1.2, 0.5, True),)),
        ToolRequest(picture, (Click(float("nan"), 0.5, True),)),
        ToolRequest(picture, boxes=(Box(0.5, 0.1, 0.5, 0.9),)),
    ]
    messages = ["needs a click or a box", "lie in [0, 1]", "lie in [0, 1]", "x1 < x2"]
    replies = tool.predict([good, *bad, good])
    assert same(replies[0], replies[-1])
    for reply, message in zip(replies[1:-1], messages):
        assert message in reply.error
        assert reply.mask is None
    for wrong in (
        ToolRequest(picture, POINT, low_res_logits=np.zeros((256, 256), np.float32)),
        ToolRequest(picture, POINT, low_res_logits=np.full((128, 128), np.nan, np.float32)),
        ToolRequest(picture, POINT, start_mask=np.zeros((50, 40), bool)),
    ):
        with pytest.raises(ToolError):
            tool.predict([wrong])
    assert tool.predict([]) == []


def test_no_text_no_proposal(tool):
    with pytest.raises(InputError, match="takes text"):
        tool.propose([ToolRequest(small("a"), instruction="Find the liver")])


def test_out_of_memory_is_a_tool_error_and_a_bug_stays_a_bug(tool, monkeypatch):
    def fail(error: BaseException):
        def encode(pixels):
            raise error

        return encode

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ):
        monkeypatch.setattr(tool, "_encode", fail(error))
        with pytest.raises(ToolError, match="ran out of memory"):
            tool.set_image([small("a")])
        with pytest.raises(ToolError, match="ran out of memory"):
            tool.predict([ToolRequest(small("a"), POINT)])
    monkeypatch.setattr(tool, "_encode", fail(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        tool.set_image([small("a")])


def test_a_start_mask_is_heard_until_there_are_logits(tool):
    picture = small("a")
    start = np.zeros((40, 50), bool)
    start[5:20, 5:30] = True
    plain = tool.predict([ToolRequest(picture, POINT * 2)])[0]
    started = tool.predict([ToolRequest(picture, POINT * 2, start_mask=start)])[0]
    assert not np.array_equal(plain.low_res_logits, started.low_res_logits)
    logits = plain.low_res_logits
    with_both = ToolRequest(picture, POINT * 2, low_res_logits=logits, start_mask=start)
    with_logits = ToolRequest(picture, POINT * 2, low_res_logits=logits)
    assert same(tool.predict([with_both])[0], tool.predict([with_logits])[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_touches_the_encoder_only(checkpoint, tool, dtype):
    half = load_sam2(checkpoint, 512, "cpu", dtype)
    assert half.fingerprint()["dtype"] == dtype
    assert half.fingerprint()["weights"] == tool.fingerprint()["weights"]
    request = ToolRequest(small("a"), POINT)
    ours, exact = half.predict([request])[0], tool.predict([request])[0]
    assert ours.low_res_logits.dtype == np.float32
    assert not same(ours, exact)
    assert float(np.abs(ours.low_res_logits - exact.low_res_logits).mean()) < 0.1
