"""The only loop: policy, environment, tool, for one episode or for many that advance together.

Users consume a generator of (sample, turn or episode); inference, synthesis, training and
evaluation all come through here. Left out on purpose: threads and processes, which belong to
the caller (one rollout per process).
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ibisagent.environment import Environment
from ibisagent.errors import InputError, PolicyError, ToolError
from ibisagent.fingerprint import fingerprint
from ibisagent.settings import Settings
from ibisagent.types import (
    Episode,
    EpisodeStatus,
    Mask,
    Observation,
    Policy,
    PolicyReply,
    Sample,
    Tool,
    ToolReply,
    ToolRequest,
    Turn,
    Verb,
)


@dataclass(frozen=True)
class Start:
    """What an episode begins from, before its first turn."""

    kind: Literal["none", "proposal", "file"]
    mask: Mask | None
    score: float | None  # the tool's own


@dataclass(frozen=True)
class Event:
    """What an episode begins from, a turn that was just taken or, last, the finished episode."""

    number: int  # of the episode, from 0, in the order of the samples and their rollouts
    sample: Sample
    start: Start | None = None
    turn: Turn | None = None
    episode: Episode | None = None


def check_pair(policy: Policy, tool: Tool, settings: Settings) -> None:
    """Refuse, before turn 1, a tool that cannot take what the policy writes. Raises InputError."""
    unknown = settings.verbs - policy.verbs
    if unknown:
        raise InputError(
            "a policy is only given verbs that it was taught",
            f"{', '.join(sorted(unknown))} with {policy.name}",
            "leave them out of --verbs",
        )
    wanted = {"point"} | ({"box"} if Verb.BOX in settings.verbs else set())
    missing = wanted - tool.prompts
    if missing:
        fix = "add --point-to-box PERCENT" if "point" in missing else "leave Box out of --verbs"
        raise InputError(
            "the tool must take every prompt that the policy writes",
            f"{tool.name} takes {', '.join(sorted(tool.prompts))} and not {', '.join(sorted(missing))}",
            fix,
        )
    if settings.start == "proposal" and "text" not in tool.prompts:
        raise InputError(
            "an episode that begins from a proposal needs a tool that takes text",
            tool.name,
            "use --start none or another --tool",
        )


def rollout(
    samples: Iterable[Sample],
    policy: Policy,
    tool: Tool,
    settings: Settings,
    *,
    group: int = 1,
    batch_size: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Run `group` rollouts of each sample, `batch_size` episodes at a time.

    Yields what every episode begins from, where it comes to a first turn, every turn as it is taken
    and every episode as it ends; within an episode turns come in order. Raises InputError before the
    first turn where policy and tool do not fit.
    """
    if batch_size < 1 or group < 1:
        raise InputError("batch size and group are at least 1", f"{batch_size}, {group}")
    check_pair(policy, tool, settings)
    mark = fingerprint(policy, tool, settings.system_text, settings.verbs, settings.history, settings.style)
    host = host_record()
    waiting = enumerate((sample, index) for sample in samples for index in range(group))
    live: list[tuple[int, Environment]] = []
    while True:
        fresh = _enter(waiting, batch_size - len(live), policy, tool, settings, cancelled)
        for number, env in ((number, env) for number, env in fresh if not env.done):
            yield Event(number, env.sample, start=Start(env.kind, env.start.mask, env.start.score))
        live += fresh
        if not live:
            return
        asked = [(number, env) for number, env in live if not env.check_limits()]
        replies = _act(policy, [env.observe() for _, env in asked])
        requests = [env.submit(reply) for (_, env), reply in zip(asked, replies, strict=True)]
        answers = iter(_ask(tool.predict, [request for request in requests if request is not None]))
        for (number, env), request in zip(asked, requests, strict=True):
            turn = env.receive(next(answers) if request is not None else None)
            if turn is not None:
                yield Event(number, env.sample, turn=turn)
        for number, env in live:
            if env.done:
                yield Event(number, env.sample, episode=env.episode(mark, host))
        live = [(number, env) for number, env in live if not env.done]


def collect(events: Iterable[Event]) -> Iterator[Episode]:
    """Only the finished episodes, in the order in which they end."""
    return (event.episode for event in events if event.episode is not None)


def _enter(
    waiting: Iterator[tuple[int, tuple[Sample, int]]],
    room: int,
    policy: Policy,
    tool: Tool,
    settings: Settings,
    cancelled: Callable[[], bool],
) -> list[tuple[int, Environment]]:
    """The next episodes: pictures encoded together, proposals asked for together."""
    fresh = []
    for number, (sample, index) in itertools.islice(waiting, room):
        if sample.start_mask is not None and "mask" not in tool.prompts:
            raise InputError("--start FILE needs a tool that takes a mask", tool.name, "use --start none")
        hears_text = "text" in tool.prompts
        env = Environment(
            sample, settings, policy.view, tool_hears_text=hears_text, rollout=index, cancelled=cancelled
        )
        support = policy.supports(sample.instruction)
        if not env.check_limits() and not support.known:
            env.end(EpisodeStatus.UNSUPPORTED_TARGET, support.reason)
        fresh.append((number, env))
    running = [env for _, env in fresh if not env.done]
    proposals = [(env, env.begin()) for env in running]
    asking = [(env, request) for env, request in proposals if request is not None]
    try:
        if running:
            tool.set_image([env.sample.picture for env in running])
    except ToolError as error:
        for env in running:
            env.end(EpisodeStatus.TOOL_ERROR, str(error))
        return fresh
    replies = _ask(tool.propose, [request for _, request in asking])
    for (env, _), reply in zip(asking, replies, strict=True):
        env.receive_start(reply)
    return fresh


def _act(policy: Policy, observations: Sequence[Observation]) -> list[PolicyReply]:
    if not observations:
        return []
    try:
        replies = policy.act(observations)
    except PolicyError as error:
        return [PolicyReply(error=str(error))] * len(observations)
    assert len(replies) == len(observations), f"{policy.name} gave {len(replies)} replies"
    return replies


def _ask(
    call: Callable[[Sequence[ToolRequest]], list[ToolReply]], requests: Sequence[ToolRequest]
) -> list[ToolReply]:
    """The tool's replies with each one's share of the time, never fewer than asked for."""
    if not requests:
        return []
    began = time.perf_counter()
    try:
        replies = call(requests)
    except ToolError as error:
        return [ToolReply(error=str(error))] * len(requests)
    assert len(replies) == len(requests), f"the tool gave {len(replies)} replies to {len(requests)} requests"
    share = (time.perf_counter() - began) / len(requests)
    return [ToolReply(reply.mask, reply.score, reply.low_res_logits, reply.error, share) for reply in replies]


def host_record() -> dict[str, Any]:
    """What replay needs to know about the machine; nothing that identifies it."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "numpy": np.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
