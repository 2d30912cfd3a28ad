"""Train the embedded tool from scratch on one CPU thread; resumable.

    MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 THP_MEM_ALLOC_ENABLE=1 \
        python runs/embedded_tool.py

(The environment keeps glibc from returning and faulting in the same memory at every step: 1.4x.)
The first part runs on smaller frames; convolutions run in bf16 where the CPU has instructions for
it (2x faster; without them it would be 5x slower). Left out: several processes, GPUs.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from embedded_tool_data import (
    Augmenter,
    Donors,
    Example,
    Item,
    donors_of,
    draw_items,
    early_clicks,
    error_click,
    load_corpus,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ibisagent.datasets.biomedparse import data_root
from ibisagent.targets import TARGETS
from ibisagent.tools.embedded import EmbeddedTool
from ibisagent.tools.embedded_model import NO_MASK, OWN_LOGITS, START_MASK, EmbeddedNetwork


@dataclass
class Config:
    """Settings of one training run."""

    out: Path = Path(".cache/embedded_tool")  # checkpoints, log and exported weights
    begin: Path | None = None  # exported weights to start from, where there is no checkpoint
    minutes: float = 98.0  # training time over all resumed runs; the learning rate decays to 0 with it
    small_frame: int = 192  # frame of the first part
    small_share: float = 0.62  # its share of the time
    frame: int = 256
    batch: int = 16
    rows: int = 2  # targets per picture
    lr: float = 1.5e-3
    decay: float = 0.03
    ema: float = 0.99
    seed: int = 0
    single_pass: bool = False  # names alone, no click ever: the agent's rival of the card
    without: tuple[str, ...] = ()  # sets that are not trained on, to see what an unknown one gets
    bf16: bool = torch.cpu._is_avx512_bf16_supported()
    save_minutes: float = 5.0
    validate_minutes: float = 12.0
    validate_cases: int = 160


def jaccard_loss(probability: Tensor, truth: Tensor, smooth: float) -> Tensor:
    """Soft 1 - IoU per row for coverage in [0, 1] (Wang et al. 2023, Jaccard metric losses)."""
    distance = (probability - truth).abs().flatten(1).sum(1)
    total = (probability + truth).flatten(1).sum(1)
    return 1 - ((total - distance) / 2 + smooth) / ((total + distance) / 2 + smooth)


def cross_entropy(logits: Tensor, truth: Tensor, valid: Tensor, share: float) -> Tensor:
    """Mean per row over the last two axes, where the target's pixels weigh 5, or more in small targets.

    They weigh so much that they make up about `share`, at most 40: where nothing says where a small
    target is, plain cross-entropy learns "nowhere" and stays there.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    rarity = share * valid.sum((-2, -1)) / truth.sum((-2, -1)).clamp(min=1)
    weight = 1 + (rarity.clamp(5, 40) - 1)[..., None, None] * truth
    return (entropy * weight).sum((-2, -1)) / (valid * weight).sum((-2, -1))


def mask_loss(logits: Tensor, truth: Tensor, valid: Tensor, blind: Tensor) -> Tensor:
    """Cross-entropy plus Jaccard loss per row; N x G x G, `blind` N: no click yet."""
    entropy = torch.where(
        blind, cross_entropy(logits, truth, valid, 0.25), cross_entropy(logits, truth, valid, 0.0)
    )
    return 2 * entropy + jaccard_loss(torch.sigmoid(logits) * valid, truth, 20.0)


def semantic_loss(logits: Tensor, truth: Tensor, known: Tensor, valid: Tensor) -> Tensor:
    """All targets at once from the encoder alone: B x names x g x g, `known` B x names."""
    present = (known > 0) & (truth.sum((2, 3)) > 1)
    entropy = cross_entropy(logits, truth, valid[:, None].expand_as(logits), 0.25)
    absent = (known > 0) & ~present
    loss = (entropy * absent).sum() / absent.sum().clamp(min=1)
    if present.any():
        loss = loss + 2 * (entropy * present).sum() / present.sum()
        loss = loss + jaccard_loss(torch.sigmoid(logits[present]), truth[present], 5.0).mean()
    return loss


def iou_of(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """IoU per row of the thresholded masks; two empty masks agree fully."""
    mask, true = (logits > 0) & (valid > 0), truth > 0.5
    union = (mask | true).flatten(1).sum(1).float()
    both = (mask & true).flatten(1).sum(1).float()
    return torch.where(union > 0, both / union.clamp(min=1), torch.ones_like(union))


def click_tensor(clicks: list[list[tuple[float, float, float]]]) -> Tensor:
    """Clicks of all rows as N x C x 3, padded with zeros."""
    longest = max(1, max(map(len, clicks)))
    padded = [row + [(0.0, 0.0, 0.0)] * (longest - len(row)) for row in clicks]
    return torch.tensor(padded, dtype=torch.float32)


class Rounds:
    """The clicks and masks of a batch of rows while they are being refined."""

    def __init__(self, examples: list[Example], rng: np.random.Generator) -> None:
        self.rng = rng
        rows = [row for example in examples for row in example.rows]
        grid = examples[0].valid.shape[0]
        self.truth = torch.from_numpy(np.stack([r.truth for r in rows])).float() / 255
        self.true = [r.truth > 127 for r in rows]
        self.name = torch.tensor([r.name for r in rows])
        self.valid = torch.from_numpy(np.stack([e.valid for e in examples for _ in e.rows]))
        self.previous = torch.zeros(len(rows), 1, grid, grid)
        self.kind = torch.full((len(rows),), NO_MASK)
        for i, row in enumerate(rows):
            if row.start is not None:
                self.previous[i, 0] = torch.from_numpy(row.start * 8 - 4)
                self.kind[i] = START_MASK
        self.clicks = [early_clicks(t, r.early, rng) for t, r in zip(self.true, rows)]
        self._click([not r.propose and not c for r, c in zip(rows, self.clicks)])

    def _click(self, due: list[bool]) -> None:
        masks = ((self.previous[:, 0] > 0) & (self.kind != NO_MASK)[:, None, None] & (self.valid > 0)).numpy()
        for i, wanted in enumerate(due):
            click = error_click(self.true[i], masks[i], self.rng) if wanted else None
            if click is not None:
                self.clicks[i].append(click)

    def advance(self, logits: Tensor) -> None:
        """Take the network's masks and click once more in every row."""
        self.previous = logits.detach()
        self.kind = torch.full_like(self.kind, OWN_LOGITS)
        self._click([True] * len(self.clicks))


class Trainer:
    """Network, averaged network, optimiser, random state and clock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.network = EmbeddedNetwork(TARGETS).to(memory_format=torch.channels_last)
        if config.begin is not None:
            self.network.load_state_dict(EmbeddedTool.load(config.begin).network.state_dict())
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": weights, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(0.9, 0.99),
        )
        self.step = 0
        self.seconds = 0.0

    def batch(self, items: list[Item], frame: int, donors: Donors) -> list[Example]:
        augmenter = Augmenter(self.rng, frame, self.config.rows, donors, self.config.single_pass)
        return [augmenter.example(item) for item in items]

    def train_step(self, examples: list[Example]) -> dict[str, float]:
        image = torch.from_numpy(np.stack([e.image for e in examples]))
        semantic = torch.from_numpy(np.stack([e.semantic for e in examples])).float() / 255
        known = torch.from_numpy(np.stack([e.known for e in examples]))
        valid = torch.from_numpy(np.stack([e.valid for e in examples]))[:, None]
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            features = self.network.encode(image.contiguous(memory_format=torch.channels_last))
        leaves = features.leaves()
        rounds = Rounds(examples, self.rng)
        count = 1 if self.config.single_pass else int(self.rng.choice([2, 3, 4], p=[0.55, 0.33, 0.12]))
        log: dict[str, float] = {}
        for turn in range(count):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                logits, quality = self.network.decode(
                    leaves, click_tensor(rounds.clicks), rounds.previous, rounds.kind, rounds.name
                )
            logits, quality = logits.float(), quality.float()
            blind = torch.tensor([not clicks for clicks in rounds.clicks])
            losses = mask_loss(logits[:, 0], rounds.truth, rounds.valid, blind)
            good = iou_of(logits[:, 0].detach(), rounds.truth, rounds.valid)
            score = F.binary_cross_entropy_with_logits(quality, good)
            ((losses.mean() + 0.3 * score) / count).backward()
            log[f"loss{turn + 1}"] = float(losses.detach().mean())
            log[f"iou{turn + 1}"] = float(good.mean())
            if turn < count - 1:
                rounds.advance(logits)
        outside = semantic_loss(features.names.float(), semantic, known, F.max_pool2d(valid, 2)[:, 0])
        log["semantic"] = float(outside.detach())
        grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves.tensors()]
        torch.autograd.backward([*features.tensors(), outside], [*grads, torch.ones(())])
        log["norm"] = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), 3.0))
        rate = self.rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.follow()
        return log

    def rate(self) -> float:
        share = min(1.0, self.seconds / (self.config.minutes * 60))
        return (
            self.config.lr * min(1.0, (self.step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * share)) + 0.002)
        )

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged network: weights and running statistics."""
        keep = min(self.config.ema, (1 + self.step) / (20 + self.step))
        ours, theirs = self.network.state_dict(), self.average.state_dict()
        pairs = [(theirs[k], v) for k, v in ours.items() if v.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - keep)

    def save(self) -> None:
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
        }
        torch.save(state, out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")
        facts = {"steps": str(self.step), "minutes": f"{self.seconds / 60:.1f}"}
        export(self.average, out / "embedded_tool.safetensors", facts)

    def resume(self) -> None:
        path = self.config.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=False)  # our own file
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])


def export(network: EmbeddedNetwork, path: Path, facts: dict[str, str]) -> None:
    """Weights as half-precision safetensors; names and training facts in the metadata."""
    tensors = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    save_file(tensors, str(path), metadata={"names": json.dumps(list(network.names)), **facts})


@torch.inference_mode()
def validate(network: EmbeddedNetwork, corpus: list[Item], frame: int, cases: int) -> dict[str, float]:
    """Quick look on validation patients at grid resolution: clicks without a name, proposals with it."""
    rng = np.random.default_rng(7)
    order = rng.permutation(len(corpus))
    scores: dict[str, list[float]] = {f"@{k}": [] for k in (1, 3, 5)} | {"text": []}
    per_set: dict[str, list[float]] = {}
    done = 0
    for i in order:
        item = corpus[int(i)]
        if done >= cases:
            break
        if len(per_set.get(item.dataset, [])) >= cases / 8:
            continue
        augmenter = _Plain(np.random.default_rng(0), frame, 0)
        example = augmenter.example(item)
        features = network.encode(torch.from_numpy(example.image)[None])
        for name, mask in augmenter.shrunk(item).items():
            truth = torch.from_numpy(mask).float()[None] / 255
            valid = torch.from_numpy(example.valid)[None]
            done += 1
            previous, kind = torch.zeros(1, 1, frame // 2, frame // 2), torch.tensor([NO_MASK])
            named = torch.tensor([name])
            logits, _ = network.decode(features, torch.zeros(1, 1, 3), previous, kind, named)
            scores["text"].append(float(iou_of(logits[:, 0], truth, valid)))
            per_set.setdefault(item.dataset, []).append(scores["text"][-1])
            clicks: list[tuple[float, float, float]] = []
            current = np.zeros_like(mask, dtype=bool)
            for k in range(1, 6):
                click = error_click(mask > 127, current, _Centre())
                if click is not None:
                    clicks.append(click)
                logits, _ = network.decode(
                    features, click_tensor([clicks]), previous, kind, torch.tensor([network.no_name])
                )
                previous, kind = logits, torch.tensor([OWN_LOGITS])
                current = ((logits[0, 0] > 0) & (valid[0] > 0)).numpy()
                if f"@{k}" in scores:
                    value = float(iou_of(logits[:, 0], truth, valid))
                    scores[f"@{k}"].append(value)
                    if k == 1:
                        per_set.setdefault(item.dataset + "@1", []).append(value)
    result = {k: float(np.mean(v)) for k, v in (scores | per_set).items()}
    result["text_macro"] = float(np.mean([v for k, v in result.items() if k in {i.dataset for i in corpus}]))
    return result


class _Plain(Augmenter):
    """No augmentation: what inference sees."""

    def example(self, item: Item) -> Example:
        self.rng = _Never()
        return super().example(item)

    def shrunk(self, item: Item) -> dict[int, np.ndarray]:
        matrix, height, width = self._geometry(item, True)
        warped = {k: cv2.warpAffine(m, matrix, (width, height)) for k, m in item.masks.items()}
        return {k: self._shrink(m) for k, m in warped.items()}


class _Never:
    """A generator whose draws keep every option off."""

    calls = 0

    def random(self) -> float:
        self.calls += 1
        return 0.1 if self.calls == 1 else 0.99  # the first draw chooses "plain"


class _Centre:
    """A generator that always picks the first of the deepest places."""

    def random(self) -> float:
        return 0.0

    def integers(self, high: int) -> int:
        return 0

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        return np.zeros(size)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    trainer = Trainer(config)
    trainer.resume()
    if trainer.seconds >= config.minutes * 60:
        print(f"{config.out}: trained for {trainer.seconds / 60:.0f} minutes, nothing to do")
        return
    root = data_root()
    corpus, held = load_corpus(root, "train"), load_corpus(root, "val")
    corpus = [item for item in corpus if item.dataset not in config.without]
    donors = donors_of(corpus)
    print(f"{len(corpus)} training pictures, {len(held)} for validation; at step {trainer.step}", flush=True)
    config.out.mkdir(parents=True, exist_ok=True)
    saved = validated = trainer.seconds
    sums: dict[str, list[float]] = {}
    while trainer.seconds < config.minutes * 60:
        start = time.perf_counter()
        small = trainer.seconds < config.minutes * 60 * config.small_share
        frame = config.small_frame if small else config.frame
        examples = trainer.batch(draw_items(corpus, trainer.rng, config.batch), frame, donors)
        drawn = time.perf_counter() - start
        log = trainer.train_step(examples) | {"data_s": drawn}
        trainer.seconds += time.perf_counter() - start
        log["step_s"] = time.perf_counter() - start
        for key, value in log.items():
            sums.setdefault(key, []).append(value)
        if trainer.step % 25 == 0:
            line = {key: round(float(np.mean(v)), 4) for key, v in sums.items()}
            line = {"step": trainer.step, "minutes": round(trainer.seconds / 60, 2), "frame": frame} | line
            with (config.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums = {}
        if trainer.seconds - saved > config.save_minutes * 60:
            trainer.save()
            saved = trainer.seconds
        if trainer.seconds - validated > config.validate_minutes * 60:
            report = validate(trainer.average, held, config.frame, config.validate_cases)
            print("validation", json.dumps({k: round(v, 3) for k, v in report.items()}), flush=True)
            validated = trainer.seconds
    trainer.save()
    report = validate(trainer.average, held, config.frame, config.validate_cases)
    print("validation", json.dumps({k: round(v, 3) for k, v in report.items()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
