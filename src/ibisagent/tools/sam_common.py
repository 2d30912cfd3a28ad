"""What all tools of the SAM family share: encode a picture once, then answer prompts on it.

Forward passes run in batches of a fixed size, short ones padded with copies of their last item,
so that a reply does not depend on which other requests arrived with it. Requests whose prompts
have the same shape share a batch. The image encoder runs in the tool's dtype; prompts and masks
are always float32, since bfloat16 coordinates would be off by up to two pixels at 1024.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from ibisagent.devices import out_of_memory
from ibisagent.errors import IbisError, InputError, ToolError
from ibisagent.tools.cache import EmbeddingCache
from ibisagent.tools.sam_frame import Frame
from ibisagent.tools.sam_weights import weights_digest
from ibisagent.types import Mask, Picture, Prompt, ToolReply, ToolRequest

Item = TypeVar("Item")
Embedding: TypeAlias = tuple[torch.Tensor, ...]  # feature maps of one picture, without batch axis

CACHE_BYTES = 1 << 30
GPU_BATCH = 4


@dataclass(frozen=True)
class Prompts:
    """One request in the model's frame."""

    request: ToolRequest
    frame: Frame
    points: torch.Tensor  # Nx2 float32 model pixels (x, y)
    labels: torch.Tensor  # N int64: 1 positive, 0 negative
    box: torch.Tensor | None  # 4 float32 model pixels (x1, y1, x2, y2)
    mask: torch.Tensor | None  # 1xgxg float32 logits

    @property
    def shape(self) -> tuple[int, bool, bool]:
        """Requests of equal shape may share a batch."""
        return len(self.points), self.box is not None, self.mask is not None

    @property
    def several_masks(self) -> bool:
        """Ask for candidates only where a single point leaves open what is meant (METHOD section 5)."""
        return self.shape == (1, False, False)


class SamFamilyTool(ABC):
    """A tool around one model. `predict` may be called from several threads."""

    name: str
    prompts: frozenset[Prompt]

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        kind: str,
        architecture: str,
        size: int,
        grid: int,
        prompts: frozenset[Prompt],
        device: torch.device,
        dtype: torch.dtype,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`size`: side of the model's square; `grid`: side of its low-resolution logits, in pixels."""
        self.name = f"{kind}:{architecture}@{size}"
        self.prompts = prompts
        self._kind, self._architecture = kind, architecture
        self._size, self._grid = size, grid
        self._device, self._dtype = device, dtype
        self._batch = GPU_BATCH if device.type == "cuda" else 1
        self._cache = EmbeddingCache[Embedding](cache_bytes)
        with _memory_errors(self.name):
            self._model = model.to(device).eval().requires_grad_(False)

    # --- what differs between the models --------------------------------------------------------

    @abstractmethod
    def _frame(self, picture: Picture) -> Frame:
        """Where the picture lies in the model's square."""

    @abstractmethod
    def _pixel_values(self, picture: Picture, frame: Frame) -> torch.Tensor:
        """float32 3 x size x size on the CPU, as the encoder wants it."""

    @abstractmethod
    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps, each BxCxhxw, of B x 3 x size x size."""

    @abstractmethod
    def _decode(
        self, features: tuple[torch.Tensor, ...], prompts: Sequence[Prompts]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits BxMxgxg and predicted IoU BxM for prompts of one shape."""

    def _picture_mask(self, logits: torch.Tensor, frame: Frame) -> Mask:
        """bool HxW of the picture from logits gxg: above 0 after resizing."""
        return (frame.logits_to_picture(logits) > 0).cpu().numpy()

    def _feedback(self, logits: torch.Tensor) -> torch.Tensor:
        """What a later request hands back as `low_res_logits`, from logits gxg."""
        return logits

    def _score(self, iou: float) -> float | None:
        """The reply's score from the predicted IoU."""
        return min(max(iou, 0.0), 1.0)

    # --- the protocol ---------------------------------------------------------------------------

    def set_image(self, pictures: Sequence[Picture]) -> None:
        """Encode what is not cached yet. Raises ToolError when memory runs out."""
        self._embeddings([(picture, self._frame(picture)) for picture in pictures])

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """One mask per request, in order. Raises ToolError only if all failed."""
        replies: dict[int, ToolReply] = {}
        groups: dict[tuple[int, bool, bool], list[tuple[int, Prompts]]] = {}
        for index, request in enumerate(requests):
            try:
                prompts = self._read(request)
            except IbisError as error:
                replies[index] = ToolReply(error=str(error))
            else:
                groups.setdefault(prompts.shape, []).append((index, prompts))
        for group in groups.values():
            for chunk in _chunks(group, self._batch):
                try:
                    answers = self._answer([prompts for _, prompts in chunk])
                except ToolError as error:
                    answers = [ToolReply(error=str(error))] * len(chunk)
                replies.update(zip((index for index, _ in chunk), answers, strict=True))
        ordered = [replies[index] for index in range(len(requests))]
        if ordered and all(reply.error is not None for reply in ordered):
            raise ToolError(f"{self.name} could not answer: {ordered[0].error}")
        return ordered

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """Always raises InputError: these models take no text."""
        raise InputError(
            "an episode that begins from a proposal needs a tool that takes text",
            self.name,
            "use --start none or another --tool",
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """Kind, architecture, size, dtype of the image encoder, SHA-256 of the weights."""
        return {
            "kind": self._kind,
            "architecture": self._architecture,
            "size": self._size,
            "dtype": str(self._dtype).removeprefix("torch."),
            "weights": self._digest,
        }

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self._model)

    # --- the work -------------------------------------------------------------------------------

    def _read(self, request: ToolRequest) -> Prompts:
        """Raises InputError where the request cannot be answered."""
        frame = self._frame(request.picture)
        if request.clicks and "point" not in self.prompts:
            raise InputError(
                f"{self.name} takes no clicks", len(request.clicks), "add --point-to-box PERCENT"
            )
        if not request.clicks and not request.boxes:
            raise InputError(f"{self.name} needs a click or a box")
        points = torch.tensor([frame.click(click) for click in request.clicks], dtype=torch.float32)
        labels = torch.tensor([int(click.positive) for click in request.clicks], dtype=torch.int64)
        box = torch.tensor(frame.box(request.boxes[-1]), dtype=torch.float32) if request.boxes else None
        return Prompts(request, frame, points.reshape(-1, 2), labels, box, self._mask_prompt(request, frame))

    def _mask_prompt(self, request: ToolRequest, frame: Frame) -> torch.Tensor | None:
        """The last reply's logits, else the start mask as logits, else None."""
        if "mask" not in self.prompts:
            return None
        if request.low_res_logits is not None:
            logits = torch.from_numpy(np.ascontiguousarray(request.low_res_logits, dtype=np.float32))
            if tuple(logits.shape) != (self._grid, self._grid) or not bool(torch.isfinite(logits).all()):
                raise InputError(
                    f"{self.name} takes back its own finite logits of {self._grid}x{self._grid}",
                    tuple(logits.shape),
                )
            return logits[None]
        if request.start_mask is not None:
            return frame.mask_to_logits(request.start_mask, self._grid)[None]
        return None

    def _answer(self, prompts: Sequence[Prompts]) -> list[ToolReply]:
        """Replies to at most one batch of prompts of one shape."""
        began = time.perf_counter()
        embeddings = self._embeddings([(each.request.picture, each.frame) for each in prompts])
        with _memory_errors(self.name), torch.inference_mode():
            features = tuple(
                torch.stack(maps) for maps in zip(*_padded(embeddings, self._batch), strict=True)
            )
            logits, ious = self._decode(features, _padded(prompts, self._batch))
            logits, ious = logits.float(), ious.float().cpu()
            replies = []
            for each, candidates, scores in zip(prompts, logits, ious, strict=False):
                best = int(scores.argmax())
                replies.append(
                    ToolReply(
                        mask=self._picture_mask(candidates[best], each.frame),
                        score=self._score(float(scores[best])),
                        low_res_logits=self._feedback(candidates[best]).cpu().numpy(),
                    )
                )
        seconds = (time.perf_counter() - began) / len(prompts)
        return [ToolReply(r.mask, r.score, r.low_res_logits, seconds=seconds) for r in replies]

    def _embeddings(self, pictures: Sequence[tuple[Picture, Frame]]) -> list[Embedding]:
        """One embedding per picture; what is not cached is encoded, equal pictures once."""
        keys = [(picture.content_id, frame) for picture, frame in pictures]
        known: dict[tuple[str, Frame], Embedding] = {}
        wanted: dict[tuple[str, Frame], Picture] = {}
        for key, (picture, _) in zip(keys, pictures, strict=True):
            cached = self._cache.get(key)
            if cached is not None:
                known[key] = cached
            elif key not in wanted:
                wanted[key] = picture
        for chunk in _chunks(list(wanted.items()), self._batch):
            with _memory_errors(self.name), torch.inference_mode():
                pixels = [self._pixel_values(picture, key[1]) for key, picture in chunk]
                batch = torch.stack(_padded(pixels, self._batch)).to(self._device)
                with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                    features = self._encode(batch)
                for row, (key, _) in enumerate(chunk):
                    # A clone, because a view would keep the whole batch alive in the cache.
                    embedding = tuple(maps[row].float().clone() for maps in features)
                    self._cache.put(key, embedding, sum(each.nbytes for each in embedding))
                    known[key] = embedding
        return [known[key] for key in keys]


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _padded(items: Sequence[Item], size: int) -> list[Item]:
    return [*items, *[items[-1]] * (size - len(items))]


@contextmanager
def _memory_errors(name: str) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into a ToolError; all else passes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ToolError(
            f"{name} ran out of memory", None, "use a smaller size such as @512, or --device cpu"
        ) from error
