"""`qwen:PATH_OR_ID`: any checkpoint in Qwen2.5-VL layout, through transformers, as a policy.

Greedy by default; sampled for RL, with every draw keyed by the observation. Read top to bottom:
which tokens may be written, how one is drawn, the policy.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
)

from ibisagent.devices import out_of_memory, pick_device, pick_dtype
from ibisagent.errors import InputError, PolicyError
from ibisagent.policies.qwen_checkpoint import (
    config_id,
    load_adapter,
    load_checkpoint,
    short_name,
    weights_id,
)
from ibisagent.policies.qwen_processor import VIEW, ImageOnlyProcessor, encode
from ibisagent.types import BASE_VERBS, Observation, PolicyReply, Support, Verb

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


# --- tokens -----------------------------------------------------------------------------------


def end_tokens(processor: ImageOnlyProcessor, stored: GenerationConfig | None) -> list[int]:
    """Ids that end a reply: those the checkpoint names, without padding where another is left."""
    tokenizer = processor.tokenizer
    named = stored.eos_token_id if stored is not None else None
    ends = {named} if isinstance(named, int) else set(named or ())
    ends |= {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")} - {None}
    return sorted(ends - {tokenizer.pad_token_id} or ends)


def banned_tokens(processor: ImageOnlyProcessor, vocabulary: int, ends: Iterable[int]) -> list[int]:
    """Ids below `vocabulary` that a reply may never hold: vision, padding, rows without a token.

    A written picture token would claim pixels that are not there and end in a crash one turn later.
    Whoever trains on sampled replies must ban the same ids.
    """
    known = processor.tokenizer.get_vocab()
    banned = {known[token] for token in VISION_TOKENS if token in known}
    banned |= set(range(vocabulary)) - set(known.values())
    return sorted((banned | {processor.tokenizer.pad_token_id}) - set(ends))


def reply_draws(seed: int, count: int) -> NDArray[np.float32]:
    """The uniform numbers (float32 `count`, in [0, 1)) behind one sampled reply, one a token."""
    return np.random.default_rng(seed).random(count, dtype=np.float32)


def draw_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """One token a row (int64 B) by inverse CDF over ids, from logits (float BxV).

    uniforms: float32 B in [0, 1). top_p keeps the smallest set of tokens whose mass reaches it
    (Holtzman et al. 2020, arXiv 1904.09751). A row's token depends on that row alone.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        kept = ordered.cumsum(-1) - ordered < top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered * kept)
    mass = probabilities.cumsum(-1)
    # u <= 1 - 2**-24 keeps the target below the total, so the token found has a mass of its own
    return torch.searchsorted(mass, (uniforms * mass[:, -1]).unsqueeze(-1), right=True).squeeze(-1)


class _Choose(LogitsProcessor):
    """Ban tokens and, when sampling, leave only the drawn one, so that greedy search takes it."""

    def __init__(
        self, banned: torch.Tensor, draws: torch.Tensor | None, start: int, temperature: float, top_p: float
    ) -> None:
        self.banned, self.draws, self.start = banned, draws, start
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Scores (float32 BxV) for the next token. Raises PolicyError where they are not finite."""
        if not torch.isfinite(scores).all():
            raise PolicyError(
                "the model's scores must be finite", "NaN or inf", "load it with another --dtype"
            )
        scores = scores.index_fill(-1, self.banned, -torch.inf)
        if self.draws is None:
            return scores
        uniforms = self.draws[:, input_ids.shape[1] - self.start]
        chosen = draw_tokens(scores, uniforms, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen.unsqueeze(-1), 0.0)


# --- the policy -------------------------------------------------------------------------------


class QwenPolicy:
    """A Qwen2.5-VL model that writes the grammar. Greedy at temperature 0, the default.

    Sampling takes its draws from `Observation.seed` and the position in the reply, so a reply does not
    depend on the batch it is in; only where two tokens tie within rounding can another batch shape
    choose differently. The checkpoint's own sampling defaults (temperature, repetition penalty) are
    replaced, on the model object. A text cut off at `max_new_tokens` is returned as it stands.
    """

    view = VIEW

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: ImageOnlyProcessor,
        *,
        name: str,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        batch_size: int = 8,
        verbs: Iterable[Verb] = BASE_VERBS,
    ) -> None:
        _check_options(temperature, top_p, max_new_tokens, batch_size)
        self.name = name
        self.verbs = frozenset(verbs)
        self.model, self.processor = model, processor
        self.temperature, self.top_p = temperature, top_p
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.autocast: torch.dtype | None = None  # set where weights are kept more finely than they compute
        self.ends = end_tokens(processor, model.generation_config)
        self.banned = banned_tokens(processor, model.config.get_text_config().vocab_size, self.ends)
        pad = processor.tokenizer.pad_token_id
        model.generation_config = GenerationConfig(eos_token_id=self.ends, pad_token_id=pad, do_sample=False)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        adapter: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        batch_size: int = 8,
        verbs: Iterable[Verb] = BASE_VERBS,
    ) -> QwenPolicy:
        """A policy from a folder or hub id, with an optional LoRA adapter (folder or hub id).

        device: auto, cpu, cuda, cuda:N or mps. dtype: auto, float32, bfloat16 or float16. verbs: those
        that the checkpoint was taught. Raises InputError for what cannot be loaded and MissingExtraError
        where an adapter is asked for without peft.
        """
        _check_options(temperature, top_p, max_new_tokens, batch_size)
        chosen = pick_device(device)
        model, processor = load_checkpoint(path, chosen, pick_dtype(dtype, chosen))
        name = f"qwen:{short_name(path)}"
        if adapter is not None:
            load_adapter(model, adapter)
            name += f"+{short_name(adapter)}"
        return cls(
            model,
            processor,
            name=name,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            verbs=verbs,
        )

    def supports(self, instruction: str) -> Support:
        """A language model takes any instruction."""
        return Support(known=True)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """One reply per observation, in order; what fails in a batch is tried again alone."""
        replies: list[PolicyReply] = []
        for start in range(0, len(observations), self.batch_size):
            replies += self._answer(observations[start : start + self.batch_size])
        return replies

    def _answer(self, batch: Sequence[Observation]) -> list[PolicyReply]:
        started = time.perf_counter()
        try:
            written = self._generate(batch)
        except PolicyError as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = "the device ran out of memory; keep less history or use a larger one"
        else:
            share = (time.perf_counter() - started) / len(batch)
            return [replace(reply, seconds=share) for reply in written]
        # outside of `except`, where the traceback would keep the failed batch's memory
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) > 1:
            return [self._answer([observation])[0] for observation in batch]
        return [PolicyReply(error=reason, seconds=time.perf_counter() - started)]

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Observation]) -> list[PolicyReply]:
        """One reply per observation. Raises PolicyError for what cannot be encoded."""
        device = self.model.device
        inputs = encode(self.processor, [observation.messages for observation in batch]).to(device)
        start = inputs["input_ids"].shape[1]
        limit = self.model.config.get_text_config().max_position_embeddings
        if start + self.max_new_tokens > limit:
            raise PolicyError(
                f"conversation and reply must fit into {limit} tokens",
                f"{start} + {self.max_new_tokens}",
                "keep less history or lower max_new_tokens",
            )
        draws = None
        if self.temperature > 0:
            rows = [reply_draws(observation.seed, self.max_new_tokens) for observation in batch]
            draws = torch.from_numpy(np.stack(rows)).to(device)
        banned = torch.tensor(self.banned, device=device)
        choose = _Choose(banned, draws, start, self.temperature, self.top_p)
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.model.generate(  # type: ignore[misc]  # how transformers annotates itself
                **inputs,
                logits_processor=LogitsProcessorList([choose]),
                max_new_tokens=self.max_new_tokens,
                use_cache=True,
            )
        return [self._decode(row) for row in output[:, start:].tolist()]

    def _decode(self, row: list[int]) -> PolicyReply:
        length = next((place for place, token in enumerate(row) if token in self.ends), len(row))
        text = self.processor.tokenizer.decode(
            row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return PolicyReply(text, tokens=length, token_ids=tuple(row[: length + 1]))

    def fingerprint(self) -> Mapping[str, Any]:
        """What the replies depend on, as JSON values: hashes of the weights as they are now, no paths."""
        weights = dict(self.model.named_parameters())
        adapter = {name: tensor for name, tensor in weights.items() if "lora_" in name}
        base = {name.replace(".base_layer.", "."): weights[name] for name in weights.keys() - adapter.keys()}
        return {
            "policy": self.name,
            "config": config_id(self.model.config.to_dict()),
            "weights": weights_id(base),
            "adapter": weights_id(adapter) if adapter else None,
            "template": hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest()[:16],
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
        }


def _check_options(temperature: float, top_p: float, max_new_tokens: int, batch_size: int) -> None:
    if temperature < 0:
        raise InputError("temperature is 0 (greedy) or above", temperature, "write 0 or for example 0.7")
    if not 0 < top_p <= 1:
        raise InputError("top_p lies in (0, 1]", top_p, "write 1 to keep every token")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is at least 1", value, "leave it out for the default")
