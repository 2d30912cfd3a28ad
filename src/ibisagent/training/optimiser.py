"""One optimiser step over any number of micro-batches and processes, and checkpoints to continue from.

accelerate places the module, speaks to the other processes (torchrun) and writes the state. What is
ours: sums over tokens are divided by the number of trained tokens of all micro-batches and all
processes, so that the gradient does not depend on how a batch was cut. Left out: mixed losses,
gradient scaling for float16.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ibisagent.errors import InputError, MissingExtraError, install, writing_to
from ibisagent.files import locked, read_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ibisagent.training.trainable import Collated, Example, Trainable

STATE = "state.json"
_KEPT = 2  # checkpoints


@dataclass(frozen=True)
class Optimisation:
    """How weights are moved and kept."""

    lr: float = 1e-5
    """learning rate after the warm-up"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """after the warm-up: cosine falls to 0 at the last step"""
    warmup: float = 0.1
    """share of the steps over which the learning rate rises from 0"""
    weight_decay: float = 0.0
    """AdamW's, on matrices and convolutions"""
    max_norm: float = 1.0
    """largest norm of the gradient"""
    micro_batch: int = 4
    """examples in one forward pass"""
    save_every: int = 20
    """steps between checkpoints; 1 loses nothing to a kill"""
    log_with: str | None = None
    """also log with tensorboard, wandb, mlflow or another tracker that accelerate knows"""
    seed: int = 0
    """of everything that is drawn at random"""


@dataclass(frozen=True)
class Stepped:
    """What one optimiser step saw, over all processes."""

    loss: float
    norm: float  # of the gradient, before clipping
    lr: float
    tokens: int  # trained ones


Loss = Callable[[int, "Tensor", "Collated"], "Tensor"]  # micro-batch, its log-probabilities: summed loss


class Optimiser:
    """Moves the weights of a `Trainable`; one per run. Raises InputError for options that cannot be."""

    def __init__(self, trainable: Trainable, options: Optimisation, out: Path, steps: int) -> None:
        """`out` is the run's folder, `steps` how many there will be in all."""
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
            from accelerate.utils import LoggerType
        except ImportError:
            raise MissingExtraError("training needs accelerate", None, install("train")) from None
        import torch

        _check(options)
        self.trainable, self.options, self.out, self.steps = trainable, options, out, steps
        moved = [p for p in trainable.module.parameters() if p.requires_grad]
        if not moved:
            raise InputError("something of the policy is trained", "all weights are frozen")
        groups = [
            {"params": [p for p in moved if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in moved if p.ndim <= 1], "weight_decay": 0.0},
        ]
        trackers = [str(one.value) for one in LoggerType if one.value != "all"]
        if options.log_with is not None and options.log_with not in trackers:
            raise InputError(
                "--log-with is a tracker that accelerate knows",
                repr(options.log_with),
                f"choose from: {', '.join(trackers)}",
            )
        if options.log_with == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError("--log-with tensorboard needs its package", None, install("train"))
        optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=options.lr)
        on_cpu = next(trainable.module.parameters()).device.type == "cpu"
        self.accelerator = Accelerator(
            cpu=on_cpu,
            log_with=options.log_with,
            project_dir=str(out),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self._module: nn.Module
        self._module, self._optimiser = self.accelerator.prepare(trainable.module, optimiser)
        self._trained = {name for name, p in trainable.module.named_parameters() if p.requires_grad}
        self.accelerator.register_save_state_pre_hook(self._only_trained)

    # --- processes --------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def sharded(self) -> bool:
        """Whether every process holds only a part of the weights (FSDP)."""
        return str(self.accelerator.distributed_type).endswith("FSDP")

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        import torch

        here = torch.tensor([float(value)], dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(here, "sum")[0])

    def most(self, value: int) -> int:
        """The largest of a number over all processes."""
        import torch

        here = torch.tensor([value], device=self.accelerator.device)
        return int(self.accelerator.gather(here).max())

    def union(self, names: Iterable[str]) -> list[str]:
        """The names of all processes, each once, sorted."""
        from accelerate.utils import gather_object

        return sorted(set(gather_object(list(names))))

    def alone(self) -> AbstractContextManager[None]:
        """No other run writes into the folder. Raises InputError where one does; one process asks."""
        return locked(self.out) if self.rank == 0 else nullcontext()

    # --- one step ---------------------------------------------------------------------------------

    def log_probs(self, parts: Sequence[Sequence[Example]]) -> list[Tensor]:
        """The tokens' log-probabilities under the weights as they are, micro-batch by micro-batch."""
        import torch

        with torch.no_grad():
            return [self._module(**self.trainable.collate(part).inputs).float() for part in parts]

    def step(self, number: int, parts: Sequence[Sequence[Example]], loss: Loss) -> Stepped:
        """One optimiser step, the `number`-th from 0.

        `loss` gives the sum over the trained tokens of a micro-batch. Every process brings at least
        one example; where one has fewer micro-batches than another, it repeats one without weight.
        """
        assert parts and all(parts), "every process brings an example"
        batches = [self.trainable.collate(part) for part in parts]
        tokens = self.total(sum(int(batch.mask.sum()) for batch in batches))
        if not tokens:
            raise InputError("a batch holds something to learn", "no trained token", "check the data")
        scale = self.world / tokens  # processes average their gradients
        rounds = self.most(len(batches))
        summed = 0.0
        self._module.train()
        for index in range(rounds):
            idle = index >= len(batches)
            batch = batches[0 if idle else index]
            last = index == rounds - 1
            with nullcontext() if last else self.accelerator.no_sync(self._module):
                found = loss(0 if idle else index, self._module(**batch.inputs).float(), batch)
                found = found * 0.0 if idle else found
                self.accelerator.backward(found * scale)
            summed += float(found.detach())
        norm = self.accelerator.clip_grad_norm_(self._module.parameters(), self.options.max_norm)
        if not math.isfinite(float(norm)):
            raise InputError(
                "gradients are finite numbers",
                f"norm {float(norm)} at step {number + 1}",
                "lower --lr and name another --out; the last checkpoint is as it was",
            )
        rate = self.rate(number)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.trainable.refresh()
        return Stepped(self.total(summed) / tokens, float(norm), rate, int(tokens))

    def rate(self, number: int) -> float:
        """The learning rate of a step."""
        warm = round(self.options.warmup * self.steps)
        if number < warm:
            return self.options.lr * (number + 1) / (warm + 1)
        if self.options.schedule == "constant":
            return self.options.lr
        share = (number - warm) / max(1, self.steps - warm)
        return self.options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self, record: dict[str, Any]) -> None:
        """Write a checkpoint as a whole: weights, optimiser and `record`, whose "step" names it.

        Raises InputError where it cannot be written; those from before stay.
        """
        folder = self.out / "checkpoints" / f"step-{record['step']:07d}"
        partial = folder.with_suffix(".part")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with saving(partial):
            self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with saving(partial):
                (partial / STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            for old in self._checkpoints()[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def save_policy(self, folder: Path) -> None:
        """Write the policy as its loader reads it; every process calls this. Raises InputError."""
        state = self.accelerator.get_state_dict(self._module) if self.sharded else None
        if self.rank == 0:
            with saving():
                self.trainable.save(folder, state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint of the run's folder; its record, or None where there is none.

        Says which ones it skips. Raises InputError where all are damaged.
        """
        from ibisagent.progress import open_screen

        found = self._checkpoints()
        for folder in reversed(found):
            record, problem = self._load(folder)
            if self.most(problem is not None) == 0:
                self.trainable.refresh()
                return record
            if self.rank == 0:
                open_screen().print(f"skipped: checkpoint {folder.name}, which is damaged: {problem}")
        if found:
            raise InputError(
                "a run goes on from a whole checkpoint",
                f"{len(found)} damaged in {self.out / 'checkpoints'}",
                "put them back from a copy, or name another --out",
            )
        return None

    def _load(self, folder: Path) -> tuple[dict[str, Any], str | None]:
        """A checkpoint's record and None, or why it cannot be loaded."""
        from pickle import UnpicklingError

        from safetensors import SafetensorError

        broken = (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError, SafetensorError)
        try:
            record = read_json(folder / STATE, "remove the checkpoint")
            if not {"step", "seconds"} <= record.keys():
                return {}, f"{STATE} holds no step"
            self.accelerator.load_state(str(folder), strict=False)
            return record, None
        except broken as error:
            return {}, _first_line(error)

    def close(self) -> None:
        """End trackers and the process group, whose threads would abort a process that just exits.

        They end with the last thing that holds the group: the wrapped module goes first.
        """
        self.accelerator.wait_for_everyone()
        self._module = self.trainable.module
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("step-*[0-9]"))

    def _only_trained(self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        """Frozen weights stay out of checkpoints, except where shards of them belong to the others."""
        if self.sharded:
            return
        for state in weights:
            for name in [name for name in state if name.removeprefix("module.") not in self._trained]:
                del state[name]


@contextmanager
def saving(partial: Path | None = None) -> Iterator[None]:
    """A disk that is full becomes an InputError; what was written to `partial` is then removed.

    safetensors and torch have errors of their own for it.
    """
    from safetensors import SafetensorError

    with writing_to("--out is a folder"):
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
            raise error if isinstance(error, OSError) else OSError(0, _first_line(error)) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check(options: Optimisation) -> None:
    if not 0 < options.lr < math.inf or not options.max_norm > 0:
        raise InputError(
            "--lr is a number above 0, --max-norm is above 0", f"{options.lr}, {options.max_norm}"
        )
    if not 0 <= options.weight_decay < math.inf:
        raise InputError("--weight-decay is a number of at least 0", options.weight_decay)
    if not 0 <= options.warmup <= 1:
        raise InputError("--warmup is a share of the steps", options.warmup)
    for name in ("micro_batch", "save_every"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is at least 1", getattr(options, name))


class Journal:
    """metrics.jsonl of a run, one line a step; a continued run takes back the steps that were lost."""

    def __init__(self, out: Path, optimiser: Optimiser, step: int) -> None:
        """Keep the lines of the first `step` steps."""
        self.file = out / "metrics.jsonl"
        self._optimiser = optimiser
        self._main = optimiser.accelerator.is_main_process
        if optimiser.options.log_with:
            optimiser.accelerator.init_trackers("ibisagent")
        if self._main:
            lines = self.file.read_text(encoding="utf-8").split("\n") if self.file.exists() else []
            kept = [line for line in lines if _step(line) is not None and (_step(line) or 0) <= step]
            with saving():
                write_whole(self.file, "".join(line + "\n" for line in kept))

    def write(self, step: int, stepped: Stepped, **more: float) -> None:
        """One line, and the same to the tracker where there is one."""
        record = {"step": step, **asdict(stepped), **more}
        if self._main:
            with saving(), self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
        if self._optimiser.options.log_with:
            self._optimiser.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step)


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
