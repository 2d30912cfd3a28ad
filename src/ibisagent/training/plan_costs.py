"""What memory and time a training takes, from shapes; see `training/plan.py`.

What autograd keeps for one token was counted with PyTorch's saved-tensor hooks on our own module
(tests/training/test_plan.py counts again). Times are operations over what a device is assumed to
reach. Left out: quantised weights, tensor parallelism, several machines, and the time of the tool.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from ibisagent.errors import InputError

if TYPE_CHECKING:
    from ibisagent.training.plan import TrainPlan
    from ibisagent.training.plan_shapes import Shapes

Stage = Literal["sft", "rl"]
HEAD_TOKENS = 256  # scored at once (training/qwen.py)
STEP_SECONDS = 0.03  # least time of one decoding step, which Python spends on launching kernels


def gpus(options: TrainPlan) -> tuple[int, float]:
    """Number of GPUs and GB of each. Raises InputError."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,3}(?:\.\d+)?)", options.gpus)
    if found is None:
        raise InputError("--gpus is NUMBERxGB", options.gpus, "write 8x80")
    whole = ("micro_batch", "max_tokens", "pixels", "reply", "texts", "rollouts", "turns", "rollout_batch")
    positive = (*whole, "tflops", "bandwidth", "utilisation", "epochs")
    for name in positive:
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is above 0", getattr(options, name))
    if options.lora_rank < 0 or options.prompt < 0 or options.utilisation > 1:
        raise InputError("--lora-rank and --prompt are 0 or more, --utilisation is at most 1")
    if options.sharding == "fsdp" and options.lora_rank:
        raise InputError(
            "--sharding fsdp is for full training",
            f"--lora-rank {options.lora_rank}",
            "write --lora-rank 0, or leave it out: adapter and model differ in dtype, which FSDP refuses",
        )
    return int(found[1]), float(found[2])


# --- memory -----------------------------------------------------------------------------------


def trained_weights(shapes: Shapes, options: TrainPlan) -> int:
    """How many weights move."""
    if options.lora_rank:
        return shapes.lora(options.lora_rank, vision=not options.freeze_vision)
    return shapes.language + (0 if options.freeze_vision else shapes.vision)


def memory(shapes: Shapes, options: TrainPlan, stage: Stage) -> dict[str, float]:
    """Bytes on each GPU at the fullest moment, by what they are for."""
    count, _ = gpus(options)
    full, computes = options.lora_rank == 0, 2 if options.dtype == "bfloat16" else 4
    trained = trained_weights(shapes, options)
    shared = count if options.sharding == "fsdp" else 1
    stored = shapes.total * (4 if full else computes) + (0 if full else 4 * trained)
    gathered = 2 * shapes.layer * (4 if full else computes) if shared > 1 else 0
    buckets = 4 * trained if count > 1 and shared == 1 else 0  # DDP's own copy of the gradients
    learning = _learning(shapes, options)
    keys = _writing(shapes, options) if stage == "rl" else 0.0
    held = {
        "weights": stored / shared + gathered,
        "gradients": (4 * trained + buckets) / shared,
        "moments of AdamW": 8 * trained / shared,
        "activations": learning,
        "writing, beyond that": max(0.0, keys - learning),
    }
    # FSDP divides what was loaded whole
    return held | {"loading, beyond that": max(0.0, stored - sum(held.values())) if shared > 1 else 0.0}


def _learning(shapes: Shapes, options: TrainPlan) -> float:
    """Bytes of activations of a micro-batch, and of what is made of them at once."""
    tokens = options.micro_batch * options.max_tokens
    full, half = options.lora_rank == 0, options.dtype == "bfloat16"
    layer = tokens * token_bytes(shapes.hidden, shapes.intermediate, options.max_tokens, full, half)
    if full and half:
        layer += 2 * shapes.layer  # autocast's copies of the weights
    kept = tokens * shapes.hidden * (2 if half and not full else 4)
    layers = shapes.layers * (kept if options.gradient_checkpointing else layer)
    if options.gradient_checkpointing:
        layers += layer  # the one that is computed again
    head = HEAD_TOKENS * shapes.vocabulary * 4 * 3  # scores, their gradient, one step between
    return layers + max(head, layer / 4) + _vision(shapes, options)


def token_bytes(hidden: int, intermediate: int, length: int, full: bool, half: bool) -> float:
    """Bytes that autograd keeps for one token in one decoder layer; `length`: of its padded row."""
    a_hidden, an_inner, a_place = {
        (True, True): (34, 8, 2),
        (True, False): (40, 16, 4),
        (False, True): (40, 10, 2),
        (False, False): (32, 16, 4),
    }[full, half]
    return a_hidden * hidden + an_inner * intermediate + a_place * length


def _vision(shapes: Shapes, options: TrainPlan) -> float:
    """Bytes of the vision tower, as if pictures filled the conversations but for a quarter."""
    patches = 0.75 * options.micro_batch * options.max_tokens * shapes.merge**2
    full, half = options.lora_rank == 0, options.dtype == "bfloat16"
    block = patches * token_bytes(shapes.vision_hidden, shapes.vision_intermediate, 0, full, half)
    if options.freeze_vision or options.gradient_checkpointing:
        return block / 2  # one block at a time, nothing kept
    return shapes.vision_layers * block


def _writing(shapes: Shapes, options: TrainPlan) -> float:
    """Bytes of keys and values and of a prompt's forward pass while texts are written."""
    computes = 2 if options.dtype == "bfloat16" else 4
    tokens = options.rollout_batch * options.max_tokens
    keys = 2 * shapes.layers * shapes.kv * tokens * computes
    forward = tokens * (6 * shapes.hidden + 3 * shapes.intermediate) * computes
    scores = options.rollout_batch * shapes.vocabulary * 4 * 4
    return keys + forward + scores


# --- time -------------------------------------------------------------------------------------


def sft_seconds(shapes: Shapes, options: TrainPlan) -> float:
    """Seconds of one GPU for a text."""
    return _learned(shapes, options) / (options.tflops * 1e12 * options.utilisation)


def rl_seconds(shapes: Shapes, options: TrainPlan) -> tuple[float, float]:
    """Seconds of a round that go into writing and into learning."""
    count, _ = gpus(options)
    texts = math.ceil(options.rollouts / count) * options.turns  # on one GPU
    peak = options.tflops * 1e12 * options.utilisation
    # full training keeps float32 weights: read, cast and read again for every token
    bytes_a_weight = 8 if options.lora_rank == 0 and options.dtype == "bfloat16" else 2
    if options.dtype == "float32":
        bytes_a_weight = 4
    step = max(shapes.language * bytes_a_weight / (options.bandwidth * 1e12), STEP_SECONDS)
    batches = math.ceil(math.ceil(options.rollouts / count) / options.rollout_batch) * options.turns
    writes = batches * options.reply * step + texts * _seen(shapes, options) / peak
    return writes, texts * (_learned(shapes, options) + _seen(shapes, options)) / peak


def _seen(shapes: Shapes, options: TrainPlan) -> float:
    """Floating-point operations of one forward pass over a conversation of one picture and one text."""
    return _language(shapes, options) + _tower(shapes, options)


def _learned(shapes: Shapes, options: TrainPlan) -> float:
    """Operations of forward and backward pass; frozen weights need no gradient of their own."""
    passes = (3 if options.lora_rank == 0 else 2) + options.gradient_checkpointing
    vision = 1 if options.freeze_vision else passes
    return passes * _language(shapes, options) + vision * _tower(shapes, options)


def _language(shapes: Shapes, options: TrainPlan) -> float:
    length = options.prompt + shapes.picture_tokens(options.pixels) + options.reply
    layers = shapes.layers * length * (2 * shapes.layer + 2 * length * shapes.hidden)  # causal attention
    return float(layers + 2 * options.reply * shapes.embeddings)


def _tower(shapes: Shapes, options: TrainPlan) -> float:
    return 2.0 * shapes.vision * shapes.picture_tokens(options.pixels) * shapes.merge**2
