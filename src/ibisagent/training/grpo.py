"""`ibisagent train rl DATA`: multi-turn GRPO through the true environment (docs/training.md).

Per step: draw pictures and targets, let the policy play a group of episodes on each with the real
tool, score them, turn rewards into advantages within the group, and move the weights once or a few
times by the clipped loss over the texts that were written. The policy meets its own mistakes.
One process or several (torchrun, data parallel); every step is a function of (seed, step), so a
continued run is the uninterrupted one. Left out: a value network, an entropy bonus, rollouts on
other machines and sharded weights (training/verl.py is for those).
"""

from __future__ import annotations

import copy
import json
import math
import operator
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError, writing_to
from ibisagent.files import out_folder, write_whole
from ibisagent.rewards import PROFILES
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import POLICY, PolicyToTrain, check_history
from ibisagent.training.rounds import Played, Round, facts_of

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ibisagent.training.optimiser import Optimiser, Stepped
    from ibisagent.training.trainable import Collated, Example

BEST = "best"  # folder of the policy with the best validation, beside the last one
HACKING = 5  # validations over which reward must not rise while IoU falls
FALL = 0.02  # of the validation IoU


@dataclass(frozen=True)
class TrainRl(Reading):
    """Let a policy learn from its own episodes: multi-turn GRPO."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder, a folder of sets, or its index file"""
    out: Path = Path("ibisagent-rl")
    """folder of the run; the same command continues one that was stopped"""
    tool: str = "embedded"
    """the tool that answers the clicks, as for segment"""
    start: Literal["auto", "none", "proposal", "both"] = "auto"
    """where episodes begin; auto: from a proposal where the tool takes text; both: by turns"""
    steps: int = 100
    """rounds of rollouts"""
    groups: int = 16
    """groups that train in each round, over all processes"""
    group: int = 8
    """rollouts of one picture and target"""
    temperature: float = 1.0
    """of rollouts; below 1 they are nearer to the greedy episodes that count in the end"""
    updates: int = 1
    """optimiser steps that a round's texts are divided over"""
    profile: Literal["shaped", "paper"] = "shaped"
    """what is rewarded; see docs/rewards.md"""
    without: tuple[str, ...] = ()
    """terms of the profile that do not count, for ablations"""
    adaptive: bool = False
    """thresholds of the paper profile scaled by what the oracle reaches on each target"""
    credit: Literal["episode", "turn"] = "episode"
    """one advantage for a whole episode, or one for each text from what follows it"""
    scale: bool = True
    """divide advantages by the standard deviation of their group; without it a group counts by what is
    at stake in it"""
    least_spread: float = 0.0
    """groups whose rewards spread less (standard deviation) are replaced, as those without spread are"""
    clip: tuple[float, float] = (0.2, 0.2)
    """how far the probability ratio may fall and rise"""
    kl: float = 0.0
    """weight of the KL divergence from the policy that training began with"""
    absent: float = 0.1
    """share of questions for targets that are not in the picture, where the data has any"""
    augment: bool = True
    """move, turn, blur and brighten pictures at random"""
    max_turns: int = 8
    """at most so many turns in training; validation has the 20 of every episode"""
    history: str = "none"
    """what the policy sees of earlier turns"""
    batch_size: int = 32
    """episodes that advance together"""
    validate_every: int = 10
    """rounds between validations; 0: none"""
    validate_per_set: int | None = 24
    """cases of each set in a validation"""
    record_every: int = 10
    """rounds between pages with the best and the worst rollout"""
    model: Annotated[PolicyToTrain, tyro.conf.OmitArgPrefixes] = field(default_factory=PolicyToTrain)
    optimisation: Annotated[Optimisation, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: Optimisation(lr=1e-6, schedule="constant")
    )


def run(command: TrainRl) -> int:
    """Train, or go on with it; returns the exit code, 4 where it was stopped early. Raises InputError."""
    return 0 if train(command) is None else 4


def train(command: TrainRl) -> str | None:
    """Train to the last round. The reason where it was stopped before."""
    from ibisagent.progress import open_screen
    from ibisagent.training.optimiser import Optimiser
    from ibisagent.training.policy import load_trainable

    _check(command)
    screen = open_screen()
    trainable = load_trainable(command.model, temperature=command.temperature)
    check_history(trainable, command.history)
    round_ = Round(command, trainable, screen.print)
    optimiser = Optimiser(trainable, command.optimisation, command.out, command.steps * command.updates)
    if optimiser.sharded:
        raise InputError(
            "rollouts need whole weights on every process", "FSDP", "use DDP, or verl on a cluster"
        )
    with optimiser.alone():
        stopped = _rounds(command, round_, optimiser, screen)
    optimiser.close()
    return stopped


def _rounds(command: TrainRl, round_: Round, optimiser: Optimiser, screen: Console) -> str | None:
    """All rounds that are left, then the policy and its card. The reason where it was stopped before."""
    from ibisagent.progress import Progress
    from ibisagent.training.optimiser import Journal
    from ibisagent.training.policy import claim

    if optimiser.rank == 0:
        _say_first(command, round_, screen)
    reference = copy.deepcopy(round_.trainable.module) if command.kl else None
    claim(command.out, "rl", asdict(command), optimiser.rank, data=round_.drawer.digest)
    done = optimiser.resume() or {"step": 0, "seconds": 0.0, "validations": [], "stopped": None}
    journal = Journal(command.out, optimiser, done["step"])
    validations: list[dict[str, float]] = done["validations"]
    round_.drawer.unusable |= set(done.get("unusable", ()))
    began = time.perf_counter() - done["seconds"]
    stopped: str | None = done.get("stopped")
    if command.validate_every and not validations:
        validations.append({"step": 0, **round_.validate(optimiser)})
        optimiser.save_policy(command.out / BEST)
    with Progress(screen if optimiser.rank == 0 else None, "rl", command.steps, done["step"]) as progress:
        for number in range(done["step"], 0 if stopped else command.steps):
            last = number + 1 == command.steps
            played, stepped, facts = _round(command, round_, optimiser, reference, number)
            if command.validate_every and ((number + 1) % command.validate_every == 0 or last):
                validations.append({"step": number + 1, **round_.validate(optimiser)})
                stopped = hacking(validations)
                if optimiser.rank == 0:
                    screen.print(_validation_line(validations[-1]))
                if _is_best(validations):
                    optimiser.save_policy(command.out / BEST)
            if optimiser.rank == 0 and command.record_every and (number % command.record_every == 0 or last):
                _record(command.out, number + 1, played)
            seconds = time.perf_counter() - began
            journal.write(number + 1, stepped, seconds=round(seconds, 2), **facts)
            progress.advance(f"reward {facts['reward']:.3f}, IoU {facts['iou']:.3f}")
            if (number + 1) % command.optimisation.save_every == 0 or last or stopped:
                record = {"step": number + 1, "seconds": seconds, "validations": validations}
                unusable = optimiser.union(round_.drawer.unusable)
                optimiser.save(record | {"stopped": stopped, "unusable": unusable})
            if stopped:
                break
    optimiser.save_policy(command.out / POLICY)
    round_.drawer.unusable |= set(optimiser.union(round_.drawer.unusable))
    if optimiser.rank == 0:
        _finish(command, round_, screen, time.perf_counter() - began, validations, stopped)
    return stopped


def _round(
    command: TrainRl, round_: Round, optimiser: Optimiser, reference: Any, number: int
) -> tuple[list[list[Played]], Stepped, dict[str, float]]:
    """Play and learn once: the groups, what the last optimiser step saw, and facts for metrics.jsonl."""
    clock = time.perf_counter()
    played = round_.play(number, optimiser)
    rolled = time.perf_counter() - clock
    watched: dict[str, float] = defaultdict(float)
    stepped = learn(command, optimiser, reference, number, played, watched)
    facts = facts_of(played, optimiser) | means(watched, optimiser)
    facts["rollout_seconds"] = round(rolled, 2)
    facts["update_seconds"] = round(time.perf_counter() - clock - rolled, 2)
    return played, stepped, facts


def _say_first(command: TrainRl, round_: Round, screen: Console) -> None:
    """What a person should know before the first round: left out cases, and other fingerprints."""
    from ibisagent.fingerprint import seen, warn_if_different
    from ibisagent.training.policy import card_of

    for reason, count in round_.drawer.left_out().items():
        screen.print(f"left out: {count} {reason}")
    card = card_of(command.model.policy)
    if card is not None:
        here, there = (seen(mark, "tool") for mark in (round_.fingerprint(), card["fingerprint"]))
        warn_if_different(here, there, "the policy")


def _finish(
    command: TrainRl,
    round_: Round,
    screen: Console,
    seconds: float,
    validations: list[dict[str, float]],
    stopped: str | None,
) -> None:
    """Write the card and say where the policy is."""
    from ibisagent.training.policy import write_card

    made = {
        "stage": "rl",
        "command": json.loads(json.dumps(asdict(command), default=str)),
        "seconds": round(seconds, 1),
        "left_out": round_.drawer.left_out(),
        "validations": validations,
        "stopped": stopped,
        "fingerprint": round_.fingerprint(),
    }
    write_card(command.out, made)
    screen.print(f"stopped: {stopped}" if stopped else "finished")
    screen.print(f"trained policy: {command.out / POLICY}")


def _check(command: TrainRl) -> None:
    least = {"steps": 1, "groups": 1, "group": 2, "updates": 1, "max_turns": 1, "batch_size": 1}
    for name, value in least.items():
        if getattr(command, name) < value:
            raise InputError(f"--{name.replace('_', '-')} is at least {value}", getattr(command, name))
    numbers = (command.kl, command.least_spread)
    if (
        not 0 <= command.absent < 1
        or not all(0 <= n < math.inf for n in numbers)
        or not min(command.clip) > 0
    ):
        raise InputError(
            "--absent is a share below 1, --kl and --least-spread are at least 0, --clip is above 0",
            f"{command.absent}, {command.kl}, {command.least_spread}, {command.clip}",
        )
    if command.validate_per_set is not None and command.validate_per_set < 1:
        raise InputError(
            "--validate-per-set is at least 1", command.validate_per_set, "or --validate-every 0"
        )
    if command.credit == "turn" and PROFILES[command.profile].pool == "mean":
        raise InputError(
            "credit per turn needs rewards that add up",
            f"profile {command.profile}, a mean over turns",
            "use --credit episode or --profile shaped",
        )
    if not 0 < command.temperature < math.inf:
        raise InputError(
            "--temperature is a number above 0, since equal rollouts teach nothing", command.temperature
        )
    out_folder(command.out)


# --- learning -------------------------------------------------------------------------------------


def examples_with_advantages(
    group: Sequence[Played], credit: str, history: str, scaled: bool = True
) -> list[Example]:
    """A group's texts as training examples whose weights are their advantages.

    Rollouts that left the group (an outside fault) bring none.
    """
    from ibisagent.training.advantage import group_advantages, text_advantages
    from ibisagent.training.examples import examples_of
    from ibisagent.training.trainable import Written

    if credit == "turn":
        advantages = text_advantages(
            [None if p.reward.total is None else [text.reward for text in p.reward.texts] for p in group],
            scaled,
        )
    else:
        whole = group_advantages([played.reward.total for played in group], scaled)
        advantages = [
            None if value is None else [value] * len(played.texts)
            for value, played in zip(whole, group, strict=True)
        ]
    examples: list[Example] = []
    for played, values in zip(group, advantages, strict=True):
        if values is None:
            continue
        steps = [
            (observation, Written(reply.text, reply.token_ids, value))
            for (observation, reply), value in zip(played.texts, values, strict=True)
        ]
        examples += examples_of(steps, history)
    return examples


def learn(
    command: TrainRl,
    optimiser: Optimiser,
    reference: Any,
    number: int,
    played: Sequence[Sequence[Played]],
    watched: dict[str, float] | None = None,
) -> Any:
    """The optimiser steps of a round; what the last one saw.

    `watched` sums what `policy_loss` lets one watch over the trained tokens, and counts them.
    """
    from ibisagent.training.loss import policy_loss

    cuts = _cuts(command, optimiser, number, played)
    # with one update the texts are from these very weights, and the ratio is 1
    old = [optimiser.log_probs(parts) for parts in cuts] if len(cuts) > 1 else None
    stepped = None
    for update in range(optimiser.most(len(cuts))):
        here = min(update, len(cuts) - 1)

        def loss(index: int, log_probs: Tensor, batch: Collated, here: int = here) -> Tensor:
            import torch

            before = log_probs.detach() if old is None else old[here][index]
            anchor = None
            if reference is not None:
                with torch.no_grad():
                    anchor = reference(**batch.inputs).float()
            found = policy_loss(
                log_probs,
                before,
                batch.weights,
                batch.mask,
                clip=command.clip,
                reference=anchor,
                beta=command.kl,
                tokens=1.0,
            )
            if watched is not None:
                tokens = int(batch.mask.sum())
                watched["tokens"] += tokens
                watched["kl"] += float(found.kl) * tokens
                watched["clipped"] += float(found.clipped) * tokens
            return found.loss

        stepped = optimiser.step(number * command.updates + update, cuts[here], loss)
    assert stepped is not None, "a round has texts"
    return stepped


def _cuts(
    command: TrainRl, optimiser: Optimiser, number: int, played: Sequence[Sequence[Played]]
) -> list[list[list[Example]]]:
    """The texts of a round, divided at random over its updates, each cut into micro-batches."""
    from ibisagent.seeding import generator_for

    by_turn = operator.attrgetter("observation.turn")
    examples = [
        example
        for group in played
        for example in sorted(
            examples_with_advantages(group, command.credit, command.history, command.scale), key=by_turn
        )
    ]
    chance = generator_for(command.optimisation.seed, "texts", number, optimiser.rank)
    shuffled = chance.permutation(len(examples))
    # within a share in order: texts of a group on one picture meet in a micro-batch and share its encoding
    dealt = [sorted(shuffled[k :: command.updates]) for k in range(command.updates)]
    shares = [[examples[int(index)] for index in share] for share in dealt if share]
    size = command.optimisation.micro_batch
    return [[share[first : first + size] for first in range(0, len(share), size)] for share in shares]


def means(watched: dict[str, float], optimiser: Optimiser) -> dict[str, float]:
    """Mean KL divergence and share of clipped tokens, over all processes."""
    tokens = max(1.0, optimiser.total(watched["tokens"]))
    return {name: round(optimiser.total(watched[name]) / tokens, 6) for name in ("kl", "clipped")}


def hacking(validations: Sequence[dict[str, float]]) -> str | None:
    """Why training should stop: over the last validations reward rose while IoU fell; else None."""
    if len(validations) <= HACKING:
        return None
    first, last = validations[-HACKING - 1], validations[-1]
    reward = last["reward"] - first["reward"]
    fall = first["set-macro IoU"] - last["set-macro IoU"]
    if reward > 0 and fall > FALL:
        return (
            f"over {HACKING} validations the mean reward rose by {reward:.3f} while the validation "
            f"set-macro IoU fell by {fall:.3f}: the policy learns the reward, not the task"
        )
    return None


def _is_best(validations: Sequence[dict[str, float]]) -> bool:
    return validations[-1]["set-macro IoU"] > max(v["set-macro IoU"] for v in validations[:-1])


def _validation_line(found: dict[str, float]) -> str:
    return (
        f"round {found['step']}: validation set-macro IoU {found['set-macro IoU']:.4f}, mean IoU "
        f"{found['mean IoU']:.4f}, reward {found['reward']:.3f}, "
        f"turns {found['turns']:.2f}, n {found['n']:.0f}"
    )


def _record(out: Path, number: int, played: Sequence[Sequence[Played]]) -> None:
    """Pages with the best and the worst rollout of the round."""
    from ibisagent.report import episode_html
    from ibisagent.rewards import with_rewards

    scored = [one for group in played for one in group if one.reward.total is not None]
    folder = out / "rollouts"
    for name, pick in (("best", max), ("worst", min)):
        one = pick(scored, key=lambda played: played.reward.total or 0.0)
        page = episode_html(with_rewards(one.episode, one.reward))
        with writing_to("--out is a folder"):
            write_whole(folder / f"round-{number:05d}-{name}.html", page)
