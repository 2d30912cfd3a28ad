"""Original SAM and MedSAM checkpoints (ViT), read as transformers' SamModel.

Widths, depth and picture size are read from tensor shapes. The number of attention heads and
which blocks attend globally are not in the shapes: they come from a table of the three published
image encoders (facebookresearch/segment-anything, build_sam.py); any other encoder is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers import SamConfig, SamModel

from ibisagent.errors import InputError
from ibisagent.tools.sam_weights import StateDict, fill_model, rename

DECODER_HEADS = 8  # fixed in the original mask decoder
WINDOW = 14  # side of the attention window, fixed likewise

# Normalisation constants that some checkpoints store; they are no weights.
UNUSED = re.compile(r"pixel_(mean|std)$")

_RULES = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"(_head|_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"(_head|_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
)


@dataclass(frozen=True)
class ViT:
    """A plain image encoder, as far as its configuration varies between published models."""

    name: str
    width: int  # channels
    depth: int  # blocks
    heads: int
    global_blocks: tuple[int, ...]  # which blocks attend to the whole picture


ENCODERS = (
    ViT("vit-b", 768, 12, 12, (2, 5, 8, 11)),
    ViT("vit-l", 1024, 24, 16, (5, 11, 17, 23)),
    ViT("vit-h", 1280, 32, 16, (7, 15, 23, 31)),
)


def read_encoder(state: StateDict) -> ViT:
    """Which image encoder an original-layout state_dict holds. Raises InputError if unknown."""
    position = state.get("image_encoder.pos_embed")
    if position is None:
        raise InputError(
            "a SAM checkpoint holds a ViT image encoder",
            "no image_encoder.pos_embed",
            "use sam2: or medsam2: for Hiera checkpoints of the second generation",
        )
    depth = sum(bool(re.fullmatch(r"image_encoder\.blocks\.\d+\.attn\.qkv\.weight", name)) for name in state)
    for encoder in ENCODERS:
        if (encoder.width, encoder.depth) == (position.shape[-1], depth):
            return encoder
    raise InputError(
        f"the image encoder must be one of {', '.join(encoder.name for encoder in ENCODERS)}",
        f"{position.shape[-1]} channels with {depth} blocks",
        "convert it to a Hugging Face folder, whose config.json says the rest",
    )


def encoder_name(config: Any) -> str:
    """Name of the published encoder that a transformers configuration describes, else `vit-custom`."""
    vision = config.vision_config
    for encoder in ENCODERS:
        if (encoder.width, encoder.depth) == (vision.hidden_size, vision.num_hidden_layers):
            return encoder.name
    return "vit-custom"


def convert(state: StateDict) -> SamModel:
    """The model of an original-layout state_dict in float32.

    Raises InputError if the encoder is unknown, a weight is missing or left over, or a shape
    differs.
    """
    encoder = read_encoder(state)
    used = {name: value for name, value in state.items() if not UNUSED.match(name)}
    try:
        config = _config(encoder, used)
        converted = {rename(name, _RULES): value for name, value in used.items()}
        # transformers keeps one copy for prompts and one for the image grid.
        positions = converted["prompt_encoder.shared_embedding.positional_embedding"]
    except KeyError as error:
        raise InputError(
            "the checkpoint must hold every weight of the model", f"no {error.args[0]}"
        ) from error
    converted["shared_image_embedding.positional_embedding"] = positions
    return fill_model(SamModel, config, converted)


def _config(encoder: ViT, state: StateDict) -> SamConfig:
    """Everything that shapes tell is read from them, the rest from the table above."""
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    cells = state["image_encoder.pos_embed"].shape[1]
    hidden = state["image_encoder.neck.0.weight"].shape[0]
    return SamConfig(
        vision_config={
            "hidden_size": encoder.width,
            "output_channels": hidden,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "image_size": cells * patch,
            "patch_size": patch,
            "window_size": WINDOW,
            "global_attn_indexes": list(encoder.global_blocks),
            "num_pos_feats": hidden // 2,
            "mlp_dim": state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        },
        prompt_encoder_config={
            "hidden_size": hidden,
            "image_size": cells * patch,
            "patch_size": patch,
            "mask_input_channels": state["prompt_encoder.mask_downscaling.6.weight"].shape[1],
        },
        mask_decoder_config={
            "hidden_size": hidden,
            "mlp_dim": state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
            "num_attention_heads": DECODER_HEADS,
            "num_multimask_outputs": state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            "iou_head_hidden_dim": state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
            "layer_norm_eps": 1e-5,  # the original's; transformers' own default is 1e-6
        },
    )
