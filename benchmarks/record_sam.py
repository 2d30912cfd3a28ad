"""Record what the original SAM and MedSAM's inference steps answer, for tests/tools/test_sam.py.

Runs in an environment of its own, never in this package's:

    git clone https://github.com/facebookresearch/segment-anything
    git -C segment-anything checkout dca509f
    python -m venv ref && ref/bin/pip install torch==2.13.0 numpy pillow scikit-image
    ref/bin/pip install --no-deps torchvision
    PYTHONPATH=segment-anything ref/bin/python benchmarks/record_sam.py

Writes tests/tools/data/sam_reference.npz (answers of a tiny seeded model of 256 px) and
sam_layouts.json.gz (names and shapes of all weights of the tiny and the published models).

MedSAM (bowang-lab/MedSAM, MedSAM_Inference.py at d71e8a1) uses the same model code; its steps are
repeated below with the tiny model's side in place of 1024.
"""

import gzip
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage import transform

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "tools" / "data"
sys.path.insert(0, str(ROOT / "tests" / "tools"))

# See record_sam2.py: only torchvision's transforms are needed, which are plain Python.
_spec = importlib.util.find_spec("torchvision")
_package = types.ModuleType("torchvision")
_package.__path__ = list(_spec.submodule_search_locations)
sys.modules["torchvision"] = _package

from seeded_weights import seeded_picture, seeded_weights  # noqa: E402
from segment_anything import SamPredictor, sam_model_registry  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

SIDE, WIDTH, HIDDEN = 256, 32, 32
HEIGHT, BREADTH = 300, 220  # of the picture: taller than wide, so that the square is padded
STEP = 2  # every how many low-resolution rows and columns are recorded


def tiny_model() -> Sam:
    encoder = ImageEncoderViT(
        img_size=SIDE,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        out_chans=HIDDEN,
        norm_layer=lambda channels: torch.nn.LayerNorm(channels, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(1,),
    )
    cells = (SIDE // 16, SIDE // 16)
    prompts = PromptEncoder(
        embed_dim=HIDDEN, image_embedding_size=cells, input_image_size=(SIDE, SIDE), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=HIDDEN, mlp_dim=64, num_heads=8)
    decoder = MaskDecoder(transformer_dim=HIDDEN, transformer=transformer, iou_head_hidden_dim=64)
    return Sam(encoder, prompts, decoder).eval()


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def record_sam(model: Sam, picture: np.ndarray, box: np.ndarray) -> dict[str, np.ndarray]:
    predictor = SamPredictor(model)
    predictor.set_image(picture)
    first = np.array([[BREADTH * 3 // 10, HEIGHT * 6 // 10]])
    both = np.concatenate([first, [[BREADTH * 8 // 10, HEIGHT * 2 // 10]]])
    positive, pair = np.array([1]), np.array([1, 0])
    recorded = {}

    def ask(case: str, several: bool = False, **prompts: np.ndarray) -> np.ndarray:
        masks, ious, low_res = predictor.predict(multimask_output=several, **prompts)
        best = int(ious.argmax())
        recorded[f"sam/{case}/iou"] = ious.astype(np.float32)
        recorded[f"sam/{case}/logits"] = low_res[best][::STEP, ::STEP].astype(np.float32)
        recorded[f"sam/{case}/mask"] = np.packbits(masks[best])
        print(case, ious.round(4), f"logits {low_res.min():.2f} to {low_res.max():.2f}")
        return low_res[best : best + 1]

    fed_back = ask("point", several=True, point_coords=first, point_labels=positive)
    ask("points_and_logits", point_coords=both, point_labels=pair, mask_input=fed_back)
    ask("points", point_coords=both, point_labels=pair)
    ask("box", box=box)
    ask("box_and_point", box=box, point_coords=first, point_labels=positive)
    return recorded


@torch.no_grad()
def record_medsam(model: Sam, picture: np.ndarray, box: np.ndarray) -> dict[str, np.ndarray]:
    square = transform.resize(picture, (SIDE, SIDE), order=3, preserve_range=True, anti_aliasing=True)
    square = square.astype(np.uint8)
    stretched = (square - square.min()) / np.clip(square.max() - square.min(), a_min=1e-8, a_max=None)
    features = model.image_encoder(torch.tensor(stretched).float().permute(2, 0, 1)[None])
    scaled = torch.tensor(box[None] / np.array([BREADTH, HEIGHT, BREADTH, HEIGHT]) * SIDE).float()
    sparse, dense = model.prompt_encoder(points=None, boxes=scaled[:, None], masks=None)
    logits, _ = model.mask_decoder(
        image_embeddings=features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    probability = F.interpolate(
        torch.sigmoid(logits), size=(HEIGHT, BREADTH), mode="bilinear", align_corners=False
    )
    return {
        "medsam/box/logits": logits[0, 0, ::STEP, ::STEP].numpy(),
        "medsam/box/mask": np.packbits(probability[0, 0].numpy() > 0.5),
    }


def main() -> None:
    torch.set_num_threads(1)
    DATA.mkdir(exist_ok=True)
    model = tiny_model()
    layouts = {"tiny for tests": shapes_of(model)}
    weights = seeded_weights(layouts["tiny for tests"])
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    picture = seeded_picture("sam", HEIGHT, BREADTH)
    box = np.array([BREADTH // 5, HEIGHT // 4, BREADTH * 3 // 4, HEIGHT * 4 // 5])
    recorded = record_sam(model, picture, box) | record_medsam(model, picture, box)
    np.savez_compressed(DATA / "sam_reference.npz", **recorded)
    with torch.device("meta"):
        layouts |= {kind: shapes_of(sam_model_registry[kind]()) for kind in ("vit_b", "vit_l", "vit_h")}
    with gzip.GzipFile(DATA / "sam_layouts.json.gz", "w", mtime=0) as file:
        file.write(json.dumps(layouts).encode())


if __name__ == "__main__":
    main()
