"""A round of GRPO: questions, groups of rollouts with their rewards, and validation.

What training/grpo.py learns from; nothing here moves a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError

if TYPE_CHECKING:
    from ibisagent.rewards import EpisodeReward, Profile
    from ibisagent.settings import Settings
    from ibisagent.training.grpo import TrainRl
    from ibisagent.training.optimiser import Optimiser
    from ibisagent.training.samples import Drawer
    from ibisagent.training.trainable import Trainable
    from ibisagent.types import Episode, Observation, PolicyReply, Sample, Support, Tool, Verb, View


@dataclass(frozen=True)
class Played:
    """One finished rollout with its reward and what the policy saw."""

    episode: Episode
    reward: EpisodeReward
    texts: tuple[tuple[Observation, PolicyReply], ...]  # every attempt in order


class Recorder:
    """A policy that remembers what it saw and wrote, by the seed of each attempt."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.name: str = policy.name
        self.view: View = policy.view
        self.verbs: frozenset[Verb] = policy.verbs
        self.texts: dict[int, tuple[Observation, PolicyReply]] = {}

    def supports(self, instruction: str) -> Support:
        """As the policy says."""
        support: Support = self._policy.supports(instruction)
        return support

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """The policy's replies, remembered."""
        replies: list[PolicyReply] = self._policy.act(observations)
        for observation, reply in zip(observations, replies, strict=True):
            self.texts[observation.seed] = (observation, reply)
        return replies

    def fingerprint(self) -> dict[str, Any]:
        """That of the policy."""
        return dict(self._policy.fingerprint())


class Round:
    """What every round needs: data, tool, settings and the profile."""

    def __init__(self, command: TrainRl, trainable: Trainable, say: Callable[[str], None] = print) -> None:
        """`say` is told of cases that are left out. Raises InputError for data, a tool or options that
        cannot be used.
        """
        from ibisagent.rollout import check_pair
        from ibisagent.settings import Settings
        from ibisagent.tools import load_tool
        from ibisagent.training.samples import Drawer

        self.command, self.trainable = command, trainable
        self.tool: Tool = load_tool(command.tool, device=command.model.device)
        hears = "text" in self.tool.prompts
        self.settings: Settings = Settings(
            max_turns=command.max_turns,
            history=command.history,
            start="none"
            if command.start == "none" or (command.start == "auto" and not hears)
            else "proposal",
            verbs=trainable.policy.verbs,
        )
        check_pair(trainable.policy, self.tool, self.settings)
        seed = command.optimisation.seed
        self.drawer: Drawer = Drawer(
            command.data,
            command.absent,
            command.augment,
            trainable.policy,
            seed,
            command,
            validate=command.validate_every > 0,
            say=say,
        )
        self.profile: Profile = _profile(command, self)

    def play(self, number: int, optimiser: Optimiser) -> list[list[Played]]:
        """The groups of a round that have something to teach; those without spread are replaced."""
        from dataclasses import replace

        from ibisagent.seeding import seed_for
        from ibisagent.training.advantage import spread

        seed = seed_for(self.command.optimisation.seed, "rollouts", number)
        settings = replace(self.settings, seed=seed)
        if self.command.start == "both" and number % 2:
            settings = replace(settings, start="none")
        wanted = len(range(optimiser.rank, self.command.groups, optimiser.world)) or 1
        kept: list[list[Played]] = []
        spare: list[list[Played]] = []
        place = optimiser.rank
        for _ in range(4):  # at most four times as many as are wanted
            missing = wanted - len(kept)
            if missing <= 0:
                break
            drawn = [self.drawer.draw(number, place + k * optimiser.world) for k in range(missing)]
            place += missing * optimiser.world
            for group in self.groups(drawn, settings):
                teaches = spread([one.reward.total for one in group]) > self.command.least_spread
                (kept if teaches else spare).append(group)
        usable = [group for group in spare if any(one.reward.total is not None for one in group)]
        found = kept or usable[:1]
        if not found:
            raise InputError(
                "rollouts end by the policy", "every one by a fault of tool or data", "check --tool and DATA"
            )
        return found

    def groups(self, samples: Sequence[Sample], settings: Settings) -> list[list[Played]]:
        """A group of rollouts of each sample, all played and scored."""
        from ibisagent.rewards import score_episode
        from ibisagent.rollout import rollout

        recorder = Recorder(self.trainable.policy)
        group = self.command.group
        found: list[list[Played]] = [[] for _ in samples]
        truths = [sample.truth for sample in samples]
        events = rollout(
            samples, recorder, self.tool, settings, group=group, batch_size=self.command.batch_size
        )
        for event in events:
            if event.episode is None:
                continue
            episode = event.episode
            assert truths[event.number // group] is not None, "training data has true masks"
            seeds = [attempt.seed for turn in episode.turns for attempt in turn.attempts]
            texts = tuple(recorder.texts.pop(seed) for seed in seeds)
            reward = score_episode(episode, self.profile)
            found[event.number // group].append(Played(episode, reward, texts))
        return found

    def validate(self, optimiser: Optimiser) -> dict[str, float]:
        """Greedy episodes on the validation patients: set-macro and mean IoU, reward, turns."""
        from dataclasses import replace

        from ibisagent.masks import iou
        from ibisagent.rewards import score_episode
        from ibisagent.rollout import collect, rollout
        from ibisagent.settings import Settings

        settings = replace(self.settings, max_turns=Settings().max_turns, seed=0)
        samples = self.drawer.validation(self.command.validate_per_set, optimiser.rank, optimiser.world)
        sums: dict[str, list[float]] = {}
        with _greedy(self.trainable.policy) as policy:
            for episode in collect(
                rollout(samples, policy, self.tool, settings, batch_size=self.command.batch_size)
            ):
                reward = score_episode(episode, self.profile).total
                if reward is None or episode.truth is None:
                    continue
                mask = episode.mask if episode.mask is not None else episode.truth & False
                row = (1.0, iou(mask, episode.truth), reward, float(len(episode.turns)))
                name = episode.sample_id.split("/")[0]
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 4), row, strict=True)]
        names = self.drawer.validation_sets
        rows = {name: [optimiser.total(value) for value in sums.get(name, [0.0] * 4)] for name in names}
        rows = {name: row for name, row in rows.items() if row[0]}
        count = sum(row[0] for row in rows.values())
        if not count:
            raise InputError("validation episodes have a reward", "none has", "check --tool and the data")
        return {
            "set-macro IoU": sum(row[1] / row[0] for row in rows.values()) / len(rows),
            "mean IoU": sum(row[1] for row in rows.values()) / count,
            "reward": sum(row[2] for row in rows.values()) / count,
            "turns": sum(row[3] for row in rows.values()) / count,
            "n": count,
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the trained policy saw."""
        from ibisagent.fingerprint import fingerprint

        s = self.settings
        return fingerprint(self.trainable.policy, self.tool, s.system_text, s.verbs, s.history, s.style)


@contextmanager
def _greedy(policy: Any) -> Iterator[Any]:
    """The policy at temperature 0."""
    sampled, policy.temperature = policy.temperature, 0.0
    try:
        yield policy
    finally:
        policy.temperature = sampled


def _profile(command: TrainRl, round_: Round) -> Profile:
    from ibisagent.rewards import PROFILES, adapted

    profile = PROFILES[command.profile]
    if command.without:
        profile = profile.without(*command.without)
    if command.adaptive:
        profile = adapted(profile, round_.drawer.oracle_episodes(round_.tool))
    return profile


def facts_of(played: Sequence[Sequence[Played]], optimiser: Optimiser) -> dict[str, float]:
    """Means over the rollouts that are trained, over all processes; groups without spread are not."""
    from ibisagent.masks import iou

    rows = []
    for one in (one for group in played for one in group):
        truth, mask = one.episode.truth, one.episode.mask
        if one.reward.total is None or truth is None:
            continue
        overlap = iou(mask if mask is not None else truth & False, truth)
        stopped = float(one.episode.status == "terminated")
        rows.append((1.0, one.reward.total, overlap, float(len(one.episode.turns)), stopped))
    count, *sums = (optimiser.total(sum(row[k] for row in rows)) for k in range(5))
    names = ("reward", "iou", "turns", "terminated")
    return {"rollouts": count} | {
        name: round(value / max(count, 1), 5) for name, value in zip(names, sums, strict=True)
    }
