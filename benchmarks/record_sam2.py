"""Record what the original SAM 2 answers, for tests/tools/test_sam2.py.

Runs in an environment of its own, never in this package's:

    git clone https://github.com/facebookresearch/sam2 && git -C sam2 checkout 2b90b9f
    python -m venv ref && ref/bin/pip install torch==2.13.0 numpy pillow iopath hydra-core tqdm
    ref/bin/pip install --no-deps torchvision
    PYTHONPATH=sam2 ref/bin/python benchmarks/record_sam2.py

Writes tests/tools/data/sam2_reference.npz (answers of a tiny seeded model at 512 and 1024) and
sam2_layouts.json.gz (names and shapes of all weights of the tiny and the published models).

The model is the original SAM2Base, built from the original configuration file with small widths,
behind the original SAM2ImagePredictor. That predictor has the feature sizes of a 1024 px model
written into it; for 512 they are set on the instance.
"""

import gzip
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "tools" / "data"
sys.path.insert(0, str(ROOT / "tests" / "tools"))

# The registry's torchvision is built for CUDA and does not import next to a CPU build of torch;
# the original needs its transforms only, which are plain Python.
_spec = importlib.util.find_spec("torchvision")
_package = types.ModuleType("torchvision")
_package.__path__ = list(_spec.submodule_search_locations)
sys.modules["torchvision"] = _package

import sam2  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: E402
from seeded_weights import seeded_picture, seeded_weights  # noqa: E402

CONFIGS = Path(sam2.__path__[0]) / "configs"
WIDTH, HIDDEN = 16, 32
PICTURES = {512: (600, 700), 1024: (72, 96)}  # height, width: one is shrunk, one enlarged
KEEP = {512: 4, 1024: 8}  # every how many low-resolution rows and columns are recorded


def original_config(version: str, letter: str) -> OmegaConf:
    return OmegaConf.load(CONFIGS / version / f"{version}_hiera_{letter}.yaml").model


def tiny_config(size: int) -> OmegaConf:
    config = original_config("sam2.1", "t")
    config.image_size = size
    trunk, neck = config.image_encoder.trunk, config.image_encoder.neck
    trunk.embed_dim, trunk.stages, trunk.global_att_blocks = WIDTH, [1, 1, 2, 1], [3]
    neck.d_model = neck.position_encoding.num_pos_feats = HIDDEN
    neck.backbone_channel_list = [WIDTH * 8, WIDTH * 4, WIDTH * 2, WIDTH]
    memory = config.memory_attention
    memory.d_model = memory.layer.d_model = HIDDEN
    memory.layer.self_attention.embedding_dim = memory.layer.cross_attention.embedding_dim = HIDDEN
    config.memory_encoder.in_dim = config.memory_encoder.fuser.layer.dim = HIDDEN
    config.memory_encoder.mask_downsampler.embed_dim = HIDDEN
    config.sam_mask_decoder_extra_args = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    return config


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def record(size: int) -> dict[str, np.ndarray]:
    model = instantiate(tiny_config(size)).eval()
    weights = seeded_weights(shapes_of(model))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(size // stride, size // stride) for stride in (4, 8, 16)]
    height, width = PICTURES[size]
    predictor.set_image(seeded_picture(f"sam2 {size}", height, width))

    first = np.array([[width * 3 // 10, height * 6 // 10]])
    second = np.array([[width * 8 // 10, height * 2 // 10]])
    box = np.array([width // 5, height // 4, width * 3 // 4, height * 4 // 5])
    both = np.concatenate([first, second])
    recorded = {}

    def ask(case: str, several: bool = False, **prompts: np.ndarray) -> np.ndarray:
        masks, ious, low_res = predictor.predict(multimask_output=several, **prompts)
        best = int(ious.argmax())
        step = KEEP[size]
        recorded[f"{size}/{case}/iou"] = ious.astype(np.float32)
        recorded[f"{size}/{case}/logits"] = low_res[best][::step, ::step].astype(np.float32)
        recorded[f"{size}/{case}/mask"] = np.packbits(masks[best].astype(bool)[::3, ::3])
        print(size, case, ious.round(4), f"logits {low_res.min():.2f} to {low_res.max():.2f}", end=" ")
        stability = (low_res[best] > 0.05).sum() / (low_res[best] > -0.05).sum()
        print(f"mask {masks[best].mean():.3f} stability {stability:.3f}")
        return low_res[best : best + 1]

    positive, pair = np.array([1]), np.array([1, 0])
    fed_back = ask("point", several=True, point_coords=first, point_labels=positive)
    ask("points_and_logits", point_coords=both, point_labels=pair, mask_input=fed_back)
    ask("points", point_coords=both, point_labels=pair)
    ask("box", box=box)
    ask("box_and_point", box=box, point_coords=first, point_labels=positive)
    return recorded


def main() -> None:
    torch.set_num_threads(1)
    DATA.mkdir(exist_ok=True)
    recorded: dict[str, np.ndarray] = {}
    for size in PICTURES:
        recorded |= record(size)
    np.savez_compressed(DATA / "sam2_reference.npz", **recorded)
    layouts = {"tiny for tests": shapes_of(instantiate(tiny_config(512)))}
    for version in ("sam2", "sam2.1"):
        for letter in ("t", "s", "b+", "l"):
            layouts[f"{version}_hiera_{letter}"] = shapes_of(instantiate(original_config(version, letter)))
    with gzip.GzipFile(DATA / "sam2_layouts.json.gz", "w", mtime=0) as file:
        file.write(json.dumps(layouts).encode())


if __name__ == "__main__":
    main()
