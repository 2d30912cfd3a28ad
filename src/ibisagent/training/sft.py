"""`ibisagent train sft DATA`: teach a policy the texts of trajectories.

Cross-entropy on the policy's own tokens, and on nothing else (docs/training.md). DATA is what
`ibisagent synthesize` writes, or any episode log; injected wrong turns are read but not learned.
One process or several (torchrun), always continued from the last checkpoint. Left out: a held-out
loss (measure the policy with `ibisagent evaluate --split val`), packing, early stopping.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ibisagent.errors import EpisodeFormatError, InputError, writing_to
from ibisagent.files import out_folder, read_json, write_whole
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import POLICY, RUN, PolicyToTrain, check_history

if TYPE_CHECKING:
    from torch import Tensor

    from ibisagent.training.mix import Mixer
    from ibisagent.training.optimiser import Optimiser
    from ibisagent.training.trainable import Collated, Example, Trainable
    from ibisagent.types import Episode

ITEMS = "items.json"  # what of the data is trained, found out once


@dataclass(frozen=True)
class TrainSft:
    """Teach a policy the texts of trajectories: supervised fine-tuning."""

    data: Annotated[Path, tyro.conf.Positional]
    """the folder of `ibisagent synthesize`, or an episode log"""
    out: Path = Path("ibisagent-sft")
    """folder of the run; the same command continues one that was stopped"""
    epochs: float = 10.0
    """how often every text is learned"""
    steps: int | None = None
    """so many optimiser steps instead of --epochs"""
    batch: int = 16
    """texts (history all: episodes) in one optimiser step, over all processes"""
    kinds: tuple[str, ...] = ()
    """only these kinds of trajectory, such as plain self_correction"""
    history: str | None = None
    """what the policy sees of earlier turns; by default as recorded"""
    mix: tuple[str, ...] = ()
    """FILE:RATIO of other conversations (ShareGPT or messages), so that a qwen policy keeps its abilities"""
    model: Annotated[PolicyToTrain, tyro.conf.OmitArgPrefixes] = field(default_factory=PolicyToTrain)
    optimisation: Annotated[Optimisation, tyro.conf.OmitArgPrefixes] = field(default_factory=Optimisation)


def run(command: TrainSft) -> int:
    """Train, or go on with it; returns the exit code. Raises InputError."""
    train(command)
    return 0


def train(command: TrainSft) -> Path:
    """Train to the last step; the folder of the trained policy."""
    from ibisagent.training.mix import Mixer
    from ibisagent.training.optimiser import Optimiser
    from ibisagent.training.policy import load_trainable

    _check(command)
    trainable = load_trainable(command.model)
    data = Trajectories(command.data, trainable, command.history, command.kinds)
    mixer = Mixer(command.mix, command.optimisation.seed, trainable.policy.view) if command.mix else None
    steps = command.steps or 0  # known once the items are counted
    optimiser = Optimiser(trainable, command.optimisation, command.out, steps)
    with optimiser.alone():
        _learn(command, data, mixer, optimiser)
    optimiser.close()
    return command.out / POLICY


def _learn(command: TrainSft, data: Trajectories, mixer: Mixer | None, optimiser: Optimiser) -> None:
    """All steps that are left, then the policy and its card."""
    from ibisagent.progress import Progress, open_screen
    from ibisagent.training.optimiser import Journal
    from ibisagent.training.policy import claim, write_card

    screen = open_screen()
    claim(command.out, "sft", asdict(command), optimiser.rank, data=data.files())
    left_out = data.check(command.out, optimiser, screen)
    if mixer is not None:
        problems = mixer.check(optimiser.trainable.problem)
        left_out |= {f"--mix: {reason}": count for reason, count in problems.items()}
    if optimiser.rank == 0:
        data.warn()
        for reason, count in sorted(left_out.items()):
            screen.print(f"left out: {count} texts: {reason}")
    places = command.epochs * len(data) / (1.0 if mixer is None else mixer.share)
    steps = optimiser.steps = command.steps or max(1, round(places / command.batch))
    done = optimiser.resume() or {"step": 0, "seconds": 0.0}
    journal = Journal(command.out, optimiser, done["step"])
    source = _source(command, data, mixer)
    began = time.perf_counter() - done["seconds"]
    with Progress(screen if optimiser.rank == 0 else None, "sft", steps, done["step"]) as progress:
        for number in range(done["step"], steps):
            parts = list(_cut(source(number, optimiser), command.optimisation.micro_batch))
            stepped = optimiser.step(number, parts, _cross_entropy)
            seconds = time.perf_counter() - began
            journal.write(number + 1, stepped, seconds=round(seconds, 2))
            progress.advance(f"loss {stepped.loss:.4f}")
            if (number + 1) % command.optimisation.save_every == 0 or number + 1 == steps:
                optimiser.save({"step": number + 1, "seconds": seconds})
    optimiser.save_policy(command.out / POLICY)
    if optimiser.rank == 0:
        card = {
            "stage": "sft",
            "command": json.loads(json.dumps(asdict(command), default=str)),
            "steps": steps,
            "seconds": round(time.perf_counter() - began, 1),
            "texts": len(data),
            "left_out": left_out,
            "fingerprint": data.fingerprint,
        }
        write_card(command.out, card)
        screen.print(f"trained policy: {command.out / POLICY}")


def _check(command: TrainSft) -> None:
    if (
        command.batch < 1
        or (command.steps is not None and command.steps < 1)
        or not 0 < command.epochs < math.inf
    ):
        raise InputError(
            "--batch and --steps are at least 1, --epochs is a number above 0",
            f"{command.batch}, {command.steps}, {command.epochs}",
        )
    out_folder(command.out)


def _cross_entropy(_: int, log_probs: Tensor, batch: Collated) -> Tensor:
    """Summed over the trained tokens; what stands elsewhere reaches no gradient."""
    import torch

    return -(torch.where(batch.mask, log_probs, torch.zeros_like(log_probs)) * batch.weights).sum()


def _cut(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


# --- data -----------------------------------------------------------------------------------------


class Trajectories:
    """The trainable examples of episode logs, by number; episodes are read when asked for."""

    def __init__(
        self, path: Path, trainable: Trainable, history: str | None, kinds: Sequence[str] = ()
    ) -> None:
        """Finds the episodes of a log or a folder of logs; pictures are not read yet. Raises InputError."""
        from ibisagent.synthesis.manifest import trajectory_files

        if not path.exists():
            raise InputError("trajectories are a log or a folder of logs", "no such path", "check the path")
        if history is not None:
            check_history(trainable, history)
        self._trainable = trainable
        self._history = history if trainable.reads_history else "none"
        self._files = trajectory_files(path)
        self._places: list[tuple[int, int]] = []  # file, offset of each episode
        self.items: list[tuple[int, int]] = []  # episode, which of its examples
        self.fingerprint: dict[str, Any] = {}
        for number, file in enumerate(self._files):
            with file.open("rb") as lines:
                offset = 0
                for line in lines:
                    if line.strip() and (not kinds or _head(line, file).get("kind") in kinds):
                        self._places.append((number, offset))
                        self.fingerprint = self.fingerprint or _head(line, file).get("fingerprint", {})
                    offset += len(line)
        if not self._places:
            raise InputError("there are trajectories to learn", "none", "check the folder and --kinds")

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> dict[str, int]:
        """Bytes of every log, by name: other data are another run's."""
        return {file.name: file.stat().st_size for file in self._files}

    def check(self, out: Path, optimiser: Optimiser, screen: Any) -> dict[str, int]:
        """Look at every text before the first step: which can be trained, and why others cannot.

        Found out once for the run that run.json describes, and kept in its folder. Raises InputError
        where nothing is left.
        """
        from ibisagent.progress import Progress

        file, fix = out / ITEMS, "repeat the command"
        run = read_json(out / RUN, fix) if optimiser.rank == 0 else {}
        if optimiser.rank == 0 and _items_of(file) != run:
            left: Counter[str] = Counter()
            items: list[tuple[int, int]] = []
            with Progress(screen, "checking", len(self._places), 0) as progress:
                for number in range(len(self._places)):
                    for index, example in enumerate(self._examples(number)):
                        problem = self._trainable.problem(example)
                        if problem is None:
                            items.append((number, index))
                        else:
                            left[problem] += 1
                    progress.advance("")
            with writing_to("--out is a folder"):
                write_whole(file, json.dumps({"run": run, "items": items, "left_out": left}))
        optimiser.accelerator.wait_for_everyone()
        record = read_json(file, fix)
        self.items = [(number, index) for number, index in record["items"]]
        if not self.items:
            raise InputError("there are texts to learn", "none", "; ".join(record["left_out"]) or None)
        return dict(record["left_out"])

    def warn(self) -> None:
        """Warn where prompts, grammar or renderer of today are not those that the data was made with."""
        from ibisagent.fingerprint import fingerprint, seen, warn_if_different
        from ibisagent.replay import settings_of
        from ibisagent.tools.classical import ClassicalTool

        s = settings_of(self._episode(0))
        policy, tool = self._trainable.policy, ClassicalTool()  # neither is compared
        here = fingerprint(policy, tool, s.system_text, s.verbs, s.history, s.style)
        warn_if_different(seen(here), seen(self.fingerprint), "the training data")

    def example(self, item: int) -> Example:
        """One trainable example."""
        number, index = self.items[item]
        return self._examples(number)[index]

    def _examples(self, number: int) -> list[Example]:
        from ibisagent.training.examples import examples_of, observed_steps

        episode = self._episode(number)
        history = self._history or str(episode.settings["history"])
        return examples_of(observed_steps(episode, self._trainable.policy.view, history), history)

    def _episode(self, number: int) -> Episode:
        from ibisagent.episodes import from_record

        place, offset = self._places[number]
        file = self._files[place]
        with file.open("rb") as lines:
            lines.seek(offset)
            return from_record(_head(lines.readline(), file), file.parent)


def _items_of(file: Path) -> Any:
    """The run that items were found out for; None where there are none, or half of them."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record["run"] if {"items", "left_out"} <= record.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _head(line: bytes, file: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise EpisodeFormatError(
            "every line of an episode log is one JSON object", f"something else in {file.name}"
        )
    return record


def _source(command: TrainSft, data: Trajectories, mixer: Mixer | None) -> Any:
    """step number, optimiser -> this process's examples of the step, always the same ones."""
    from ibisagent.seeding import generator_for

    seed = command.optimisation.seed
    orders: dict[int, Any] = {}

    def order(epoch: int) -> Any:
        if epoch not in orders:
            orders.clear()
            orders[epoch] = generator_for(seed, "order", epoch).permutation(len(data))
        return orders[epoch]

    def examples(number: int, optimiser: Optimiser) -> list[Example]:
        places = range(number * command.batch, (number + 1) * command.batch)
        mine = [place for place in places if place % optimiser.world == optimiser.rank]
        found = []
        for place in mine or [places[0]]:
            own = place if mixer is None else mixer.trajectory(place)
            other = mixer.draw(place) if own is None and mixer is not None else None
            epoch, index = divmod(own or 0, len(data))
            found.append(other if other is not None else data.example(int(order(epoch)[index])))
        return found

    return examples
