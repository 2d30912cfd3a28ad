"""Train the embedded policy: supervised, on states with errors, dense maps and text together.

    MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 THP_MEM_ALLOC_ENABLE=1 \\
        python runs/embedded_policy.py --minutes 90 --folder checkpoints/policy

One CPU thread; the environment keeps glibc from giving memory back at every step. A folder that
holds a checkpoint is gone on with. Left out: reinforcement learning on the policy's own episodes,
which starts from these weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from compositions import COMPOSED
from policy_data import WEIGHTS, Case, Propose, State, composed, draw, lesson, load
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ibisagent.actions import parse, pixel_from_coordinate
from ibisagent.datasets.biomedparse import data_root
from ibisagent.errors import InputError
from ibisagent.masks import error_regions
from ibisagent.policies.embedded import EmbeddedPolicy
from ibisagent.policies.embedded_model import EmbeddedPolicyNetwork, Seen, to_square
from ibisagent.policies.embedded_words import CELL, GRID, POINT_ENTRY, SIDE, Words
from ibisagent.render import paint
from ibisagent.targets import TARGETS
from ibisagent.types import Click, Mask, Observation


@dataclass
class Config:
    """Everything that a run is made of."""

    folder: Path = Path("checkpoints/policy")
    minutes: float = 90.0  # of training in all, resumed time included
    batch: int = 16
    small_side: int = 192  # pixels of the square in the first part
    small_share: float = 0.4  # its share of the time
    rate: float = 1.2e-3
    smooth: float = 0.998  # decay of the averaged weights
    seed: int = 0
    data: Path | None = None
    tool: Path | None = None  # weights of the embedded tool: its masks become states
    encoder: Path | None = None  # weights of the embedded tool: begin with its encoder
    begin: Path | None = None  # weights of the embedded policy to start from, where there is no checkpoint
    bf16: bool = torch.cpu._is_avx512_bf16_supported()
    fresh: bool = False  # go on with the checkpoint's weights but not with its optimiser's state
    every: float = 5.0  # minutes between checkpoints
    evaluate: float = 15.0  # minutes between evaluations on the validation patients


@dataclass
class Batch:
    """Tensors of B states."""

    image: Tensor  # B x 5 x 256 x 256
    target: Tensor  # B
    tokens: Tensor  # B x T, 0 pads
    cells: Tensor  # B x 4096, sums to 1 or 0
    names: Tensor  # B x targets x 64 x 64 in [0, 1]
    known: Tensor  # B x targets
    maps: Tensor  # B x 4 x 64 x 64 in [0, 1]
    present: Tensor  # B


def to_grid(mask: Mask | None) -> np.ndarray:
    """Share of each cell that a mask covers, float32 64 x 64."""
    square = np.zeros((SIDE, SIDE), np.float32)
    if mask is not None:
        square[: mask.shape[0], : mask.shape[1]] = mask
    return cv2.resize(square, (GRID, GRID), interpolation=cv2.INTER_AREA)


def collate(states: list[State], words: Words, rng: np.random.Generator) -> Batch:
    """States to tensors, with their lessons."""
    count = len(states)
    image = np.stack(
        [to_square(paint(state.picture.pixels, state.mask), state.picture.laterality) for state in states]
    )
    cells = np.zeros((count, GRID * GRID), np.float32)
    names = np.zeros((count, len(TARGETS), GRID, GRID), np.float32)
    known = np.zeros((count, len(TARGETS)), np.float32)
    maps = np.zeros((count, 4, GRID, GRID), np.float32)
    texts = []
    for row, state in enumerate(states):
        text, where = lesson(state, rng)
        ids = words.encode(text, state.picture.height, state.picture.width)
        texts.append([POINT_ENTRY if i >= len(words.entries) else i for i in ids])
        if where is not None:
            cells[row] = where.ravel()
        for name, mask in state.masks.items():
            names[row, TARGETS.index(name)] = to_grid(mask)
            known[row, TARGETS.index(name)] = 1
        known[row, [TARGETS.index(name) for name in state.absent]] = 1
        missed, included = error_regions(state.truth, state.mask)
        maps[row] = [to_grid(mask) for mask in (state.truth, state.mask, missed, included)]
    tokens = np.zeros((count, max(map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return Batch(
        image=torch.from_numpy(image).contiguous(memory_format=torch.channels_last),
        target=torch.tensor([TARGETS.index(state.target) for state in states]),
        tokens=torch.from_numpy(tokens),
        cells=torch.from_numpy(cells),
        names=torch.from_numpy(names),
        known=torch.from_numpy(known),
        maps=torch.from_numpy(maps),
        present=torch.tensor([float(state.truth.any()) for state in states]),
    )


def shrink(batch: Batch, side: int) -> Batch:
    """The same states on a smaller square."""
    grid = side // CELL
    cells = F.interpolate(batch.cells.view(-1, 1, GRID, GRID), size=(grid, grid), mode="area").flatten(1)
    smaller = F.interpolate(batch.image, size=(side, side), mode="bilinear", antialias=True)
    return replace(
        batch,
        image=smaller.contiguous(memory_format=torch.channels_last),
        cells=cells / cells.sum(1, keepdim=True).clamp(min=1e-9),
        names=F.interpolate(batch.names, size=(grid, grid), mode="area"),
        maps=F.interpolate(batch.maps, size=(grid, grid), mode="area"),
    )


def dense_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice where there is something; N x H x W to N."""
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return cross + 0.3 * dice * (truth.amax((1, 2)) > 0.3)


def losses(network: EmbeddedPolicyNetwork, batch: Batch, text_weight: float, bf16: bool) -> dict[str, Tensor]:
    """Named losses; their sum is what is minimised."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seen: Seen = network.see(batch.image, batch.target)
    seen = Seen(*(getattr(seen, field.name).float() for field in fields(Seen)))
    known = batch.known.bool()
    flat, truth = seen.names[known], batch.names[known]
    filled = truth.amax((1, 2)) > 0
    names = dense_loss(flat, truth)
    # Absent names are many and easy: each picture's present ones weigh as much as all others.
    weight = torch.where(filled, 1.0, 0.15)
    maps = dense_loss(seen.maps.flatten(0, 1), batch.maps.flatten(0, 1)).unflatten(0, (-1, 4)).mean(0)
    logits, states = network.write(seen, batch.tokens)
    word = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none").view_as(
        batch.tokens
    )
    real = batch.tokens != 0
    verdict = word[:, 1].mean()
    clicked = (batch.tokens == POINT_ENTRY).any(1)
    point = logits.new_zeros(())
    if clicked.any():
        at = (batch.tokens == POINT_ENTRY).float().argmax(1)
        picked = states[torch.arange(len(at)), at][clicked]
        part = Seen(*(getattr(seen, field.name)[clicked] for field in fields(Seen)))
        log_p = torch.log_softmax(network.point(part, picked), dim=1)
        goal = batch.cells[clicked]
        point = ((goal * torch.log(goal + 1e-9)) - goal * log_p).sum(1).mean()
    return {
        "names": 2.0 * (names * weight).sum() / weight.sum(),
        "target": 1.5 * maps[0],
        "painted": 0.7 * maps[1],
        "missed": 1.5 * maps[2],
        "included": 1.0 * maps[3],
        "present": 0.3 * F.binary_cross_entropy_with_logits(seen.present, batch.present),
        "words": text_weight * 0.6 * word[real].mean(),
        "verdict": text_weight * 0.6 * verdict,
        "point": text_weight * 0.3 * point,
    }


# --- evaluation on validation patients ------------------------------------------------------


def evaluate(
    policy: EmbeddedPolicy, cases: list[Case], propose: Propose | None
) -> dict[str, dict[str, float]]:
    """Per set: first click inside, verb right on masks with errors, clicks in their error region."""
    tally: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, case in enumerate(cases):
        rng = np.random.default_rng([77, number])
        plain = draw(case, rng, None, strength=0.0)
        for target, truth in plain.masks.items():
            score = tally[case.dataset]
            action = _act(policy, State(case, plain.picture, plain.masks, plain.absent, target, None))
            score["inside"].append(float(isinstance(action, Click) and _hits(action, truth)))
        for _ in range(2):
            state = draw(case, rng, propose, strength=0.0)
            text, _ = lesson(state, rng)
            wanted, action = parse(text, policy.verbs).action, _act(policy, state)
            kind = "absent" if not state.truth.any() else "bare" if state.mask is None else "mask"
            same = type(wanted) is type(action)
            tally[case.dataset][f"{kind}_verb"].append(float(same))
            if kind == "mask" and isinstance(action, Click):
                region = error_regions(state.truth, state.mask)[0 if action.positive else 1]
                tally[case.dataset]["useful"].append(float(_hits(action, region)))
    table = {
        name: {key: float(np.mean(values)) for key, values in row.items()} for name, row in tally.items()
    }
    keys = sorted({key for row in table.values() for key in row})
    table["mean over sets"] = {
        key: float(np.mean([row[key] for row in table.values() if key in row])) for key in keys
    }
    return table


def few_per_set(cases: list[Case], most: int) -> list[Case]:
    """The first cases of each set."""
    count: dict[str, int] = defaultdict(int)
    kept = []
    for case in cases:
        count[case.dataset] += 1
        if count[case.dataset] <= most:
            kept.append(case)
    return kept


def _act(policy: EmbeddedPolicy, state: State) -> object:
    observation = Observation(
        sample_id="",
        instruction=f"Find the {state.target} in this image.",
        image=paint(state.picture.pixels, state.mask),
        messages=(),
        mask=state.mask,
        clicks=(),
        verbs=policy.verbs,
        turn=1,
        attempt=0,
        seed=0,
        laterality=state.picture.laterality,
    )
    return parse(policy.act([observation])[0].text, policy.verbs).action


def _hits(click: Click, region: Mask) -> bool:
    row, column = (
        pixel_from_coordinate(click.y, region.shape[0]),
        pixel_from_coordinate(click.x, region.shape[1]),
    )
    return bool(region[row, column])


# --- the run --------------------------------------------------------------------------------


@torch.no_grad()
def follow(average: EmbeddedPolicyNetwork, network: EmbeddedPolicyNetwork, decay: float) -> None:
    """Exponential moving average of weights; buffers are copied."""
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def borrow_encoder(network: EmbeddedPolicyNetwork, weights: Path) -> None:
    """Begin with the tool's encoder."""
    state = {
        key.removeprefix("encoder."): value.float() if value.is_floating_point() else value
        for key, value in load_file(str(weights)).items()
        if key.startswith("encoder.")
    }
    network.encoder.load_state_dict(state)


def begin_with(network: EmbeddedPolicyNetwork, weights: Path, words: Words) -> None:
    """Begin with saved weights of the policy; words are matched by their text, new ones are learned."""
    with safe_open(str(weights), framework="pt") as stored:
        state = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118
        known = {entry: row for row, entry in enumerate(json.loads(stored.metadata()["words"]))}
    rows = network.words.weight.detach().clone()
    for row, entry in enumerate(words.entries):
        if entry in known:
            rows[row] = state["words.weight"][known[entry]]
    state["words.weight"] = rows
    network.load_state_dict(state)


def tool_masks(weights: Path | None) -> Propose | None:
    """States from the tool's own masks, where its weights are there."""
    if weights is None:
        return None
    if not weights.is_file():
        raise InputError("--tool is a file of the tool's weights", f"{weights.name}: no such file")
    from policy_tool_masks import ToolMasks

    try:
        return ToolMasks(weights)
    except InputError as error:  # the tool's own training may be writing the file just now
        print(f"the tool's masks are left out for now: {error}", flush=True)
        return None


def main(config: Config) -> None:
    torch.set_num_threads(1)
    os.nice(5)
    torch.manual_seed(config.seed)
    root = data_root(config.data)
    words = Words.build()
    network = EmbeddedPolicyNetwork(len(TARGETS), len(words.entries)).to(memory_format=torch.channels_last)
    if config.begin:
        begin_with(network, config.begin, words)
    if config.encoder:
        borrow_encoder(network, config.encoder)
    average = copy.deepcopy(network)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))
    step, spent = 0, 0.0
    checkpoint = config.folder / "last.pt"
    config.folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        stored = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(stored["network"], strict=not config.fresh)
        average.load_state_dict(stored["average"], strict=not config.fresh)
        if not config.fresh:
            optimiser.load_state_dict(stored["optimiser"])
        step, spent = stored["step"], stored["spent"]
        print(f"resumed at step {step}, {spent:.1f} min", flush=True)
    by_set: dict[str, list[Case]] = defaultdict(list)
    for case in load(root, "train"):
        by_set[case.dataset].append(case)
    validation = few_per_set(load(root, "val"), 12)
    sets = list(by_set)
    chances = np.array([WEIGHTS[name] for name in sets])
    chances /= chances.sum()
    propose = tool_masks(config.tool)
    first = step if config.fresh else 0
    began, running = time.monotonic() - 60 * spent, defaultdict(float)
    saved = evaluated = spent
    network.train()
    while spent < config.minutes:
        rng = np.random.default_rng([config.seed, step])
        drawn = [by_set[sets[int(i)]] for i in rng.choice(len(sets), config.batch, p=chances)]
        chosen = [cases[int(rng.integers(len(cases)))] for cases in drawn]
        chosen = [
            composed(case, cases, rng) if case.dataset in COMPOSED else case
            for case, cases in zip(chosen, drawn, strict=True)
        ]
        states = [draw(case, rng, propose) for case in chosen]
        batch = collate(states, words, rng)
        progress = spent / config.minutes
        if progress < config.small_share:
            batch = shrink(batch, config.small_side)
        rate = (
            config.rate
            * min(1.0, (step - first + 1) / 100)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        parts = losses(network, batch, min(1.0, 0.25 + step / 1500), config.bf16)
        total = sum(parts.values(), torch.zeros(()))
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        step += 1
        follow(average, network, min(config.smooth, 1 - 10 / (step + 10)))
        spent = (time.monotonic() - began) / 60
        for key, value in parts.items():
            running[key] += value.item()
        if step % 50 == 0:
            line = " ".join(f"{key} {value / 50:.3f}" for key, value in running.items())
            print(f"{spent:6.1f} min step {step} rate {rate:.2e} | {line}", flush=True)
            running.clear()
        last = spent >= config.minutes
        if spent - saved >= config.every or last:
            state = {"network": network.state_dict(), "average": average.state_dict()}
            state |= {"optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            EmbeddedPolicy(copy.deepcopy(average), words).save(config.folder / "policy.safetensors")
            propose = tool_masks(config.tool) or propose
            saved = spent
        if spent - evaluated >= config.evaluate or last:
            policy = EmbeddedPolicy(copy.deepcopy(average), words)
            for name, row in evaluate(policy, validation, None).items():
                figures = " ".join(f"{key} {value:.2f}" for key, value in sorted(row.items()))
                print(f"  val {name}: {figures}", flush=True)
            evaluated = spent


if __name__ == "__main__":
    main(tyro.cli(Config))
