"""Two processes (gloo, through torchrun) make the gradient of one, for both stages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthesis.made_data import make_set
from training.made_training import PICTURES, make_trajectories

SCRIPT = """
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from synthesis.made_data import make_set
from training.made_training import rl, sft

from ibisagent.training.grpo import examples_with_advantages
from ibisagent.training.loss import policy_loss
from ibisagent.training.optimiser import Optimiser
from ibisagent.training.policy import claim, load_trainable
from ibisagent.training.sft import Trajectories, _cross_entropy, _cut

torch.set_num_threads(1)
stage, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
command = sft(data, out) if stage == "sft" else rl(data, out)
trainable = load_trainable(command.model, temperature=1.0)
optimiser = Optimiser(trainable, command.optimisation, out, 1)
if stage == "sft":
    texts = Trajectories(data, trainable, None)
    claim(out, "sft", asdict(command), optimiser.rank, data=texts.files())
    texts.check(out, optimiser, __import__("rich.console").console.Console(stderr=True))
    examples = [texts.example(item) for item in range(7)]
    loss = _cross_entropy
else:
    recorded = torch.load(data, weights_only=False)  # written by the test
    examples = [e for group in recorded for e in examples_with_advantages(group, "episode", "none")]

    def loss(_, log_probs, batch):
        before = log_probs.detach() - 0.1
        return policy_loss(log_probs, before, batch.weights, batch.mask, tokens=1.0).loss

mine = examples[optimiser.rank :: optimiser.world]
optimiser._optimiser.step = lambda: None
kept = {}
def keep():
    kept.update({n: p.grad.clone() for n, p in trainable.module.named_parameters() if p.grad is not None})
optimiser._optimiser.zero_grad = keep
stepped = optimiser.step(0, list(_cut(mine, 2)), loss)
if optimiser.rank == 0:
    torch.save({"gradient": kept, "loss": stepped.loss, "tokens": stepped.tokens}, out / f"world{optimiser.world}.pt")
optimiser.close()
"""


def gradient(stage: str, data: Path, out: Path, processes: int) -> dict:
    script = out / "step.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parents[1])
    start = [sys.executable, str(script)]
    if processes > 1:
        start = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node", str(processes), str(script),
        ]  # fmt: skip
    paths = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, stage, str(data), str(out)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / f"world{processes}.pt", weights_only=True)


def recorded_rollouts(folder: Path) -> Path:
    """Two groups, played once; both worlds train on the same texts.

    The pictures fill the square: in a wide padding all pixels are alike, and where rounding moves one
    over the kink of a ReLU it moves them all (6.7e-5 with pictures that leave 95 % of it empty).
    """
    from training.made_training import rl

    from ibisagent.training.policy import load_trainable
    from ibisagent.training.rounds import Round

    command = rl(make_set(folder / "data", PICTURES, enlarged=4), folder)
    round_ = Round(command, load_trainable(command.model, temperature=1.0))
    groups = round_.groups([round_.drawer.draw(0, place) for place in range(2)], round_.settings)
    torch.save(groups, folder / "rollouts.pt")
    return folder / "rollouts.pt"


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_two_processes_make_the_gradient_of_one(stage: str, tmp_path: Path) -> None:
    data = make_trajectories(tmp_path) if stage == "sft" else recorded_rollouts(tmp_path)
    one, two = (gradient(stage, data, tmp_path, processes) for processes in (1, 2))
    assert one["tokens"] == two["tokens"] > 100
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    difference = sum(float(((one["gradient"][n] - two["gradient"][n]) ** 2).sum()) for n in one["gradient"])
    size = sum(float((one["gradient"][n] ** 2).sum()) for n in one["gradient"])
    assert one["gradient"].keys() == two["gradient"].keys() and size > 0
    assert (difference / size) ** 0.5 < 1e-5
