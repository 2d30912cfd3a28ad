"""The plan's memory against the peak of a real step: python benchmarks/plan_memory.py

One SFT step (forward, backward, AdamW) of a random 6-layer model on the CPU in float32, each setting in a
process of its own; what is compared is by how much the process grew over its size with the libraries loaded.
"""

import argparse
import resource
import subprocess
import sys
from dataclasses import replace

from ibisagent.training.plan import TrainPlan
from ibisagent.training.plan_costs import memory
from ibisagent.training.plan_shapes import Shapes

SHAPES = Shapes(512, 1408, 6, 8, 2, 8000, False, 64, 128, 1)
PLAN = TrainPlan(gpus="1x80", dtype="float32", micro_batch=4, max_tokens=512)
SETTINGS = {
    "LoRA": PLAN,
    "LoRA, checkpointing": replace(PLAN, gradient_checkpointing=True),
    "full": replace(PLAN, lora_rank=0),
    "full, checkpointing": replace(PLAN, lora_rank=0, gradient_checkpointing=True),
}


def measure(plan: TrainPlan) -> float:
    """Bytes that one step adds to the process."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from ibisagent.training.qwen import LogProbs, _new_adapter

    torch.set_num_threads(1)
    (torch.randn(64, 64, requires_grad=True) @ torch.randn(64, 64)).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 512}
    config = Qwen2_5_VLConfig(
        hidden_size=SHAPES.hidden,
        intermediate_size=SHAPES.intermediate,
        num_hidden_layers=SHAPES.layers,
        num_attention_heads=SHAPES.heads,
        num_key_value_heads=SHAPES.kv_heads,
        vocab_size=SHAPES.vocabulary,
        image_token_id=7999,
        bos_token_id=1,
        eos_token_id=2,
        vision_config=vision | {"fullatt_block_indexes": [0]},
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    if plan.lora_rank:
        _new_adapter(model, "x", plan.lora_rank, "all-linear", True, 0)
    model.model.visual.requires_grad_(False)
    if plan.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    module = LogProbs(model, [7999])
    ids = torch.randint(0, 7990, (plan.micro_batch, plan.max_tokens))
    padded = torch.ones_like(ids)
    padded[0, -1] = 0
    written = torch.zeros_like(ids, dtype=torch.bool)
    written[:, -100:-1] = True
    positions = torch.arange(plan.max_tokens).expand(3, *ids.shape)
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], foreach=False)
    seen = torch.zeros(4, 1176), torch.tensor([[1, 2, 2]])
    module(ids, padded, torch.zeros_like(ids), positions, written, *seen).sum().backward()
    optimiser.step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=SETTINGS)
    one = parser.parse_args().one
    if one:
        print(measure(SETTINGS[one]))
        sys.exit()
    print(f"{'one step':22} {'planned MB':>12} {'measured MB':>12} {'planned/measured':>18}")
    for name, plan in SETTINGS.items():
        planned = sum(memory(SHAPES, plan, "sft").values())
        words = [sys.executable, __file__, "--one", name]
        found = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"{name:22} {planned / 1e6:12.0f} {found / 1e6:12.0f} {planned / found:18.2f}")
