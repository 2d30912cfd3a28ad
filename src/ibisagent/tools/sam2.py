"""SAM 2, SAM 2.1 and MedSAM2 as tools: points, boxes and masks in, one mask out.

Works through transformers' Sam2Model, with its own pre- and postprocessing (no torchvision):
the picture is squashed to a square, bilinear with antialiasing on values in [0, 1], and
normalised with ImageNet's mean and deviation; logits are resized to the picture, bilinear, and
cut at 0; logits that are fed back are clamped to +-32. All as facebookresearch/sam2's image
predictor does it; tests/tools/test_sam2.py holds the recorded comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2Config, Sam2Model

from ibisagent.devices import pick_device, pick_dtype
from ibisagent.errors import InputError
from ibisagent.tools import sam2_convert
from ibisagent.tools.sam_common import CACHE_BYTES, Prompts, SamFamilyTool
from ibisagent.tools.sam_frame import Frame
from ibisagent.tools.sam_weights import (
    build_config,
    is_checkpoint,
    load_folder,
    read_checkpoint,
    read_config,
)
from ibisagent.types import Picture, Tool

SIZES = (512, 1024)
DEFAULT_SIZE = {"sam2": 1024, "medsam2": 512}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LOGIT_LIMIT = 32.0
BOX_LABELS = (2, 3)  # how the prompt encoder marks a box's top left and bottom right corner


class _NoPositions(torch.nn.Module):
    """In place of the neck's sine positions: only video memory reads them, yet they cost time."""

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Positions of no channels, Bx0xhxw."""
        return torch.empty((shape[0], 0, *shape[2:]), device=device, dtype=dtype)


class Sam2Tool(SamFamilyTool):
    """One Sam2Model. Takes points, the last box, and its own logits or a start mask."""

    _model: Sam2Model

    def __init__(self, model: Sam2Model, **options: Any) -> None:
        """`options`: see SamFamilyTool."""
        super().__init__(model, **options)
        model.vision_encoder.neck.position_encoding = _NoPositions()

    def _frame(self, picture: Picture) -> Frame:
        return Frame.squashed(picture, self._size)

    def _pixel_values(self, picture: Picture, frame: Frame) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1).float() / 255
        side = (frame.size, frame.size)
        square = F.interpolate(pixels[None], side, mode="bilinear", align_corners=False, antialias=True)[0]
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        return (square - mean[:, None, None]) / std[:, None, None]

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._model.get_image_embeddings(pixel_values))

    def _decode(
        self, features: tuple[torch.Tensor, ...], prompts: Sequence[Prompts]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [_with_box(each) for each in prompts]
        points = torch.stack([points for points, _ in pairs])[:, None]
        labels = torch.stack([labels for _, labels in pairs])[:, None]
        masks = [each.mask for each in prompts if each.mask is not None]
        output = self._model(
            image_embeddings=list(features),
            input_points=points.to(self._device),
            input_labels=labels.to(self._device),
            input_masks=torch.stack(masks).to(self._device) if masks else None,
            multimask_output=prompts[0].several_masks,
        )
        return output.pred_masks[:, 0], output.iou_scores[:, 0]

    def _feedback(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def _with_box(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and labels, a box's corners first, as the original predictor orders them."""
    if prompts.box is None:
        return prompts.points, prompts.labels
    corners = torch.cat([prompts.box.reshape(2, 2), prompts.points])
    return corners, torch.cat([torch.tensor(BOX_LABELS), prompts.labels])


def load_sam2(
    spec_path: str,
    size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    *,
    kind: str = "sam2",
    cache_bytes: int = CACHE_BYTES,
) -> Tool:
    """A SAM 2 tool from an original checkpoint file, a Hugging Face folder or a hub id.

    `size`: 512 or 1024; None is 1024 for kind `sam2` and 512 for `medsam2` (MedSAM2 was trained
    at 512 px; its weights have the same names and shapes, so the file itself does not tell).
    `device`, `dtype`: see devices. `cache_bytes`: bound on kept embeddings (16.8 MB a picture
    at 1024, 4.2 MB at 512). Raises InputError with the fix for whatever cannot be loaded.
    """
    size = DEFAULT_SIZE[kind] if size is None else size
    if size not in SIZES:
        raise InputError("SAM 2 runs at 512 or 1024 pixels", size, "add @512 or @1024 to --tool")
    place = pick_device(device)
    number_type = pick_dtype(dtype, place)
    if is_checkpoint(spec_path):
        model = sam2_convert.convert(read_checkpoint(spec_path), size)
    else:
        values = read_config(spec_path, ("sam2", "sam2_video"))
        # Published folders describe the video model; its image part is the same.
        config = build_config(Sam2Config, {**values, "model_type": "sam2"})
        sam2_convert.set_size(config, size)
        model = load_folder(Sam2Model, spec_path, config, sam2_convert.FOLDER_VIDEO_WEIGHTS)
    return Sam2Tool(
        model,
        kind=kind,
        architecture=sam2_convert.encoder_name(model.config),
        size=size,
        grid=model.prompt_encoder.mask_input_size[0],
        prompts=frozenset({"point", "box", "mask"}),
        device=place,
        dtype=number_type,
        cache_bytes=cache_bytes,
    )
