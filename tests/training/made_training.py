"""A small data set, trajectories of it, and runs that are small enough for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from synthesis.made_data import make_set

from ibisagent.policies.embedded import Calibration, EmbeddedPolicy
from ibisagent.synthesis import synthesize
from ibisagent.synthesis.reasoning import VERDICTS
from ibisagent.training.grpo import TrainRl
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import PolicyToTrain
from ibisagent.training.sft import TrainSft

PICTURES = 16  # so that one is of a validation patient


def make_trajectories(folder: Path) -> Path:
    """Trajectories of all kinds with the classical tool."""
    data = make_set(folder / "data", PICTURES)
    out = folder / "trajectories"
    command = synthesize.Synthesize(data, out, tool="classical", keep_unreached=True, hold_out=False)
    assert synthesize.run(command) == 0
    return out


def sft(data: Path, out: Path, **changes: Any) -> TrainSft:
    """A run of four steps on four texts each."""
    optimisation = Optimisation(lr=1e-4, micro_batch=2, save_every=1)
    command = TrainSft(data, out, steps=4, batch=4, optimisation=optimisation)
    return replace(command, **changes)


def clicking_policy(folder: Path) -> str:
    """The packaged policy, kept from saying that discs are no organs."""
    file = folder / "clicking.safetensors"
    if not file.exists():  # processes of one run would write it at the same time
        policy = EmbeddedPolicy.load()
        policy.calibrate(Calibration(verdicts={VERDICTS["absent"]: -50.0}))
        policy.save(file)
    return f"embedded:{file}"


def rl(data: Path, out: Path, **changes: Any) -> TrainRl:
    """A run of three rounds of two groups of three with the embedded pair, encoder frozen."""
    command = TrainRl(
        data,
        out,
        tool="classical",
        steps=3,
        groups=2,
        group=3,
        max_turns=3,
        validate_every=2,
        validate_per_set=2,
        record_every=2,
        model=PolicyToTrain(
            policy=clicking_policy(data if data.is_dir() else data.parent), freeze_vision=True
        ),
        optimisation=Optimisation(lr=1e-4, micro_batch=4, save_every=1, schedule="constant"),
    )
    return replace(command, **changes)


def curve(out: Path, *names: str) -> list[tuple[float, ...]]:
    """The named columns of a run's metrics, step by step."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[name] for name in ("step", *names)) for line in lines]


def empty_masks(data: Path, target: str, pictures: int) -> None:
    """Leave nothing of a target in the first pictures that list it, as a label map without its value."""
    for file in sorted((data / "SET/train_mask").glob(f"*_{target}.png"))[:pictures]:
        Image.new("1", Image.open(file).size).save(file)


def listing_nothing_absent(data: Path) -> Path:
    """The index as a label map would give it: what is absent shows by empty masks alone."""
    index = data / "SET/train.json"
    images = json.loads(index.read_text())["images"]
    index.write_text(json.dumps({"images": [{**image, "absent": []} for image in images]}))
    return data
