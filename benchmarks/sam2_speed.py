"""Time of the SAM 2 tool on this machine: encode one picture, answer one click.

    python benchmarks/sam2_speed.py [--size 512] [--repeats 5] [--device cpu]

The model is hiera-tiny (SAM 2.1's published layout, also MedSAM2's) with random weights, converted
from the original layout. The time of a pass does not depend on the values.

With the original implementation beside it, both answer the same requests in turn, so that a busy
machine is as unkind to the one as to the other:

    git clone https://github.com/facebookresearch/sam2 && git -C sam2 checkout 2b90b9f
    pip install --no-deps --target extra torchvision iopath portalocker hydra-core omegaconf \\
        antlr4-python3-runtime==4.9.3 tqdm
    python benchmarks/sam2_speed.py --original sam2 extra

The folders are put on the import path only after transformers has been imported, which would
otherwise import torchvision too and fail next to a CPU build of torch.
"""

import argparse
import gzip
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ibisagent.tools.sam2 import load_sam2
from ibisagent.types import Click, Picture, Tool, ToolRequest

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = ROOT / "tests" / "tools" / "data" / "sam2_layouts.json.gz"


def random_state() -> dict[str, torch.Tensor]:
    shapes = json.loads(gzip.decompress(LAYOUTS.read_bytes()))["sam2.1_hiera_t"]
    generator = torch.Generator().manual_seed(0)
    return {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def original_predictor(folders: list[str], state: dict[str, torch.Tensor], size: int, device: str) -> Any:
    """The original image predictor with the same weights."""
    sys.path[:0] = folders
    package = types.ModuleType("torchvision")
    package.__path__ = list(importlib.util.find_spec("torchvision").submodule_search_locations)
    sys.modules["torchvision"] = package
    import sam2
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    config = OmegaConf.load(Path(sam2.__path__[0]) / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml").model
    config.image_size = size
    model = instantiate(config).eval().to(device)
    model.load_state_dict(state)
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(size // stride, size // stride) for stride in (4, 8, 16)]
    return predictor


def calls_for(pixels: np.ndarray, tool: Tool, predictor: Any) -> dict[str, Callable[[], object]]:
    """What is timed on one picture, in this order."""
    picture = Picture(pixels)
    request = ToolRequest(picture, (Click(0.4, 0.5, True),))
    calls: dict[str, Callable[[], object]] = {
        "ours: encode": lambda: tool.set_image([picture]),
        "ours: click": lambda: tool.predict([request]),
    }
    if predictor is not None:
        point = {"point_coords": np.array([[120, 242]]), "point_labels": np.array([1])}
        calls["original: encode"] = lambda: predictor.set_image(pixels)
        calls["original: click"] = lambda: predictor.predict(multimask_output=True, **point)
    return calls


def seconds(call: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, choices=(512, 1024))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--original", nargs="+", default=[], metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    state = random_state()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        torch.save({"model": state}, path)
        began = time.perf_counter()
        tool = load_sam2(str(path), options.size, options.device)
        loading = time.perf_counter() - began
    predictor = None
    if options.original:
        predictor = original_predictor(options.original, state, options.size, options.device)
    draw = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):  # the first one warms up and is not counted
        pixels = draw.integers(0, 255, (484, 300, 3), dtype=np.uint8)
        for name, call in calls_for(pixels, tool, predictor).items():
            spent = seconds(call, options.device)
            if repeat:
                times.setdefault(name, []).append(spent)
    print(f"{tool.name} on {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"loading and converting {loading:.2f} s")
    for name, values in times.items():
        print(
            f"{name:17} median {statistics.median(values) * 1000:7.1f} ms, least {min(values) * 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
