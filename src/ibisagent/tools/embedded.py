"""The tool that ships in the package: clicks of both signs, a starting mask, and the target's name.

A picture is encoded once, at 256 pixels on its longest side in millimetres; a click or a name then
costs one small decoder pass. Every pass holds one picture, so a reply never depends on what else
is in the batch.

Where the file does not say which side of the patient is shown where, it may have been exported without
regard to sides. A proposal is then the mean of two looks, at the picture and at its mirror image (in
which a left organ is asked for as the right one); the surer one counts more.

The score is the network's estimate of the mask's IoU, where two empty masks agree fully
(METHOD section 6). So the score of an empty proposal is the probability that the target is absent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ibisagent.errors import InputError
from ibisagent.fingerprint import file_id
from ibisagent.lanes import in_lanes
from ibisagent.targets import by_convention, canonical_target, in_the_mirror
from ibisagent.tools.cache import EmbeddingCache
from ibisagent.tools.embedded_model import NO_MASK, OWN_LOGITS, START_MASK, EmbeddedNetwork, Features
from ibisagent.types import Click, Laterality, Logits, Mask, Picture, Prompt, ToolReply, ToolRequest

SIDE = 256  # of the frame, see embedded_model.py
GRID = SIDE // 2  # of low_res_logits
START_LOGIT = 4.0  # a starting mask's logits are +-4, as in training
CACHE_BYTES = 256 << 20
_SHARPNESS = 2.0  # of the weights of two looks: odds of their scores to this power, chosen on validation


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the square: its size there, top left."""

    height: int
    width: int

    @classmethod
    def of(cls, picture: Picture) -> Frame:
        aspect = picture.true_aspect
        if aspect >= 1:
            return cls(max(1, round(SIDE / aspect)), SIDE)
        return cls(SIDE, max(1, round(SIDE * aspect)))

    def image(self, picture: Picture, mirrored: bool = False) -> NDArray[np.float32]:
        """1 x 5 x SIDE x SIDE: RGB with mean 0 and about unit spread, and the planes valid and sided."""
        shrinks = self.height < picture.height or self.width < picture.width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(picture.pixels, (self.width, self.height), interpolation=how)
        small = cv2.flip(small, 1) if mirrored else small
        image = np.zeros((1, 5, SIDE, SIDE), np.float32)
        level, spread = float(small.mean()), float(small.std()) + 8.0
        image[0, :3, : self.height, : self.width] = np.clip(
            (small.transpose(2, 0, 1) - level) / spread, -4, 4
        )
        image[0, 3, : self.height, : self.width] = 1
        image[0, 4, : self.height, : self.width] = picture.laterality == "known"
        return image

    def clicks(self, clicks: Sequence[Click]) -> NDArray[np.float32]:
        """1 x C x 3: x, y in frame sides, sign; one padding entry where there is no click."""
        rows = [
            (c.x * self.width / SIDE, c.y * self.height / SIDE, 1.0 if c.positive else -1.0) for c in clicks
        ]
        return np.array([rows or [(0.0, 0.0, 0.0)]], np.float32)

    def logits_of(self, mask: Mask) -> Logits:
        """GRID x GRID pseudo-logits of a mask in the picture frame."""
        small = cv2.resize(
            mask.view(np.uint8) * np.uint8(255), (self.width, self.height), interpolation=cv2.INTER_AREA
        )
        full = np.zeros((SIDE, SIDE), np.uint8)
        full[: self.height, : self.width] = small
        inside = cv2.resize(full, (GRID, GRID), interpolation=cv2.INTER_AREA) > 127
        return np.where(inside, START_LOGIT, -START_LOGIT).astype(np.float32)

    def unmirrored(self, logits: Logits) -> Logits:
        """GRID x GRID logits of the mirrored frame, where the picture has them."""
        flip = np.array([[-1, 0, self.width / 2 - 1], [0, 1, 0]])  # by half a cell where the width is odd
        there = cv2.warpAffine(logits, flip, (GRID, GRID), borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(there, np.float32)

    def mask_of(self, logits: Logits, picture: Picture) -> Mask:
        """The mask in the picture frame: logits enlarged bilinearly, above 0."""
        full = cv2.resize(logits, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        part = np.ascontiguousarray(full[: self.height, : self.width])
        return cv2.resize(part, (picture.width, picture.height), interpolation=cv2.INTER_LINEAR) > 0


class EmbeddedTool:
    """Promptable segmentation on a CPU; knows the names in `names`, and any target by clicks."""

    name = "embedded"
    prompts: frozenset[Prompt] = frozenset({"point", "mask", "text"})

    def __init__(
        self,
        network: EmbeddedNetwork,
        weights_id: str,
        calibration: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        """`calibration`: scale and shift of the score's logit; `weights_id` goes into the fingerprint."""
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.names = network.names
        self._weights_id = weights_id
        self._calibration = calibration
        self._features: EmbeddingCache[Features] = EmbeddingCache(CACHE_BYTES)

    @classmethod
    def load(cls, path: str | Path | None = None) -> EmbeddedTool:
        """The tool of a safetensors file, by default the one in the package.

        Raises InputError where the file is missing or is no embedded tool.
        """
        if path is not None:
            return cls._load(Path(path))
        with as_file(files("ibisagent") / "weights" / "embedded_tool.safetensors") as packaged:
            return cls._load(packaged)

    @classmethod
    def _load(cls, path: Path) -> EmbeddedTool:
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = file.metadata() or {}
                state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            names = tuple(json.loads(facts["names"]))
            network = EmbeddedNetwork(names)
            problems = network.load_state_dict(state, strict=False)
            missing = [key for key in problems.missing_keys if not key.endswith("num_batches_tracked")]
            if missing or problems.unexpected_keys:
                raise KeyError(f"{len(missing)} missing, {len(problems.unexpected_keys)} unknown tensors")
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                "the embedded tool needs its weights", f"{path.name} ({error})", "reinstall the package"
            ) from error
        scale, shift = json.loads(facts.get("calibration", "[1.0, 0.0]"))
        return cls(network, file_id(path), (float(scale), float(shift)))

    def set_image(self, pictures: Sequence[Picture]) -> None:
        in_lanes(self._encode, {_look_of(picture): picture for picture in pictures}.values())

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """One mask per request; the name in `instruction`, where there is one, helps."""
        return in_lanes(self._answer, requests)

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """First masks from the target's name alone; an empty mask says "not there".

        No mask at all where the instruction names nothing that the tool knows.
        """
        return in_lanes(self._propose, requests)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self._weights_id,
            "side": SIDE,
            "score": [round(value, 4) for value in self._calibration],
        }

    def _propose(self, request: ToolRequest) -> ToolReply:
        if _target_of(request) not in self.names:
            return ToolReply()
        bare = ToolRequest(picture=request.picture, instruction=request.instruction)
        return self._answer(bare, looks_twice=request.picture.laterality != "known")

    @torch.inference_mode()
    def _encode(self, picture: Picture, mirrored: bool = False) -> Features:
        key = (_look_of(picture), mirrored)
        features = self._features.get(key)
        if features is None:
            image = torch.from_numpy(Frame.of(picture).image(picture, mirrored))
            features = self.network.encode(image.contiguous(memory_format=torch.channels_last))
            nbytes = sum(t.numel() * t.element_size() for t in features.tensors())
            self._features.put(key, features, nbytes)
        return features

    def _answer(self, request: ToolRequest, looks_twice: bool = False) -> ToolReply:
        start = time.perf_counter()
        target = _target_of(request)
        problem = self._problem(request, target)
        if problem is not None:
            return ToolReply(error=problem)
        frame = Frame.of(request.picture)
        logits, quality = self._decode(request, frame, target)
        if looks_twice and target is not None:
            other, also = self._decode(request, frame, in_the_mirror(target), mirrored=True)
            share = np.float32(1 / (1 + np.exp(_SHARPNESS * (also - quality))))
            logits = share * logits + (1 - share) * frame.unmirrored(other)
            quality = float(share * quality + (1 - share) * also)
        scale, shift = self._calibration
        return ToolReply(
            mask=frame.mask_of(logits, request.picture),
            score=float(torch.sigmoid(torch.tensor(quality * scale + shift))),
            low_res_logits=logits,
            seconds=time.perf_counter() - start,
        )

    @torch.inference_mode()
    def _decode(
        self, request: ToolRequest, frame: Frame, target: str | None, mirrored: bool = False
    ) -> tuple[Logits, float]:
        """GRID x GRID logits of the frame, and the logit of the score; a mirrored frame takes no prompts."""
        previous, kind = self._previous(request, frame)
        name = self.names.index(target) if target in self.names else self.network.no_name
        logits, quality = self.network.decode(
            self._encode(request.picture, mirrored),
            torch.from_numpy(frame.clicks(request.clicks)),
            torch.from_numpy(previous)[None, None],
            torch.tensor([kind]),
            torch.tensor([name]),
        )
        return np.ascontiguousarray(logits[0, 0].numpy()), float(quality[0])

    def _problem(self, request: ToolRequest, target: str | None) -> str | None:
        """Why a request cannot be answered, as one sentence; None where it can."""
        if request.boxes:
            return "the embedded tool takes no boxes"
        prompted = request.clicks or request.low_res_logits is not None or request.start_mask is not None
        if not prompted and target not in self.names:
            return "without a click or mask the embedded tool needs the name of a target that it knows"
        if request.low_res_logits is not None and request.low_res_logits.shape != (GRID, GRID):
            return f"low_res_logits are {GRID}x{GRID}, not {request.low_res_logits.shape}"
        shape = (request.picture.height, request.picture.width)
        if request.start_mask is not None and request.start_mask.shape != shape:
            return f"the starting mask is {request.start_mask.shape}, the picture {shape}"
        return None

    @staticmethod
    def _previous(request: ToolRequest, frame: Frame) -> tuple[Logits, int]:
        if request.low_res_logits is not None:
            return np.ascontiguousarray(request.low_res_logits, np.float32), OWN_LOGITS
        if request.start_mask is not None:
            return frame.logits_of(np.ascontiguousarray(request.start_mask)), START_MASK
        return np.zeros((GRID, GRID), np.float32), NO_MASK


def _target_of(request: ToolRequest) -> str | None:
    """The target that the instruction names, as the network has learned names of sides."""
    target = canonical_target(request.instruction) if request.instruction else None
    return target and by_convention(target, request.picture.laterality)


def _look_of(picture: Picture) -> tuple[str, Frame, Laterality]:
    """What the features of a picture depend on."""
    return picture.content_id, Frame.of(picture), picture.laterality
