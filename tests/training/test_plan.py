"""The plan's arithmetic against the released sizes and against what autograd really keeps."""

import json
from dataclasses import replace

import pytest
import torch
from policies.tiny_qwen import write_checkpoint
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ibisagent.errors import InputError
from ibisagent.training.plan import TrainPlan, run
from ibisagent.training.plan_costs import memory, rl_seconds, sft_seconds, token_bytes, trained_weights
from ibisagent.training.plan_shapes import KNOWN, Shapes, shapes_of
from ibisagent.training.qwen import LogProbs, QwenTrainable, _new_adapter

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
PUBLISHED = {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344}


@pytest.mark.parametrize(("size", "weights"), PUBLISHED.items())
def test_counts_are_those_of_the_released_weights(size, weights):
    assert shapes_of(f"Qwen/Qwen2.5-VL-{size}-Instruct").total == weights


def test_counts_of_a_local_folder_equal_those_of_its_model(tmp_path):
    folder = write_checkpoint(tmp_path / "tiny")
    shapes, trainable = shapes_of(str(folder)), QwenTrainable.load(str(folder), device="cpu", lora_rank=3)
    sizes = {name: p.numel() for name, p in trainable.module.named_parameters()}
    lora = sum(n for name, n in sizes.items() if "lora_" in name)
    assert shapes.total == sum(sizes.values()) - lora
    assert shapes.vision == sum(n for name, n in sizes.items() if ".visual." in name)
    assert shapes.lora(3, vision=False) == lora
    seeing = QwenTrainable.load(str(folder), device="cpu", lora_rank=3, freeze_vision=False)
    assert shapes.lora(3, vision=True) == sum(
        p.numel() for p in seeing.module.parameters() if p.requires_grad
    )
    trainable.policy.model.config.save_pretrained(tmp_path / "nested")  # as transformers 5 writes it
    assert shapes_of(str(tmp_path / "nested")) == shapes


def test_lora_of_rank_8_on_the_7b_model_has_the_known_size():
    assert KNOWN[SEVEN].lora(8, vision=False) == 20_185_088  # as LLaMA-Factory prints for this model


def kept(layers, full, half, checkpointing=False, tokens=96):
    """Bytes that autograd keeps for one forward pass of our module, but weights."""
    config = Qwen2_5_VLConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=400,
        image_token_id=390,
        bos_token_id=1,
        eos_token_id=2,
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model = model.to(torch.bfloat16 if half and not full else torch.float32).eval()
    if not full:
        _new_adapter(model, "x", 1, "all-linear", True, 0)
    model.model.visual.requires_grad_(False)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    module = LogProbs(model, [390], torch.bfloat16 if full and half else None)
    ids = torch.randint(0, 380, (2, tokens))
    padded = torch.ones_like(ids)
    padded[0, -3:] = 0
    written = torch.zeros_like(ids, dtype=torch.bool)
    written[:, 50:60] = True
    positions = torch.arange(tokens).expand(3, 2, tokens)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its address would be given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(
            ids,
            padded,
            torch.zeros_like(ids),
            positions,
            written,
            torch.zeros(4, 1176),
            torch.tensor([[1, 2, 2]]),
        )
    return sum(found.values())


@pytest.mark.parametrize(("full", "half"), [(True, True), (True, False), (False, True), (False, False)])
def test_what_autograd_keeps_is_what_the_plan_counts(full, half):
    tokens = 96
    layer = (kept(3, full, half) - kept(1, full, half)) / 2
    planned = 2 * tokens * token_bytes(64, 160, tokens, full, half)
    if full and half:
        planned += 2 * Shapes(64, 160, 1, 4, 2, 400, False).layer
    assert layer == pytest.approx(planned, rel=0.06)
    slim = (kept(3, full, half, checkpointing=True) - kept(1, full, half, checkpointing=True)) / 2
    assert slim == pytest.approx(2 * tokens * 64 * (2 if half and not full else 4), rel=0.02)


def test_a_plan_for_7b_adds_up():
    plan = TrainPlan(gradient_checkpointing=True)
    shapes = KNOWN[SEVEN]
    sft = memory(shapes, plan, "sft")
    assert sft["weights"] == pytest.approx(2 * 8_292_166_656 + 4 * 20_185_088)
    assert sft["moments of AdamW"] == 8 * 20_185_088
    assert sft["gradients"] == 2 * 4 * 20_185_088  # DDP keeps a second copy
    assert memory(shapes, replace(plan, gpus="1x80"), "sft")["gradients"] == 4 * 20_185_088
    full = replace(plan, lora_rank=0)
    assert trained_weights(shapes, full) == 8_292_166_656 - 676_550_144
    assert memory(shapes, full, "sft")["weights"] == 4 * 8_292_166_656
    divided = memory(shapes, replace(full, sharding="fsdp"), "sft")
    assert divided["moments of AdamW"] == 8 * 7_615_616_512 / 8
    assert 33e9 / 8 < divided["weights"] < 33e9 / 8 + 2 * 4 * shapes.layer + 1e9
    keys = memory(shapes, replace(plan, rollout_batch=64), "rl")["writing, beyond that"]
    cache = 2 * 28 * 512 * 2 * 64 * 2048  # layers, width, bytes, rows, tokens
    assert cache < keys + sft["activations"] < 4 * cache
    assert shapes.picture_tokens(262_144) == 334


def test_checkpointing_trades_memory_for_time():
    shapes, saving = KNOWN[SEVEN], TrainPlan()  # recomputes, as train sft does
    plan = replace(saving, gradient_checkpointing=False)
    assert memory(shapes, saving, "sft")["activations"] < 0.15 * memory(shapes, plan, "sft")["activations"]
    assert sft_seconds(shapes, saving) == pytest.approx(1.5 * sft_seconds(shapes, plan), rel=0.05)
    # 2 x 6.5 billion weights x 764 tokens x 2 passes and a vision tower, at 94 TFLOPS
    assert sft_seconds(shapes, plan) == pytest.approx(2 * 2 * 6.53e9 * 764 / 93.6e12 + 0.02, rel=0.1)
    writes, learns = rl_seconds(shapes, plan)
    assert writes > 2 * 4 * 100 * 0.03 and learns > 64 * sft_seconds(shapes, plan)
    assert rl_seconds(shapes, replace(plan, gpus="16x80"))[1] == pytest.approx(learns / 2)


def test_the_command_says_what_is_assumed(capsys):
    assert run(TrainPlan()) == 0
    said = capsys.readouterr().out
    for words in (
        "8.292 billion weights",
        "20.2 million trained",
        "334 tokens",
        "texts/s",
        "never measured on a GPU",
        "30 ms a decoding step",
    ):
        assert words in said
    assert run(TrainPlan(lora_rank=0, gradient_checkpointing=True, sharding="fsdp")) == 0
    assert "use verl" in capsys.readouterr().out


def test_what_cannot_fit_is_refused_with_the_change_that_makes_it_fit(capsys):
    with pytest.raises(InputError, match=r"needs 23 GB with --gradient-checkpointing$"):
        run(TrainPlan(gradient_checkpointing=False))
    with pytest.raises(
        InputError, match=r"lora-rank 8 --grad.*; SFT alone needs \d+ GB with --sharding fsdp"
    ):
        run(TrainPlan(lora_rank=0, gradient_checkpointing=False))
    with pytest.raises(InputError, match=r"take GPUs of 1[5-9][0-9] GB"):
        run(TrainPlan(model="Qwen/Qwen2.5-VL-72B-Instruct", gpus="8x24"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": "8"}, "NUMBERxGB"),
        ({"gpus": "0x80"}, "NUMBERxGB"),
        ({"micro_batch": 0}, "--micro-batch is above 0"),
        ({"utilisation": 2.0}, "at most 1"),
        ({"tflops": float("inf")}, "--tflops is above 0"),
        ({"sharding": "fsdp"}, "is for full training"),
        ({"model": "nothing"}, "a known name or a folder"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said):
        run(TrainPlan(**options))


@pytest.mark.parametrize(
    "config", ["{", "[]", {"model_type": "x"}, {"vision_config": {}, "hidden_size": "a"}]
)
def test_configs_that_cannot_be(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError, match=r"that of a Qwen2\.5-VL checkpoint"):
        shapes_of(str(tmp_path))


def test_the_command_line_takes_it(capsys):
    from ibisagent.cli import main

    assert main(["train", "plan", "--model", SEVEN, "--gpus", "8x80"]) == 0
    assert "8 x 80 GB" in capsys.readouterr().out
    assert main(["train", "plan", "--gpus", "1x8"]) == 2
    assert "a plan fits into 92%" in capsys.readouterr().err
