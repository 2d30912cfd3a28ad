"""Conversations as tensors for Qwen2.5-VL: which token stands where, and which ones are trained.

A text that is trained is encoded apart from what is around it, or its sampled ids are spliced in; so
what is trained is what was written, never a second tokenisation of it. Everything that a policy
reads is encoded as `policies/qwen_processor.py` does. Sequences are padded on the right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ibisagent.errors import InputError, PolicyError
from ibisagent.policies.qwen_processor import ImageOnlyProcessor, fit_picture, prompt_text
from ibisagent.training.trainable import Collated, Example, Written
from ibisagent.types import Message, Pixels

MARK = "\uf8e0\uf8e1"  # private-use characters: where a trained text is put in


class Unfit(InputError):
    """An example that cannot be trained; `problem` groups alike cases."""

    def __init__(self, problem: str, rule: str, value: object = None, fix: str | None = None) -> None:
        super().__init__(rule, value, fix)
        self.problem = problem


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens; all lists have its length."""

    ids: list[int]
    trained: list[bool]  # tokens of texts that are trained, end token included
    weights: list[float]  # `Written.weight` of the text that a token belongs to; 0 elsewhere
    pictures: tuple[Pixels, ...]  # in the order of their places, fitted to the image processor


class Encoder:
    """From examples to `Encoded` and to tensors. Holds no weights."""

    def __init__(
        self, processor: ImageOnlyProcessor, ends: Sequence[int], banned: Collection[int], max_tokens: int
    ) -> None:
        if max_tokens < 1:
            raise InputError("max_tokens is at least 1", max_tokens, "the reference has 2048")
        self.processor, self.ends = processor, frozenset(ends)
        self.banned, self.max_tokens = frozenset(banned), max_tokens
        images: Any = processor.image_processor
        self._merge = int(images.merge_size)
        self._factor = int(images.patch_size) * self._merge
        tokenizer = processor.tokenizer
        im_end = tokenizer.get_vocab().get("<|im_end|>")
        self._end = im_end if im_end in self.ends else min(self.ends)
        self._picture = int(tokenizer.convert_tokens_to_ids(processor.image_token))

    # --- one example ------------------------------------------------------------------------------

    def encode(self, example: Example) -> Encoded:
        """Raises Unfit for what cannot be trained, before any picture is preprocessed."""
        messages, spliced = self._marked(example)
        pictures = tuple(
            fit_picture(pixels, self._factor) for message in messages for pixels in message.images
        )
        parts = self._parts(messages, [self._places(pixels) for pixels in pictures], len(spliced))
        ids = self._ids(parts[0])
        trained, weights = [False] * len(ids), [0.0] * len(ids)
        for written, part in zip(spliced, parts[1:], strict=True):
            own = self._written(written)
            if own[-1] in self.ends:  # the template closes the text with the same token
                closing = self.processor.tokenizer.convert_ids_to_tokens(own[-1])
                part = part.removeprefix(closing)
            after = self._ids(part)
            learned = written.weight is not None
            ids += own + after
            trained += [learned] * len(own) + [False] * len(after)
            weights += [written.weight or 0.0] * len(own) + [0.0] * len(after)
        self._check(example, ids, pictures)
        return Encoded(ids, trained, weights, pictures)

    def _marked(self, example: Example) -> tuple[list[Message], list[Written]]:
        """The conversation with a mark for each text that is put in, and these texts."""
        messages = list(example.observation.messages)
        places = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if len(places) != len(example.texts) - 1:
            raise Unfit(
                "texts that do not belong to the conversation",
                "an example has a text for each assistant message and one for the reply",
                f"{len(example.texts)} texts for {len(places)} messages",
            )
        if any(MARK in message.text for message in messages):
            raise Unfit("private-use characters", "texts hold no U+F8E0 U+F8E1", None, "take them out")
        spliced = []
        for place, written in zip(places, example.texts[:-1], strict=True):
            if written.token_ids is None and written.text != messages[place].text:
                raise Unfit(
                    "texts that do not belong to the conversation",
                    "an earlier text is that of its assistant message",
                    repr(written.text[:40]),
                )
            if written.token_ids is not None or written.weight is not None:
                messages[place] = replace(messages[place], text=MARK)
                spliced.append(written)
        return messages, [*spliced, example.texts[-1]]

    def _parts(self, messages: Sequence[Message], places: Sequence[int], texts: int) -> list[str]:
        """What stands before, between and after the texts, with one marker for each picture token."""
        try:
            prompt = prompt_text(self.processor, messages)
        except PolicyError as error:
            raise Unfit("a chat template that does not fit", error.rule, error.value, error.fix) from error
        marker = self.processor.image_token
        around = prompt.split(marker)
        prompt = around[0] + "".join(
            marker * count + text for count, text in zip(places, around[1:], strict=True)
        )
        parts = prompt.split(MARK)
        if len(parts) != texts:
            raise Unfit(
                "a chat template that does not fit",
                "the chat template must keep every earlier text",
                f"{len(parts) - 1} of {texts - 1}",
                "train with --history none, or use the template of the base checkpoint",
            )
        return [*parts, ""]

    def _written(self, written: Written) -> list[int]:
        if written.token_ids is None:
            return [*self._ids(written.text.replace("<|", "< |")), self._end]
        if not written.token_ids:
            raise Unfit("a text without tokens", "sampled texts have at least one token", "none")
        return list(written.token_ids)

    def _check(self, example: Example, ids: Sequence[int], pictures: Sequence[Pixels]) -> None:
        wanted = sum(self._places(pixels) for pixels in pictures)
        found = ids.count(self._picture)
        name = example.observation.sample_id
        if found != wanted:
            raise Unfit(
                "picture tokens that are not its pictures'",
                f"sample {name} has as many picture tokens as its {len(pictures)} pictures fill",
                f"{found}, not {wanted}",
                "take the vision tokens out of its texts",
            )
        own = {token for written in example.texts for token in written.token_ids or ()}
        if own & self.banned or (own and not 0 <= min(own) <= max(own) < len(self.processor.tokenizer)):
            raise Unfit(
                "sampled tokens that this policy never writes",
                f"the sampled tokens of sample {name} are ones that this policy can write",
                sorted(own & self.banned) or max(own),
                "train the checkpoint that wrote them",
            )
        if len(ids) > self.max_tokens:
            raise Unfit(
                f"a conversation above {self.max_tokens} tokens",
                f"a conversation has at most {self.max_tokens} tokens and is never cut",
                f"{len(ids)} in sample {name}, {wanted} of them of {len(pictures)} pictures",
                "raise the limit, keep less history or leave the sample out",
            )

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        found: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _places(self, pixels: Pixels) -> int:
        """How many tokens a picture fills."""
        images: Any = self.processor.image_processor
        return int(images.get_number_of_image_patches(*pixels.shape[:2])) // self._merge**2

    # --- a batch ----------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example]) -> Collated:
        """Tensors on the CPU for `LogProbs`; without `position_ids`, which the model knows.

        input_ids, attention_mask, mm_token_type_ids: int64 B x T; written: bool B x T, as the mask;
        pixel_values: float32, a row for each patch of all pictures in order; image_grid_thw: int64
        N x 3. A batch without any picture gets a black one that no token refers to, so that every
        process runs the vision tower (else sharded weights would wait for each other for ever).
        """
        encoded = [self.encode(example) for example in examples]
        longest = max(len(item.ids) for item in encoded)
        shape = (len(encoded), longest)
        ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        attention = torch.zeros(shape, dtype=torch.long)
        mask, weights = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        for row, item in enumerate(encoded):
            length = len(item.ids)
            ids[row, :length] = torch.tensor(item.ids)
            attention[row, :length] = 1
            mask[row, :length] = torch.tensor(item.trained)
            weights[row, :length] = torch.tensor(item.weights)
        inputs: dict[str, Tensor] = {
            "input_ids": ids,
            "attention_mask": attention,
            "mm_token_type_ids": ((ids == self._picture) & (attention == 1)).long(),
            "written": mask,
        }
        pictures = [pixels for item in encoded for pixels in item.pictures]
        black = torch.zeros(self._factor, self._factor, 3, dtype=torch.uint8).numpy()
        images: Any = self.processor.image_processor
        made = images(images=pictures or [black], input_data_format="channels_last", return_tensors="pt")
        inputs["pixel_values"], inputs["image_grid_thw"] = made["pixel_values"], made["image_grid_thw"]
        return Collated(inputs, mask, weights)
