"""Choose when the embedded policy acts: shifts of its verdicts, on the validation patients.

    python runs/calibrate_policy.py --weights checkpoints/policy/policy.safetensors --out weights.safetensors

From the tool's proposal (and from the bare picture) every verdict is tried once per case, and the
IoU that it leads to is noted. The shifts of the verdicts' logits that would have given the best
set-macro IoU of this one turn are stored with the weights. Left out: later turns, which
`ibisagent evaluate DATA --split val --policy embedded:FILE` judges; shifts chosen with it are
stored by `--shifts`.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from safetensors import safe_open
from safetensors.torch import save_file

from ibisagent.actions import parse
from ibisagent.datasets.biomedparse import data_root, list_datasets, read_index, samples_of, split_of
from ibisagent.masks import iou
from ibisagent.policies.embedded import EmbeddedPolicy
from ibisagent.render import view_image
from ibisagent.synthesis.reasoning import VERDICTS, Situation
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.types import Click, Mask, Observation, Sample, ToolReply, ToolRequest, Undo

ON_MASKS: tuple[Situation, ...] = ("good", "missed", "included", "elsewhere", "phantom")
ON_BARE: tuple[Situation, ...] = ("bare", "absent")


@dataclass
class Config:
    """Settings of one calibration."""

    weights: Path  # of the policy
    out: Path  # where the weights go, with the shifts
    tool: Path | None = None  # weights of the tool, instead of the packaged ones
    pictures: int = 12  # per set at most
    absent: int = 1  # absent targets asked per picture
    shifts: dict[str, float] = field(default_factory=dict)  # by verdict; where given, nothing is searched
    absent_weight: float = 0.3  # of the absent cases' mean against the set-macro of the present ones


@dataclass
class Trial:
    """One picture, target and state: what every verdict would lead to."""

    dataset: str
    present: bool
    logits: dict[Situation, float]
    values: dict[Situation, float]  # IoU after the verdict's action


class Trials:
    """Tries verdicts with one pair of policy and tool."""

    def __init__(self, weights: Path, tool: Path | None) -> None:
        self._tool = EmbeddedTool.load(tool)
        self._plain = EmbeddedPolicy.load(weights)
        self._forced = {name: EmbeddedPolicy.load(weights) for name in VERDICTS}
        for name, policy in self._forced.items():
            policy.shift_verdicts({VERDICTS[name]: 1000.0})
        self._plain.shift_verdicts({})

    def state(self, sample: Sample, reply: ToolReply | None) -> Trial:
        """Every verdict on one state; `reply` None is the bare picture."""
        truth = sample.truth
        assert truth is not None
        mask = reply.mask if reply is not None and reply.mask is not None and reply.mask.any() else None
        observation = self._observation(sample, mask)
        choices = ON_BARE if mask is None else ON_MASKS
        logits = self._plain.verdict_logits(observation)
        values = {name: self._after(sample, observation, reply, mask, name) for name in choices}
        kept = {name: logits[VERDICTS[name]] for name in choices}
        return Trial(sample.dataset or "", bool(truth.any()), kept, values)

    def propose(self, sample: Sample) -> ToolReply:
        return self._tool.propose([ToolRequest(sample.picture, instruction=sample.instruction)])[0]

    def _observation(self, sample: Sample, mask: Mask | None) -> Observation:
        image = view_image(sample.picture, mask, self._plain.view)
        verbs = self._plain.verbs
        return Observation(sample.sample_id, sample.instruction, image, (), mask, (), verbs, 1, 0, seed=0)

    def _after(
        self,
        sample: Sample,
        observation: Observation,
        reply: ToolReply | None,
        mask: Mask | None,
        name: Situation,
    ) -> float:
        truth = sample.truth
        assert truth is not None
        empty = np.zeros_like(truth)
        policy = self._forced[name]
        action = parse(policy.act([observation])[0].text, policy.verbs).action
        if isinstance(action, Undo):  # then the picture is bare; the policy goes on as it is
            observation, reply, mask = self._observation(sample, None), None, None
            action = parse(self._plain.act([observation])[0].text, policy.verbs).action
        if not isinstance(action, Click) or (mask is None and not action.positive):
            return iou(truth, empty if mask is None else mask)
        logits = reply.low_res_logits if reply is not None and mask is not None else None
        request = ToolRequest(sample.picture, (action,), (), logits, None, sample.instruction)
        after = self._tool.predict([request])[0].mask
        assert after is not None
        return iou(truth, after)


def gain(trials: list[Trial], shifts: dict[Situation, float], absent_weight: float) -> float:
    """Set-macro IoU after one turn with these shifts, plus the weighted mean over absent targets."""
    present: dict[str, list[float]] = defaultdict(list)
    absent: list[float] = []
    for trial in trials:
        said = max(trial.logits, key=lambda name: trial.logits[name] + shifts.get(name, 0.0))
        (present[trial.dataset] if trial.present else absent).append(trial.values[said])
    macro = float(np.mean([np.mean(values) for values in present.values()]))
    return macro + absent_weight * (float(np.mean(absent)) if absent else 0.0)


def search(trials: list[Trial], names: tuple[Situation, ...], absent_weight: float) -> dict[Situation, float]:
    """Coordinate search, the smallest shifts first among equals."""
    shifts: dict[Situation, float] = dict.fromkeys(names, 0.0)
    steps = sorted(np.arange(-5.0, 5.01, 0.25).tolist(), key=abs)
    for _, name in itertools.product(range(3), names[1:]):
        tried = [
            (gain(trials, {**shifts, name: step}, absent_weight) - 1e-3 * abs(step), step) for step in steps
        ]
        shifts[name] = max(tried, key=lambda pair: pair[0])[1]
    return shifts


def main(config: Config) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shifts = config.shifts or searched(config)
    with safe_open(str(config.weights), framework="pt") as stored:
        metadata = dict(stored.metadata())
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    metadata["verdict_bias"] = json.dumps(shifts)
    save_file(tensors, str(config.out), metadata)
    config.out.chmod(0o644)
    print(shifts)


def searched(config: Config) -> dict[str, float]:
    """Shifts by verdict from trials on validation pictures; prints what every verdict leads to."""
    trials = Trials(config.weights, config.tool)
    masks: list[Trial] = []
    bares: list[Trial] = []
    root = data_root()
    for dataset in list_datasets(root):
        records = [one for one in read_index(root, dataset, "train") if split_of(one.patient) == "val"]
        for record in records[:: max(1, len(records) // config.pictures)][: config.pictures]:
            missing = 0
            for sample in samples_of(record, absent=True):
                assert sample.truth is not None
                missing += not sample.truth.any()
                if not sample.truth.any() and missing > config.absent:
                    continue
                reply = trials.propose(sample)
                if reply.mask is not None and reply.mask.any():
                    masks.append(trials.state(sample, reply))
                bares.append(trials.state(sample, None))
    shifts: dict[str, float] = {}
    for label, found, names in (("masks", masks, ON_MASKS), ("bare", bares, ON_BARE)):
        chosen = search(found, names, config.absent_weight)
        before, after = (gain(found, one, config.absent_weight) for one in ({}, chosen))
        stop = gain(found, {names[0]: 1000.0}, config.absent_weight)
        best = float(np.mean([max(trial.values.values()) for trial in found]))
        print(
            f"{label}: {len(found)} states, always {names[0]} {stop:.3f}, as trained {before:.3f}", end=", "
        )
        print(f"shifted {after:.3f} (with {config.absent_weight} x absent); best verdict per case {best:.3f}")
        for name in names:
            each = np.array(
                [[trial.values[name], trial.values[names[0]]] for trial in found if trial.present]
            )
            better = float(np.mean(each[:, 0] > each[:, 1] + 1e-6))
            print(
                f"  {name}: shift {chosen[name]:+.2f}, mean IoU if always {each[:, 0].mean():.3f}", end=", "
            )
            print(f"better than {names[0]} in {better:.2f} of the present cases")
        shifts |= {VERDICTS[name]: value for name, value in chosen.items() if value}
    return shifts


if __name__ == "__main__":
    main(tyro.cli(Config))
