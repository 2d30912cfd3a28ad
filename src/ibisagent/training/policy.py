"""Options that name the policy to be trained, and the `Trainable` that they load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError, writing_to
from ibisagent.files import read_json, write_json
from ibisagent.fingerprint import refuse_if_different

if TYPE_CHECKING:
    from ibisagent.training.trainable import Trainable

POLICY = "policy"  # folder of the trained policy in a run's folder
CARD = "training.json"  # beside it: what made it
RUN = "run.json"  # and what it was begun with


@dataclass(frozen=True)
class PolicyToTrain:
    """Which policy is trained, and which of its weights."""

    policy: str = "embedded"
    """embedded, embedded:PATH or qwen:PATH_OR_ID"""
    adapter: str | None = None
    """go on with this LoRA adapter of a qwen policy"""
    lora_rank: int = 8
    """rank of a new LoRA adapter on all linear layers of a qwen policy's language model; 0: full training"""
    freeze_vision: bool = True
    """leave the vision tower (embedded: the encoder) as it is"""
    gradient_checkpointing: bool = True
    """recompute activations of a qwen policy instead of keeping them"""
    max_new_tokens: int = 256
    """longest text of a qwen policy in a rollout"""
    max_tokens: int = 2048
    """longest conversation of a qwen policy, pictures included"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    dtype: str = "auto"
    """auto, float32 or bfloat16"""


def load_trainable(options: PolicyToTrain, temperature: float = 0.0) -> Trainable:
    """The policy with its log-probabilities. Raises InputError for one that cannot be trained."""
    kind, _, place = options.policy.partition(":")
    if kind == "embedded":
        from ibisagent.policies.embedded import EmbeddedPolicy
        from ibisagent.training.embedded import EmbeddedTrainable

        if options.adapter is not None:
            raise InputError("an adapter belongs to a qwen policy", "embedded", "leave --adapter out")
        return EmbeddedTrainable(
            EmbeddedPolicy.load(place or None, temperature=temperature), freeze_vision=options.freeze_vision
        )
    if kind == "qwen" and place:
        from ibisagent.training.qwen import QwenTrainable

        return QwenTrainable.load(
            place,
            adapter=options.adapter,
            lora_rank=options.lora_rank,
            freeze_vision=options.freeze_vision,
            gradient_checkpointing=options.gradient_checkpointing,
            max_tokens=options.max_tokens,
            max_new_tokens=options.max_new_tokens,
            device=options.device,
            dtype=options.dtype,
            temperature=temperature,
        )
    raise InputError(
        "the policy to be trained has weights here", repr(options.policy), "write embedded or qwen:PATH_OR_ID"
    )


def check_history(trainable: Trainable, history: str) -> None:
    """Raises InputError where the policy reads no earlier texts and an episode would be one example."""
    if history == "all" and not trainable.reads_history:
        raise InputError(
            "the embedded policy sees the current picture alone", "--history all", "use --history none"
        )


FREE = frozenset({"data", "out", "steps", "epochs"})  # options that a run may be continued with
FREE_OF_PARTS = frozenset({"save_every", "log_with", "device"})


def claim(out: Path, stage: str, options: Mapping[str, Any], rank: int, **facts: Any) -> None:
    """Write a run's options and `facts` to its folder, or check that those there are the same.

    Raises InputError that names each difference: a folder holds one run only, from its first checkpoint on.
    """
    kept = {name: value for name, value in options.items() if name not in FREE}
    for part in ("model", "optimisation"):
        kept[part] = {name: value for name, value in kept[part].items() if name not in FREE_OF_PARTS}
    ours = json.loads(json.dumps({"stage": stage, "options": kept, **facts}, default=str))
    file = out / RUN
    if file.exists() and any((out / "checkpoints").glob("step-*")):
        rule = "a run is continued with the options and data that it began with"
        refuse_if_different(ours, read_json(file, "put it back from a copy, or name another --out"), rule)
    elif rank == 0:
        with writing_to("--out is a folder"):
            write_json(file, ours)


def write_card(out: Path, card: dict[str, Any]) -> None:
    """Write what made the policy of a run's folder, as a whole."""
    with writing_to("--out is a folder"):
        write_json(out / CARD, card)


def card_of(policy: str) -> dict[str, Any] | None:
    """The card of a policy such as `embedded:RUN/policy` that a run of ours has written.

    Raises InputError for a damaged one.
    """
    _, _, place = policy.partition(":")
    file = Path(place).parent / CARD
    if not place or not file.is_file():
        return None
    fix = "repeat the command that trained the policy, which then only writes it anew"
    card = read_json(file, fix)
    if not isinstance(card.get("fingerprint"), dict):
        raise InputError(f"{CARD} says what its policy saw", f"{file}, which is damaged", fix)
    return card
