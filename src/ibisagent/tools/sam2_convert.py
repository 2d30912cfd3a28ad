"""Original SAM 2, SAM 2.1 and MedSAM2 checkpoints, read as transformers' Sam2Model.

The architecture is read from tensor shapes. Shapes do not tell the number of attention heads,
the window sizes of later stages and which blocks attend globally, so those come from a table of
the four published image encoders (the configuration files of facebookresearch/sam2); any other
encoder is refused. SAM 2 and SAM 2.1 differ only in weights for video memory, which the image
model does not have and which are left out by name; every other weight must be used, none missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Sam2Config, Sam2Model

from ibisagent.errors import InputError
from ibisagent.tools.sam_weights import StateDict, fill_model, rename

DECODER_HEADS = 8  # fixed in the original mask decoder
PATCH = 16  # model pixels per side of one cell of the coarsest feature map

VIDEO_WEIGHTS = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\."
    r"|(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)
# The same in a Hugging Face folder of the video model.
FOLDER_VIDEO_WEIGHTS = re.compile(
    r"memory_|mask_downsample|object_pointer_proj|no_object_pointer|no_memory_positional_encoding"
    r"|temporal_positional_encoding_projection_layer|occlusion_spatial_embedding_parameter"
)

_RULES = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"(\.mlp|_head|_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"(_head|_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"(_head|_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
)


@dataclass(frozen=True)
class Hiera:
    """A Hiera image encoder, as far as its configuration varies between published models."""

    name: str
    width: int  # channels of the first stage; each later stage has twice as many
    heads: int  # of the first stage; doubled likewise
    blocks: tuple[int, ...]  # per stage
    global_blocks: tuple[int, ...]  # which blocks attend to the whole picture
    windows: tuple[int, ...]  # attention window's side per stage
    background: int  # side of the position embedding's coarse part


ENCODERS = (
    Hiera("hiera-tiny", 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    Hiera("hiera-small", 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    Hiera("hiera-base+", 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    Hiera("hiera-large", 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
)


def read_encoder(state: StateDict) -> Hiera:
    """Which image encoder an original-layout state_dict holds. Raises InputError if unknown."""
    try:
        position = state["image_encoder.trunk.pos_embed"]
        window = state["image_encoder.trunk.pos_embed_window"]
    except KeyError as error:
        raise InputError(
            "a SAM 2 checkpoint holds an image encoder",
            f"no {error.args[0]}",
            "use sam: or medsam: for ViT checkpoints of the first generation",
        ) from error
    found = (position.shape[1], _blocks_per_stage(state), position.shape[-1], window.shape[-1])
    for encoder in ENCODERS:
        if found == (encoder.width, encoder.blocks, encoder.background, encoder.windows[0]):
            return encoder
    raise InputError(
        f"the image encoder must be one of {', '.join(encoder.name for encoder in ENCODERS)}",
        f"{found[0]} channels with {found[1]} blocks",
        "convert it to a Hugging Face folder, whose config.json says the rest",
    )


def _blocks_per_stage(state: StateDict) -> tuple[int, ...]:
    """A stage begins where a block changes the number of channels."""
    counts: list[int] = []
    channels = None
    index = 0
    while (qkv := state.get(f"image_encoder.trunk.blocks.{index}.attn.qkv.weight")) is not None:
        if qkv.shape[0] != channels:
            counts.append(0)
            channels = qkv.shape[0]
        counts[-1] += 1
        index += 1
    return tuple(counts)


def encoder_name(config: Any) -> str:
    """Name of the published encoder that a transformers configuration describes, else `hiera-custom`."""
    backbone = config.vision_config.backbone_config
    for encoder in ENCODERS:
        if (encoder.width, list(encoder.blocks)) == (backbone.hidden_size, list(backbone.blocks_per_stage)):
            return encoder.name
    return "hiera-custom"


def set_size(config: Any, size: int) -> Any:
    """The same model for pictures of `size` x `size`; no weight depends on it."""
    vision = config.vision_config
    vision.backbone_config.image_size = [size, size]
    vision.backbone_feature_sizes = [[size // stride] * 2 for stride in (4, 8, 16)]
    config.prompt_encoder_config.image_size = size
    return config


def convert(state: StateDict, size: int) -> Sam2Model:
    """The image model of an original-layout state_dict, for pictures of `size` x `size`, float32.

    Raises InputError if the encoder is unknown, a weight is missing or left over, or a shape
    differs.
    """
    encoder = read_encoder(state)
    image_state = {name: value for name, value in state.items() if not VIDEO_WEIGHTS.match(name)}
    try:
        config = _config(encoder, image_state)
        converted = _renamed(image_state)
    except KeyError as error:
        raise InputError(
            "the checkpoint must hold every weight of the image model", f"no {error.args[0]}"
        ) from error
    return fill_model(Sam2Model, set_size(config, size), converted)


def _renamed(state: StateDict) -> StateDict:
    converted: StateDict = {}
    points: list[torch.Tensor] = []
    for name, value in state.items():
        if name.startswith("sam_prompt_encoder.point_embeddings."):
            points.append(value)
        else:
            converted[rename(name, _RULES)] = value
    names = [f"sam_prompt_encoder.point_embeddings.{index}.weight" for index in range(len(points))]
    converted["prompt_encoder.point_embed.weight"] = torch.cat([state[name] for name in names])
    # transformers keeps one copy for prompts and one for the image grid, and saves both.
    positions = converted["prompt_encoder.shared_embedding.positional_embedding"]
    converted["shared_image_embedding.positional_embedding"] = positions.clone()
    return converted


def _config(encoder: Hiera, state: StateDict) -> Sam2Config:
    """Everything that shapes tell is read from them, the rest from the table above."""
    stages = range(len(encoder.blocks))
    channels = [encoder.width * 2**stage for stage in stages]
    hidden = state["no_mem_embed"].shape[-1]
    decoder = "sam_mask_decoder"
    vision: dict[str, Any] = {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": encoder.width,
            "num_attention_heads": encoder.heads,
            "blocks_per_stage": list(encoder.blocks),
            "embed_dim_per_stage": channels,
            "num_attention_heads_per_stage": [encoder.heads * 2**stage for stage in stages],
            "window_size_per_stage": list(encoder.windows),
            "global_attention_blocks": list(encoder.global_blocks),
            "window_positional_embedding_background_size": [encoder.background] * 2,
        },
        "backbone_channel_list": channels[::-1],
        "fpn_hidden_size": hidden,
    }
    return Sam2Config(
        vision_config={"model_type": "sam2_vision_model", **vision},
        prompt_encoder_config={
            "hidden_size": hidden,
            "patch_size": PATCH,
            "mask_input_channels": state["sam_prompt_encoder.mask_downscaling.6.weight"].shape[1],
        },
        mask_decoder_config={
            "hidden_size": hidden,
            "mlp_dim": state[f"{decoder}.transformer.layers.0.mlp.layers.0.weight"].shape[0],
            "num_attention_heads": DECODER_HEADS,
            "num_multimask_outputs": state[f"{decoder}.mask_tokens.weight"].shape[0] - 1,
            "iou_head_hidden_dim": state[f"{decoder}.iou_prediction_head.layers.0.weight"].shape[0],
            # As the original builds its image predictor: an unstable single mask gives way to
            # the best of the three candidates.
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )
