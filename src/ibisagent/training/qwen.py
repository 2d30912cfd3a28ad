"""A Qwen2.5-VL-layout policy as something to train: in full, or as a LoRA adapter (docs/training-qwen.md).

Scores are computed at the policy's own tokens only, a few hundred at a time: with a vocabulary of
152,000 the scores of one whole conversation would take more memory than the rest of the step. Left
out: quantised weights, models over several devices, gradient scaling for float16.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from ibisagent.devices import pick_device, pick_dtype
from ibisagent.errors import InputError, MissingExtraError, install
from ibisagent.policies.qwen import QwenPolicy
from ibisagent.policies.qwen_checkpoint import (
    load_adapter,
    load_checkpoint,
    short_name,
)
from ibisagent.training.qwen_batch import Encoder, Unfit
from ibisagent.training.qwen_folder import save_plain
from ibisagent.training.trainable import Collated, Example
from ibisagent.types import BASE_VERBS, Verb

if TYPE_CHECKING:
    from peft import PeftModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"all-linear": (*ATTENTION, "gate_proj", "up_proj", "down_proj"), "attention": ATTENTION}
VISION = r"|.*\.visual\.(blocks|merger)\.(.*\.)?(qkv|proj|gate_proj|up_proj|down_proj|mlp\.[02])"
CHUNK = 256  # tokens whose scores are in memory at once: 160 MB in float32 for 152,000 words


class LogProbs(nn.Module):
    """Conversations to the log-probabilities of their trained tokens; see `Encoder.collate`."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        banned: Sequence[int],
        autocast: torch.dtype | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.temperature = temperature
        self.banned: Tensor
        self.register_buffer("banned", torch.tensor(banned, device=model.device), persistent=False)

    def train(self, mode: bool = True) -> LogProbs:
        """Always as in inference: the log-probabilities must be those that texts were sampled with."""
        super().train(False)
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mm_token_type_ids: Tensor,
        position_ids: Tensor,
        written: Tensor,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
    ) -> Tensor:
        """B x T float32; 0 where `written` (bool B x T) is False. position_ids: int64 3 x B x T."""
        seen = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        inner: Any = self.model.model
        layers = [layer for layer in self.model.modules() if getattr(layer, "gradient_checkpointing", False)]
        for layer in layers:  # the flag alone turns checkpointing on; children stay without dropout
            layer.training = torch.is_grad_enabled()
        try:
            with torch.autocast(input_ids.device.type, self.autocast, self.autocast is not None):
                pictured = bool(mm_token_type_ids.any())
                hidden = inner(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    use_cache=False,
                    **(seen if pictured else {}),
                ).last_hidden_state
                if not pictured:  # every process runs the vision tower
                    hidden = hidden + 0 * inner.get_image_features(**seen).pooler_output[0].sum()
                rows, columns = written.nonzero(as_tuple=True)
                states, tokens = hidden[rows, columns - 1], input_ids[rows, columns]
                parts = [self._score(*part) for part in zip(states.split(CHUNK), tokens.split(CHUNK))]
        finally:
            for layer in layers:
                layer.training = False
        return torch.zeros(input_ids.shape, device=hidden.device).index_put((rows, columns), torch.cat(parts))

    def _score(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (float32 N) of tokens after hidden states (N x H)."""
        if torch.is_grad_enabled():  # else the scores of all chunks would be kept for the gradient
            found: Tensor = checkpoint(self._log_softmax, states, tokens, use_reentrant=False)
            return found
        return self._log_softmax(states, tokens)

    def _log_softmax(self, states: Tensor, tokens: Tensor) -> Tensor:
        scores = self.model.lm_head(states).float().index_fill_(1, self.banned, -torch.inf)
        scores = scores.div_(self.temperature)  # in place: a copy would be 160 MB
        return scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(1)


class QwenTrainable:
    """`Trainable` of a `QwenPolicy`; policy and module share one model, so nothing is copied."""

    reads_history = True

    def __init__(
        self,
        policy: QwenPolicy,
        source: str,
        *,
        adapter: PeftModel | None = None,
        max_tokens: int = 2048,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`source`: the checkpoint's folder or hub id. `adapter`: LoRA layers in the policy's model, the only
        ones that are saved. `dtype`: in which the whole model is saved; by default its own.
        """
        self.policy = policy
        self.module = LogProbs(policy.model, policy.banned, policy.autocast, policy.temperature or 1.0)
        self._encoder = Encoder(policy.processor, policy.ends, policy.banned, max_tokens)
        self._source, self._adapter = source, adapter
        self._dtype = dtype or policy.model.dtype

    @classmethod
    def load(
        cls,
        place: str,
        *,
        adapter: str | None = None,
        lora_rank: int = 8,
        lora_targets: str = "all-linear",
        freeze_vision: bool = True,
        dtype: str = "auto",
        device: str = "auto",
        gradient_checkpointing: bool = False,
        max_tokens: int = 2048,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        batch_size: int = 8,
        verbs: Iterable[Verb] = BASE_VERBS,
        seed: int = 0,
    ) -> QwenTrainable:
        """A trainable policy from a folder or hub id.

        adapter: a LoRA adapter that is trained further; its own rank and layers count. lora_rank: of a new
        one, with alpha twice as large and no dropout, drawn from `seed`; 0 trains all weights.
        lora_targets: all-linear or attention, of the language model, and with freeze_vision off every
        linear layer of the vision tower too. dtype: in which it computes; in full training the weights
        and their moments are float32 all the same, since bfloat16 swallows small updates. Raises
        InputError, and MissingExtraError without peft where it is needed.
        """
        _check(lora_rank, lora_targets, adapter)
        chosen = pick_device(device)
        computes = pick_dtype(dtype, chosen)
        if computes == torch.float16:
            raise InputError("training runs in float32 or bfloat16", dtype, "write --dtype bfloat16")
        full = lora_rank == 0 and adapter is None
        model, processor = load_checkpoint(place, chosen, torch.float32 if full else computes)
        name = f"qwen:{short_name(place)}"
        wrapped = None
        if adapter is not None:
            wrapped = load_adapter(model, adapter, trainable=True)
            name += f"+{short_name(adapter)}"
        elif lora_rank:
            wrapped = _new_adapter(model, place, lora_rank, lora_targets, freeze_vision, seed)
            name += "+lora"
        else:
            model.requires_grad_(True)
        if freeze_vision:
            model.model.visual.requires_grad_(False)
        if gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        policy = QwenPolicy(
            model.eval(),
            processor,
            name=name,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            verbs=verbs,
        )
        policy.autocast = computes if full and computes != torch.float32 else None
        return cls(policy, place, adapter=wrapped, max_tokens=max_tokens, dtype=computes)

    def problem(self, example: Example) -> str | None:
        """Why an example cannot be trained, in a few words that group alike cases; None where it can."""
        try:
            self._encoder.encode(example)
        except Unfit as error:
            return error.problem
        return None

    def collate(self, examples: Sequence[Example]) -> Collated:
        """Tensors of a micro-batch. Raises InputError for what `problem` would have named."""
        batch = self._encoder.collate(examples)
        inner: Any = self.policy.model.model
        given = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        positions, _ = inner.get_rope_index(**{name: batch.inputs[name] for name in given})
        device = self.policy.model.device
        inputs = {name: values.to(device) for name, values in batch.inputs.items()}
        inputs["position_ids"] = positions.to(device)
        return Collated(inputs, inputs["written"], batch.weights.to(device))

    def refresh(self) -> None:
        """Nothing to do: the policy writes with the module's own weights."""

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter, or the whole checkpoint where there is none, as `qwen:` loads it.

        state: the module's gathered state where the weights are spread over processes.
        """
        gathered = None if state is None else {name.removeprefix("model."): state[name] for name in state}
        if self._adapter is None:
            save_plain(self.policy.model, self._source, folder, self._dtype, gathered)
            return
        names = (
            None if gathered is None else {f"base_model.model.{name}": gathered[name] for name in gathered}
        )
        self._adapter.save_pretrained(str(folder), state_dict=names, save_embedding_layers=False)


def _check(rank: int, targets: str, adapter: str | None) -> None:
    if rank < 0:
        raise InputError("lora_rank is 0 (train all weights) or above", rank, "the reference has 8")
    if targets not in TARGETS:
        raise InputError(f"lora_targets is one of {', '.join(TARGETS)}", repr(targets))
    if adapter is not None and rank == 0:
        raise InputError(
            "full training starts from a checkpoint without an adapter",
            adapter,
            "merge it first: ibisagent train merge CHECKPOINT ADAPTER OUT",
        )


def _new_adapter(
    model: Qwen2_5_VLForConditionalGeneration,
    place: str,
    rank: int,
    targets: str,
    freeze_vision: bool,
    seed: int,
) -> PeftModel:
    """LoRA layers (Hu et al. 2021, arXiv 2106.09685) in `model`, in place; they change nothing yet."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("--lora-rank needs peft", None, install("lora"))
    from peft import LoraConfig, PeftModel

    names = "|".join(TARGETS[targets])
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=rf".*\.language_model\..*\.({names}){'' if freeze_vision else VISION}",
        task_type="CAUSAL_LM",
        base_model_name_or_path=short_name(place),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PeftModel(model, config)
