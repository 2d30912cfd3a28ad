"""Options that name a policy and a tool and say how they run, and the agent that they load."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ibisagent.errors import InputError

if TYPE_CHECKING:
    from ibisagent.agent import Agent
    from ibisagent.policies import PolicyOptions
    from ibisagent.types import Mask

STARTS = ("auto", "none", "proposal")  # every other --start is a mask file


@dataclass(frozen=True)
class PolicyFlags:
    """A policy and how it writes."""

    policy: str = "embedded"
    """embedded, embedded:PATH, qwen:PATH_OR_ID, chat:MODEL@URL, scripted:RULE, scripted:@FILE or human"""
    adapter: str | None = None
    """a LoRA adapter on top of a qwen policy"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16"""
    temperature: float = 0.0
    """of the policy; 0 is greedy"""
    max_new_tokens: int | None = None
    """of one policy text; by default 512 for qwen and 1024 for chat"""
    allow_upload: bool = False
    """let a chat policy send pictures to another machine"""
    seed: int = 0
    """of everything that is drawn at random"""

    def policy_options(self) -> PolicyOptions:
        """What the policy is loaded with besides its spec. Raises InputError."""
        from ibisagent.policies import PolicyOptions

        if not 0 <= self.temperature < math.inf:
            raise InputError("--temperature is 0 or more", self.temperature)
        return PolicyOptions(
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            allow_upload=self.allow_upload,
        )


@dataclass(frozen=True)
class PairOptions(PolicyFlags):
    """Policy, tool and how they run together."""

    tool: str = "embedded"
    """embedded, embedded:PATH, classical, sam2:PATH_OR_ID[@512|@1024], medsam2:PATH, sam:PATH_OR_ID or
    medsam:PATH_OR_ID"""
    start: str = "auto"
    """none, proposal, or a mask file to begin from; auto: a proposal where the tool takes text"""
    max_turns: int = 20
    """at most so many turns"""
    history: str = "none"
    """what the policy sees of earlier turns: none, last-K, first+last-K or all"""
    select: Literal["last", "best"] = "last"
    """whose mask is the result: the last one, or the best by the tool's own score"""
    verbs: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[VERB ...]")] = None
    """actions beyond clicks and Terminate: undo, box; by default those that the policy was taught"""
    retries: int = 1
    """further attempts after a text that cannot be executed"""
    system_prompt: Path | None = None
    """a text file that replaces the system prompt"""
    style: Literal["fill", "contour"] = "fill"
    """how the mask is painted"""
    time_limit: float | None = None
    """seconds for one episode"""
    point_to_box: float | None = None
    """let a tool that takes only boxes answer clicks with a box of so many percent of the sides"""


def load_pair(options: PairOptions, truths: dict[str, Mask] | None = None) -> Agent:
    """The agent that the options name. Raises InputError for an option that cannot be used.

    `truths` (true masks by sample id) is for scripted rules that need them.
    """
    from ibisagent.agent import Agent
    from ibisagent.types import Verb

    settings: dict[str, Any] = {
        "max_turns": options.max_turns,
        "retries": options.retries,
        "history": options.history,
        "select": options.select,
        "time_limit": options.time_limit,
        "seed": options.seed,
        "style": options.style,
    }
    if options.start in STARTS[1:]:
        settings["start"] = options.start
    if options.verbs is not None:
        names = {"undo": Verb.UNDO, "box": Verb.BOX}
        unknown = [name for name in options.verbs if name.lower() not in names]
        if unknown:
            raise InputError("--verbs holds undo or box", ", ".join(unknown))
        settings["verbs"] = {names[name.lower()] for name in options.verbs}
    if options.system_prompt is not None:
        try:
            settings["system"] = options.system_prompt.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("--system-prompt is a readable text file", type(error).__name__) from None
    return Agent.load(
        options.policy,
        options.tool,
        options=options.policy_options(),
        point_to_box=options.point_to_box,
        truths=truths,
        **settings,
    )
