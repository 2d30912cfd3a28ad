"""The five lines of Python that a user needs.

from ibisagent import Agent
agent = Agent.load(policy="embedded", tool="embedded")
result = agent.segment("picture.png", "Find the liver")
result.mask, result.outcome, result.answer
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from ibisagent.errors import InputError
from ibisagent.images import load_mask, load_picture
from ibisagent.policies import PolicyOptions, load_policy
from ibisagent.rollout import Event, check_pair, rollout
from ibisagent.settings import Settings
from ibisagent.tools import load_tool
from ibisagent.types import (
    BASE_VERBS,
    Episode,
    EpisodeStatus,
    Mask,
    Outcome,
    Picture,
    Policy,
    Sample,
    Tool,
    Turn,
)

MaskLike: TypeAlias = str | Path | Image.Image | np.ndarray
ImageLike: TypeAlias = MaskLike | Picture

MAX_INSTRUCTION = 2000  # characters


@dataclass(frozen=True)
class Result:
    """What an episode came to; everything else is in `episode`."""

    episode: Episode

    @property
    def mask(self) -> Mask | None:
        """Bool HxW in the picture frame; all False where absent; None where the outcome is none."""
        return self.episode.mask

    @property
    def outcome(self) -> Outcome:
        return self.episode.outcome

    @property
    def status(self) -> EpisodeStatus:
        return self.episode.status

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.episode.turns

    @property
    def answer(self) -> str | None:
        return self.episode.answer


class Agent:
    """A policy and a tool that fit each other, with the settings to run them."""

    def __init__(self, policy: Policy, tool: Tool, settings: Settings | None = None) -> None:
        """Raises InputError where the tool cannot take what the policy writes."""
        self.policy = policy
        self.tool = tool
        self.settings = settings or default_settings(policy, tool)
        check_pair(policy, tool, self.settings)

    @classmethod
    def load(
        cls,
        policy: str = "embedded",
        tool: str = "embedded",
        *,
        options: PolicyOptions | None = None,
        point_to_box: float | None = None,
        truths: dict[str, Mask] | None = None,
        **settings: Any,
    ) -> Agent:
        """Load both by their specs (see `ibisagent segment --help`).

        `settings` are fields of `Settings`, such as `max_turns=5`, `start="none"` or `seed=1`, and,
        where there are no `options`, of `PolicyOptions`, such as `device="cuda"`. `verbs` beyond clicks and
        Terminate are those that the episodes allow and, unless `options` say others, those that a qwen or
        chat policy was taught. Raises InputError for others.
        """
        known = {one.name for one in fields(Settings)}
        own = {one.name for one in fields(PolicyOptions)} - known if options is None else set()
        unknown = sorted(set(settings) - known - own)
        if unknown:
            near = difflib.get_close_matches(unknown[0], [*known, *own], 1)
            raise InputError(
                "options are fields of Settings or PolicyOptions",
                ", ".join(unknown),
                f"did you mean {near[0]}?" if near else None,
            )
        options = options or PolicyOptions(**{name: settings.pop(name) for name in own & set(settings)})
        if "verbs" in settings:
            settings["verbs"] = BASE_VERBS | frozenset(settings["verbs"])
            options = options if options.verbs is not None else replace(options, verbs=settings["verbs"])
        Settings(**settings)  # refuses before any weights are read
        the_policy = load_policy(policy, options, truths)
        the_tool = load_tool(tool, device=options.device, dtype=options.dtype, point_to_box=point_to_box)
        return cls(the_policy, the_tool, replace(default_settings(the_policy, the_tool), **settings))

    def segment(self, image: ImageLike, instruction: str, *, start: MaskLike | None = None) -> Result:
        """Run one episode. `image`: path, PIL image, array (HxW or HxWx3) or Picture.

        `start` is a mask to begin from (path, PIL image, or bool HxW array). Raises InputError for what
        cannot be read; a policy or tool that fails is a status of the result.
        """
        events = self.stream([make_sample(image, instruction, start)])
        [episode] = [event.episode for event in events if event.episode is not None]
        return Result(episode)

    def segment_many(
        self, requests: Iterable[tuple[ImageLike, str]], *, batch_size: int = 8
    ) -> Iterator[Result]:
        """Run many (image, instruction) pairs, `batch_size` at a time; results in the given order.

        Raises InputError for a request that cannot be read, by its number from 0, after the results
        of all requests before it.
        """
        failed: list[InputError] = []

        def samples() -> Iterator[Sample]:
            for number, request in enumerate(requests):
                try:
                    yield _requested(request)
                except InputError as error:
                    failed.append(InputError(f"request {number}: {error.rule}", error.value, error.fix))
                    return

        waiting: dict[int, Episode] = {}
        following = 0
        for event in self.stream(samples(), batch_size=batch_size):
            if event.episode is not None:
                waiting[event.number] = event.episode
            while following in waiting:
                yield Result(waiting.pop(following))
                following += 1
        if failed:
            raise failed[0]

    def stream(
        self,
        samples: Iterable[Sample],
        *,
        batch_size: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Every turn as it is taken and every episode as it ends, for live views."""
        return rollout(
            samples, self.policy, self.tool, self.settings, batch_size=batch_size, cancelled=cancelled
        )


def default_settings(policy: Policy, tool: Tool) -> Settings:
    """The policy's own verbs as far as the tool takes them; a proposal where the tool can make one."""
    verbs = frozenset(verb for verb in policy.verbs if verb != "Box" or "box" in tool.prompts)
    start: Literal["proposal", "none"] = "proposal" if "text" in tool.prompts else "none"
    return Settings(verbs=verbs, start=start)


def _requested(request: object) -> Sample:
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InputError("a request is a pair", type(request).__name__, "write (image, instruction)")
    return make_sample(request[0], request[1])


def make_sample(image: ImageLike, instruction: str, start: MaskLike | None = None) -> Sample:
    """A sample whose id says nothing about the file: content and instruction, hashed."""
    if not isinstance(instruction, str):
        raise InputError("an instruction is text", type(instruction).__name__)
    instruction = instruction.strip()
    if not 0 < len(instruction) <= MAX_INSTRUCTION:
        raise InputError(
            f"an instruction has 1 to {MAX_INSTRUCTION} characters",
            f"{len(instruction)}",
            'write for example "Find the liver"',
        )
    if instruction != instruction.encode("utf-8", "replace").decode():
        raise InputError("an instruction is text", "bytes that are no UTF-8")
    picture = image if isinstance(image, Picture) else load_picture(image)
    start_mask = None
    if start is not None:
        known = None if isinstance(image, Picture) else image
        start_mask = load_mask(start, (picture.height, picture.width), picture=known)
    key = hashlib.sha256(f"{picture.content_id}\x1f{instruction}".encode()).hexdigest()
    return Sample(key[:16], picture, instruction, start_mask=start_mask)
