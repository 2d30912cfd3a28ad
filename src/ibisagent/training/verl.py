"""verl 0.9.1 (Ray, FSDP, vLLM or SGLang) over our environment, without a fork of it.

`IbisAgentLoop` is what verl runs for every rollout: the true environment, a tool in the same process,
pictures in order, and every token as it was sampled (1 in the mask where the policy wrote it). It is
named in the list that `agent_loop_config_path` points to. A rollout that ends by a fault the policy did
not cause returns no output at all: verl's trainer (`trainer.use_v1`, its default) then has no such row.
`compute_score` is the reward for rows of a single turn. docs/training-verl.md says how to run it.

Left out: pictures within replies, videos, histories other than `all`. verl pins transformers < 5.11, so
it lives in an environment of its own (runs/verl_requirements.txt); this module can be read without it.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ibisagent.errors import InputError, MissingExtraError, ToolError
from ibisagent.rewards import PROFILES, EpisodeReward
from ibisagent.settings import Settings
from ibisagent.training.driver import Driver, EnginePolicy
from ibisagent.training.verl_rows import read_sample
from ibisagent.types import BASE_VERBS, Episode, Message, Tool, Verb

try:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
except ImportError as error:
    _missing: ImportError | None = error
    AgentLoopBase: Any = object  # type: ignore[no-redef]
else:
    _missing = None

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


# --- what one rollout needs -----------------------------------------------------------------------


@functools.cache
def _workshop(spec: str, device: str) -> tuple[Tool, ThreadPoolExecutor]:
    """The tool of this process and the one thread that may use it."""
    from ibisagent.tools import load_tool

    return load_tool(spec, device=device), ThreadPoolExecutor(1, "ibisagent-tool")


def settings_from(options: Mapping[str, Any]) -> Settings:
    """Settings with history `all` from plain values, such as {"max_turns": 8, "verbs": ["Undo"]}.

    Raises InputError for a field or verb that is not known.
    """
    given = dict(options)
    try:
        verbs = BASE_VERBS | {Verb(verb) for verb in given.pop("verbs", ())}
        return Settings(history="all", verbs=verbs, **given)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "settings are fields of ibisagent.environment.Settings but history", str(error)
        ) from None


def _profile(name: str) -> Any:
    if name not in PROFILES:
        raise InputError(
            "the profile is one of ibisagent's", repr(name), f"choose from: {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them; text cannot write control tokens, as in our own policy."""
    from PIL import Image

    chat: list[dict[str, Any]] = []
    for message in messages:
        text = message.text.replace("<|", "< |")
        images = [{"type": "image", "image": Image.fromarray(image)} for image in message.images]
        chat.append({"role": message.role, "content": [*images, {"type": "text", "text": text}]})
    return chat


def _pictures(chat: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]


def breakdown(episode: Episode, reward: EpisodeReward) -> dict[str, float]:
    """What verl logs beside the reward: every term, the last IoU, turns, whether it terminated."""
    import numpy as np

    from ibisagent.masks import iou

    assert episode.truth is not None
    last = episode.turns[-1].mask
    return {
        **reward.terms,
        "iou": iou(np.zeros_like(episode.truth) if last is None else last, episode.truth),
        "turns": float(len(episode.turns)),
        "terminated": float(episode.status == "terminated"),
    }


# --- many turns -----------------------------------------------------------------------------------


class IbisAgentLoop(AgentLoopBase):  # type: ignore[misc]
    """One rollout of our environment on verl's servers; its options stand in the YAML list."""

    def __init__(
        self,
        *args: Any,
        folder: str,
        tool: str = "embedded",
        device: str = "cpu",
        profile: str = "shaped",
        max_tokens: int = 256,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """folder: that of the rows. tool, device: as for `ibisagent segment`. max_tokens: of one text.

        Raises MissingExtraError without verl, InputError for options that cannot work.
        """
        need_verl()
        super().__init__(*args, **kwargs)
        if not self.config.trainer.get("use_v1", True):
            raise InputError(
                "only verl's v1 trainer lets a rollout leave its group",
                "trainer.use_v1=False",
                "leave it at True",
            )
        self._folder = Path(folder)
        self._tool, self._thread = _workshop(tool, device)
        self._profile = _profile(profile)
        self._settings = settings_from(settings or {})
        self._policy = EnginePolicy("verl", self._settings.verbs)
        self._max_tokens, self._room = max_tokens, int(self.rollout_config.response_length)
        if max_tokens < 1 or max_tokens > self._room:
            raise InputError(
                "a text's max_tokens fit into data.max_response_length",
                f"{max_tokens} and {self._room}",
                "a turn takes about 400 tokens beside the text",
            )
        known = self.tokenizer.get_vocab()
        self._forbidden = {known[token] for token in VISION_TOKENS if token in known}
        self._end = known.get("<|im_end|>", self.tokenizer.eos_token_id)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:
        """The rollout as an AgentLoopOutput; an empty list where it must leave its group."""
        seconds = {"generate_sequences": 0.0, "tool_calls": 0.0}
        driver = Driver(
            await self._in_thread(seconds, read_sample, row, self._folder),
            self._settings,
            self._tool,
            self._policy,
            rollout=int(row.get("session_id", 0)),
            profile=self._profile,
        )
        sequence = _Sequence(self)
        new = await self._in_thread(seconds, driver.begin)
        if new:
            await sequence.start(chat_messages(new))
        params = sampling_params | {"max_tokens": self._max_tokens}
        if self.rollout_config.get("name") == "vllm":
            params["logit_bias"] = dict.fromkeys(self._forbidden, -100.0)
        request, stamps = uuid.uuid4().hex, {}
        while new:
            if len(sequence.mask) + self._max_tokens > self._room:
                driver.cut()
                break
            began = time.perf_counter()
            try:
                output = await self.server_manager.generate(
                    request_id=request,
                    prompt_ids=sequence.ids,
                    sampling_params=dict(params),
                    image_data=sequence.images,
                )
            except _server_faults() as error:
                driver.fail(f"{type(error).__name__}: {error}"[:200])
                break
            seconds["generate_sequences"] += time.perf_counter() - began
            for key, value in output.extra_fields.items():
                if key not in stamps or key == "max_global_steps":
                    stamps[key] = value
            text, written = await sequence.write(output, self._forbidden, self._end)
            new = await self._in_thread(seconds, driver.reply, text, written)
            if new:
                await sequence.append(text, chat_messages(new), self._end)
        episode, reward = driver.episode(), driver.reward()
        if reward.total is None:
            return []
        return AgentLoopOutput(
            prompt_ids=sequence.ids[: len(sequence.ids) - len(sequence.mask)],
            response_ids=sequence.ids[len(sequence.ids) - len(sequence.mask) :],
            response_mask=sequence.mask,
            response_logprobs=sequence.logprobs,
            multi_modal_data={"images": sequence.images},
            reward_score=reward.total,
            num_turns=2 * len(episode.turns),
            metrics=AgentLoopMetrics(**seconds),
            extra_fields={
                **stamps,
                "reward_extra_info": breakdown(episode, reward),
                "turn_scores": [text.reward for text in reward.texts],
                "tool_rewards": [],
            },
        )

    async def _in_thread(self, seconds: dict[str, float], call: Callable[..., Any], *values: Any) -> Any:
        """Environment and tool work, one rollout at a time, beside the event loop."""
        began = time.perf_counter()
        made = await asyncio.get_running_loop().run_in_executor(self._thread, call, *values)
        seconds["tool_calls"] += time.perf_counter() - began
        return made


class _Sequence:
    """Tokens, mask, log-probabilities and pictures of one rollout; only ever grows."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._chat: list[dict[str, Any]] = []
        self.images: list[Any] = []
        self.ids: list[int] = []
        self.mask: list[int] = []  # of the tokens after the prompt
        self.logprobs: list[float] | None = None

    async def start(self, chat: list[dict[str, Any]]) -> None:
        self._chat, self.images = chat, _pictures(chat)
        self._loop._assert_mm_supported(True)
        self.ids = list(await self._loop.ct_build_initial_tokens(chat, images=self.images))

    async def write(self, output: Any, forbidden: set[int], end: int) -> tuple[str, int]:
        """Append what was sampled; the text and how many tokens it has without the end.

        Picture tokens would claim pixels that are not there: the reply counts up to the first one.
        """
        ids, logprobs = list(output.token_ids), output.log_probs
        kept = next((place for place, token in enumerate(ids) if token in forbidden), len(ids))
        ids, logprobs = ids[:kept], logprobs[:kept] if logprobs else None
        earlier = None if logprobs is None else (self.logprobs or [])
        merged, self.mask, self.logprobs = await self._loop.ct_merge_assistant_token(
            self.ids, ids, self.mask, earlier, assistant_logprobs=logprobs
        )
        self.ids = list(merged.token_ids)
        length = ids.index(end) if end in ids else len(ids)
        text = self._loop.tokenizer.decode(
            ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text, length

    async def append(self, text: str, chat: list[dict[str, Any]], end: int) -> None:
        """The messages after a reply; one cut off by `max_tokens` is ended first, for the template."""
        if self.ids[-1] != end:
            self.ids.append(end)
            self.mask.append(0)
            if self.logprobs is not None:
                self.logprobs.append(0.0)
        before = [*self._chat, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        merged, self.mask, self.logprobs = await self._loop.ct_merge_context_msg(
            before, [*before, *chat], self.ids, self.mask, self.logprobs
        )
        self.ids, self._chat = list(merged.token_ids), [*before, *chat]
        self.images = [*self.images, *_pictures(chat)]


def _server_faults() -> tuple[type[BaseException], ...]:
    """What a generation server that is gone or too slow raises; everything else is a bug."""
    from ray.exceptions import RayActorError, RayTaskError

    return (TimeoutError, ConnectionError, RayActorError, RayTaskError)


def need_verl() -> None:
    """Raises MissingExtraError, naming the requirements file, where verl cannot be imported."""
    if _missing is not None:
        raise MissingExtraError(
            "this engine needs verl 0.9.1 in an environment of its own",
            str(_missing),
            "pip install -r runs/verl_requirements.txt and then pip install --no-deps ibisagent",
        ) from _missing


# --- a single turn --------------------------------------------------------------------------------


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    folder: str = "",
    tool: str = "embedded",
    device: str = "cpu",
    profile: str = "shaped",
    settings: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one text from the row's own state, as `reward.custom_reward_function`.

    The options come from its `reward_kwargs`. Raises ToolError where the tool fails: verl then drops
    the prompt's group, since a failed call is no reward of 0.
    """
    row = {"extra_info": extra_info, "reward_model": {"ground_truth": ground_truth}}
    chosen = settings_from({**(settings or {}), "max_turns": 1, "retries": 0})
    loaded, thread = _workshop(tool, device)
    driver = Driver(
        read_sample(row, Path(folder)),
        chosen,
        loaded,
        EnginePolicy("verl", chosen.verbs),
        profile=_profile(profile),
    )

    def play() -> None:
        driver.begin()
        driver.reply(solution_str)

    thread.submit(play).result()
    episode, reward = driver.episode(), driver.reward()
    if reward.total is None:
        raise ToolError("a single turn needs the tool", episode.message, "check the tool")
    return {"score": reward.total, **breakdown(episode, reward)}
