"""One rollout of the true environment for engines that bring their own loop.

`training/verl.py` and `training/trl.py` both go through this: what they add is only their
engine's types. An engine appends messages and never takes one back, so the history is `all`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ibisagent.environment import Environment
from ibisagent.errors import InputError, ToolError
from ibisagent.fingerprint import fingerprint
from ibisagent.rewards import SHAPED, EpisodeReward, Profile, score_episode
from ibisagent.rollout import check_pair, host_record
from ibisagent.settings import Settings
from ibisagent.types import (
    VLM_VIEW,
    Episode,
    EpisodeStatus,
    Message,
    Observation,
    PolicyReply,
    Sample,
    Support,
    Tool,
    ToolReply,
    ToolRequest,
    Verb,
    View,
)


class EnginePolicy:
    """Stands for the policy where it lives in an engine: says what it sees, writes nothing itself."""

    def __init__(self, engine: str, verbs: frozenset[Verb], view: View = VLM_VIEW) -> None:
        self.name = engine
        self.verbs = verbs
        self.view = view

    def supports(self, instruction: str) -> Support:
        return Support(known=True)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        raise AssertionError(f"{self.name} writes the texts")

    def fingerprint(self) -> Mapping[str, Any]:
        return {"policy": self.name}


class Driver:
    """One episode that an engine drives text by text. Not thread-safe."""

    def __init__(
        self,
        sample: Sample,
        settings: Settings,
        tool: Tool,
        policy: EnginePolicy,
        *,
        rollout: int = 0,
        profile: Profile = SHAPED,
    ) -> None:
        """Raises InputError where tool and settings do not fit, or the history is not `all`."""
        if settings.history != "all":
            raise InputError(
                "an engine's rollout only appends", f"history {settings.history}", 'set history to "all"'
            )
        check_pair(policy, tool, settings)
        if sample.start_mask is not None and "mask" not in tool.prompts:
            raise InputError("a starting mask needs a tool that takes masks", tool.name, "use another tool")
        self._tool = tool
        self._profile = profile
        self._mark = fingerprint(
            policy, tool, settings.system_text, settings.verbs, settings.history, settings.style
        )
        self._environment = Environment(
            sample, settings, policy.view, tool_hears_text="text" in tool.prompts, rollout=rollout
        )
        self._shown: list[Message] = []  # the conversation as the engine holds it
        self._texts = 0

    def begin(self) -> list[Message]:
        """System prompt and first picture; empty where the tool failed before turn 1."""
        environment = self._environment
        request = environment.begin()
        try:
            self._tool.set_image([environment.sample.picture])
        except ToolError as error:
            environment.end(EpisodeStatus.TOOL_ERROR, str(error))
            return []
        if request is not None:
            environment.receive_start(_ask(self._tool.propose, request))
        return self._unseen()

    def reply(self, text: str, tokens: int = 0) -> list[Message]:
        """Take the policy's next text; the messages to append after it, empty where the episode is over."""
        environment = self._environment
        if environment.done:
            return []
        self._texts += 1
        request = environment.submit(PolicyReply(text, tokens=tokens))
        environment.receive(_ask(self._tool.predict, request) if request is not None else None)
        return self._unseen()

    def fail(self, error: str) -> None:
        """The engine's server could not answer: the rollout leaves its group."""
        self._environment.submit(PolicyReply(error=error))

    def cut(self) -> None:
        """The engine ends the rollout: no room for a further turn, or no action in the last text.

        Both are the policy's own faults. What waits for a retry counts as unparsable.
        """
        environment = self._environment
        if environment.done:
            return
        if not self._texts:
            self.reply("")
        if environment.observe().attempt:
            environment.end(EpisodeStatus.UNPARSABLE, "The engine ended the rollout before a retry.")
        else:
            environment.end(EpisodeStatus.TURN_LIMIT, "The engine's budget of tokens was used up.")

    @property
    def done(self) -> bool:
        return self._environment.done

    def episode(self) -> Episode:
        """The finished episode. Asserts that it is over."""
        return self._environment.episode(self._mark, host_record())

    def reward(self) -> EpisodeReward:
        """Of the finished episode; `total` is None where the rollout must leave its group."""
        return score_episode(self.episode(), self._profile)

    def _unseen(self) -> list[Message]:
        """The messages since the last call, without the reply that the engine wrote itself."""
        if self._environment.check_limits():
            return []
        messages = self._environment.observe().messages
        known = len(self._shown)
        assert all(_same(a, b) for a, b in zip(self._shown, messages, strict=False)), "history only appends"
        self._shown = list(messages)
        return [message for message in messages[known:] if message.role != "assistant"]


def _same(a: Message, b: Message) -> bool:
    pictures = len(a.images) == len(b.images) and all(x is y for x, y in zip(a.images, b.images, strict=True))
    return pictures and (a.role, a.text) == (b.role, b.text)


def _ask(call: Callable[[Sequence[ToolRequest]], list[ToolReply]], request: ToolRequest) -> ToolReply:
    try:
        [reply] = call([request])
    except ToolError as error:
        return ToolReply(error=str(error))
    return reply
