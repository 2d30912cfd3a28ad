"""Passes exported trajectories through the loaders of TRL, verl and LLaMA-Factory.

    python benchmarks/export_consumers.py

Needs the development install; each library that is not installed is named and skipped. verl and
LLaMA-Factory are only imported for their loaders: what else they import (tensordict, torchaudio and the
like) may be missing and is then replaced by an empty module. Exit code 1 where a check fails.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "policies")]


def make_log(folder: Path) -> Path:
    """A log with trajectories of all kinds on a synthetic picture, made with the classical tool."""
    from dataclasses import replace

    from conftest import disc

    from ibisagent.episodes import write_episodes
    from ibisagent.settings import Settings
    from ibisagent.synthesis.trajectories import Mix, Teaching, plan, trajectories
    from ibisagent.tools.classical import ClassicalTool
    from ibisagent.types import BASE_VERBS, Picture, Sample, Verb

    truth, other = disc(96, 128, 40, 50, 18), disc(96, 128, 66, 98, 14)
    grey = (50 + 110 * truth + 60 * other).astype(np.uint8)
    sample = Sample("SET/1", Picture(np.repeat(grey[..., None], 3, axis=2)), "Find the disc.", "disc", truth)
    settings, episodes = Settings(verbs=BASE_VERBS | {Verb.UNDO}, max_turns=8), []
    for kind in ("plain", "self_correction", "wrong_start", "stop"):
        shares = dict.fromkeys(("plain", "self_correction", "wrong_start", "stop", "absent"), 0.0)
        teaching = Teaching(mix=Mix(**(shares | {kind: 1.0})))
        one = replace(sample, sample_id=f"SET/{kind}")
        episodes += trajectories([plan(one, [other], teaching, 0)], ClassicalTool(), teaching, settings)
    write_episodes(folder / "log.jsonl", episodes)
    return folder / "log.jsonl"


def exported(log: Path, to: Any, unit: Any) -> Path:
    from ibisagent.synthesis.export import Export, run

    out = log.parent / f"{to}-{unit}"
    run(Export(log, out, to, unit))
    return out


def missing(*names: str) -> None:
    """Empty modules in place of packages that are not installed."""
    for name in names:
        package = name.split(".")[0]
        if isinstance(sys.modules.get(package), MagicMock) or importlib.util.find_spec(package) is None:
            module = MagicMock(name=name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []
            sys.modules[name] = module


def through_trl(log: Path, unit: str) -> str:
    from datasets import Image, List, load_dataset
    from tiny_qwen import write_checkpoint
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from ibisagent.policies.qwen_processor import load_processor

    out = exported(log, "messages", unit)
    cache = str(log.parent / "cache")
    table = load_dataset("json", data_files=str(out / "data.jsonl"), split="train", cache_dir=cache)
    table = table.map(lambda row: {"images": [str(out / path) for path in row["images"]]})
    table = table.cast_column("images", List(Image()))
    processor = load_processor(str(write_checkpoint(log.parent / f"tiny-{unit}")))
    batch = DataCollatorForVisionLanguageModeling(processor, max_length=None)(list(table))
    tokens = int((batch["input_ids"] == processor.image_token_id).sum())
    features = int((batch["image_grid_thw"].prod(-1) // processor.image_processor.merge_size**2).sum())
    pictures = sum(len(row["images"]) for row in table)
    assert tokens == features and pictures == len(batch["image_grid_thw"])
    return f"{len(table)} rows, {pictures} pictures, {tokens} image tokens"


def through_verl(log: Path, unit: str) -> str:
    missing("tensordict", "torchdata", "codetiming", "hydra", "ray", "torchdata.stateful_dataloader")
    missing("tensordict.tensorclass")
    from omegaconf import OmegaConf
    from tiny_qwen import write_checkpoint
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from ibisagent.policies.qwen_processor import load_processor

    out = exported(log, "verl", unit)
    processor = load_processor(str(write_checkpoint(log.parent / f"tiny-verl-{unit}")))
    config = {
        "prompt_key": "prompt",
        "image_key": "images",
        "max_prompt_length": 4096,
        "filter_overlong_prompts": False,
        "cache_dir": str(log.parent / "cache"),
        "return_raw_chat": True,
    }
    data = str(out / "data.parquet")
    table = RLHFDataset(data, processor.tokenizer, OmegaConf.create(config), processor)
    for index in range(len(table)):
        contents = [message["content"] for message in table[index]["raw_prompt"]]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        assert sum(block["type"] == "image" for block in blocks) == 1
    return f"{len(table)} rows"


def through_llamafactory(log: Path, unit: str) -> str:
    missing("torchaudio", "av", "librosa")
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # of transformers; the loader works with newer ones
    from datasets import load_dataset
    from llamafactory.data.converter import align_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments

    out = str(exported(log, "llamafactory", unit))
    [attributes] = get_dataset_list(["ibisagent"], out)
    cache = str(log.parent / "cache")
    table = load_dataset(
        "json", data_files=f"{out}/{attributes.dataset_name}", split="train", cache_dir=cache
    )
    training: Any = MagicMock(local_process_index=0, should_log=False)
    aligned = align_dataset(table, attributes, DataArguments(dataset_dir=out, media_dir=out), training)
    for row in aligned:
        markers = sum(message["content"].count("<image>") for message in row["_prompt"] + row["_response"])
        assert markers == len(row["_images"]) >= 1 and row["_system"] and row["_response"]
        assert all(Path(path).is_file() for path in row["_images"])
    return f"{len(aligned)} rows"


def main() -> int:
    failed = False
    loaders = {"trl": through_trl, "verl": through_verl, "llamafactory": through_llamafactory}
    for name, through in loaders.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed, skipped")
            continue
        for unit in ("turns", "episodes"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    print(f"{name}, {unit}: {through(make_log(Path(folder)), unit)}")
                except Exception as error:
                    failed = True
                    print(f"{name}, {unit}: {type(error).__name__}: {str(error)[:200]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
