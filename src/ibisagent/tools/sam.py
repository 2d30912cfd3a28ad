"""SAM and MedSAM (ViT) as tools.

`sam`: as facebookresearch/segment-anything's predictor does it. The longest side (in mm where
the spacing is known, so that the model sees true proportions) is resized to 1024, bilinear on
8-bit pixels; the rest of the square is padded after normalisation; logits come back by way of
the 1024 square and a crop, cut at 0. Points, the last box, own logits or a start mask.

`medsam`: as bowang-lab/MedSAM's inference script does it. The picture is squashed to 1024 x 1024
with a cubic spline after a Gaussian filter, and stretched to [0, 1] by its own minimum and
maximum; probabilities are resized to the picture and cut at 0.5. MedSAM was trained with one box
and nothing else, so it takes boxes only (`--point-to-box` turns clicks into one), and without a
loss on its IoU head, so it gives no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from transformers import SamConfig, SamModel

from ibisagent.devices import pick_device, pick_dtype
from ibisagent.errors import InputError
from ibisagent.tools import sam_convert
from ibisagent.tools.sam_common import CACHE_BYTES, Prompts, SamFamilyTool
from ibisagent.tools.sam_frame import Frame
from ibisagent.tools.sam_weights import (
    build_config,
    is_checkpoint,
    load_folder,
    read_checkpoint,
    read_config,
)
from ibisagent.types import Mask, Picture, Pixels, Prompt, Tool

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of 8-bit RGB
PIXEL_STD = (58.395, 57.12, 57.375)


class SamTool(SamFamilyTool):
    """One SamModel, prompted with points, the last box, and its own logits or a start mask."""

    _model: SamModel

    def _frame(self, picture: Picture) -> Frame:
        return Frame.letterboxed(picture, self._size)

    def _pixel_values(self, picture: Picture, frame: Frame) -> torch.Tensor:
        resized = Image.fromarray(picture.pixels).resize(
            (frame.width, frame.height), Image.Resampling.BILINEAR
        )
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        return F.pad(pixels, (0, frame.size - frame.width, 0, frame.size - frame.height))

    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._model.get_image_embeddings(pixel_values),)

    def _decode(
        self, features: tuple[torch.Tensor, ...], prompts: Sequence[Prompts]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = [each.box for each in prompts if each.box is not None]
        masks = [each.mask for each in prompts if each.mask is not None]
        with_points = len(prompts[0].points) > 0
        points = torch.stack([each.points for each in prompts])[:, None]
        labels = torch.stack([each.labels for each in prompts])[:, None]
        output = self._model(
            image_embeddings=features[0],
            input_points=points.to(self._device) if with_points else None,
            input_labels=labels.to(self._device) if with_points else None,
            input_boxes=torch.stack(boxes)[:, None].to(self._device) if boxes else None,
            input_masks=torch.stack(masks).to(self._device) if masks else None,
            multimask_output=prompts[0].several_masks,
        )
        return output.pred_masks[:, 0], output.iou_scores[:, 0]


class MedSamTool(SamTool):
    """One SamModel with MedSAM's weights, prompted with the last box alone."""

    def _frame(self, picture: Picture) -> Frame:
        return Frame.squashed(picture, self._size)

    def _pixel_values(self, picture: Picture, frame: Frame) -> torch.Tensor:
        square = resize_spline(picture.pixels, frame.size).astype(np.uint8)
        low, high = float(square.min()), float(square.max())
        stretched = (square - low) / max(high - low, 1e-8)
        return torch.from_numpy(stretched).float().permute(2, 0, 1)

    def _picture_mask(self, logits: torch.Tensor, frame: Frame) -> Mask:
        return (frame.logits_to_picture(logits.sigmoid()) > 0.5).cpu().numpy()

    def _score(self, iou: float) -> float | None:
        return None


def resize_spline(pixels: Pixels, size: int) -> np.ndarray:
    """float64 size x size x 3 in the input's range, from uint8 HxWx3.

    Gaussian filter against aliasing, then a cubic spline on pixel areas with mirrored borders:
    what `skimage.transform.resize(order=3, preserve_range=True, anti_aliasing=True)` computes.
    """
    values = pixels.astype(np.float64)
    factors = np.array([pixels.shape[0] / size, pixels.shape[1] / size, 1.0])
    smooth = ndimage.gaussian_filter(values, np.maximum(0, (factors - 1) / 2), mode="mirror")
    resized = ndimage.zoom(smooth, 1 / factors, order=3, mode="mirror", grid_mode=True)
    return np.clip(resized, values.min(), values.max())


def load_sam(
    path: str,
    kind: str = "sam",
    device: str = "auto",
    dtype: str = "auto",
    *,
    cache_bytes: int = CACHE_BYTES,
) -> Tool:
    """A SAM or MedSAM tool from an original checkpoint file, a Hugging Face folder or a hub id.

    `device`, `dtype`: see devices. `cache_bytes`: bound on kept embeddings (4.2 MB a picture).
    Raises InputError with the fix for whatever cannot be loaded.
    """
    if kind not in ("sam", "medsam"):
        raise InputError("the kind of a ViT tool is sam or medsam", repr(kind))
    place = pick_device(device)
    number_type = pick_dtype(dtype, place)
    if is_checkpoint(path):
        model = sam_convert.convert(read_checkpoint(path))
    else:
        config = build_config(SamConfig, read_config(path, ("sam",)))
        model = load_folder(SamModel, path, config, sam_convert.UNUSED)
    prompts: frozenset[Prompt] = frozenset({"box"} if kind == "medsam" else {"point", "box", "mask"})
    model_config: Any = model.config
    tool = MedSamTool if kind == "medsam" else SamTool
    size = model_config.vision_config.image_size
    return tool(
        model,
        kind=kind,
        architecture=sam_convert.encoder_name(model_config),
        size=size,
        grid=4 * model_config.prompt_encoder_config.image_embedding_size,
        prompts=prompts,
        device=place,
        dtype=number_type,
        cache_bytes=cache_bytes,
    )
