"""TRL 1.16's `environment_factory` over our environment; the grammar stays the policy's language.

TRL's loop runs as long as a reply is a tool call. So `prepare` sets a response template that reads
every reply as one call of `reply` with the whole text, but for a well-placed Terminate and for what
follows the end, which are final answers; and a chat template that shows what `reply` returns as a
*user* message with its picture, since the stock ones drop pictures in `tool` messages. The policy
reads and writes just what it does in our own loop, so checkpoints fit both. `episode_rewards` scores
the finished rollouts.

    from ibisagent.training.trl import dataset_rows, environment_factory, episode_rewards, prepare
    GRPOTrainer(model, reward_funcs=episode_rewards, processing_class=prepare(processor),
                train_dataset=Dataset.from_list(dataset_rows(samples, settings)), args=GRPOConfig(...),
                environment_factory=environment_factory(samples, tool, settings))

What TRL does and nothing here can change: a rollout that ended without Terminate (turn limit, repeated
click) writes one reply more, which counts for nothing and yet is trained; the tail beyond
`max_completion_length` is cut silently, pictures included, so give it room for every turn; of the
picture tokens it keeps only the image token from being sampled (for the others set
`generation_kwargs={"suppress_tokens": [...]}`); a text has no limit of its own (set `max_new_tokens`
there too).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ibisagent.errors import InputError
from ibisagent.rewards import SHAPED, Profile
from ibisagent.settings import Settings
from ibisagent.training.driver import Driver, EnginePolicy
from ibisagent.types import VLM_VIEW, Message, Sample, Tool, View

OVER = "The episode is over."
_AFTER_IT = rf"{re.escape(OVER)}<\|im_end\|>\n"  # how a conversation goes on after the end
_TERMINATES = (
    r"(?:(?!<\s*action\s*>).)*<\s*action\s*>\s*Terminat(?:e|ion)\s*<\s*/\s*action\s*>(?!.*<\s*action\s*>)"
)
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": rf"(?<!{_AFTER_IT})<\|im_start\|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": rf"\A(?!.*{_AFTER_IT})(?!{_TERMINATES})",
            "close": "<|im_end|>",
            "content": "text",
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "reply", "arguments": {"text": "{content}"}},
            },
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
CHAT_TEMPLATE = (
    "{% for turn in messages %}"
    "{{ '<|im_start|>' + ('user' if turn.role == 'tool' else turn.role) + '\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endif %}"
    "{% for call in turn.tool_calls or [] %}"
    "{{ call.function.arguments.text or '' if call.function.name == 'reply' else call.function | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class IbisEnvironment:
    """One rollout at a time, reset often. Its only tool is `reply`."""

    def __init__(
        self, samples: dict[str, Sample], tool: Tool, settings: Settings, profile: Profile, view: View
    ) -> None:
        self._samples, self._tool, self._settings = samples, tool, settings
        self._profile, self._policy = profile, EnginePolicy("trl", settings.verbs, view)
        self._driver: Driver | None = None

    def reset(self, sample_id: str, **_: Any) -> list[dict[str, Any]]:
        """The first user message, for the row's prompt. An outside fault is known at the end."""
        if sample_id not in self._samples:
            raise InputError("a row's sample_id is that of a sample", repr(sample_id))
        sample = self._samples[sample_id]
        self._driver = Driver(sample, self._settings, self._tool, self._policy, profile=self._profile)
        begun = self._driver.begin()
        return _content(begun[-1:]) or [{"type": "text", "text": OVER}]

    def reply(self, text: str) -> list[dict[str, Any]]:
        """Hand over a reply of the policy.

        Args:
            text: The whole reply with its thought and its action.

        Returns:
            The next user message.
        """
        assert self._driver is not None, "reset comes first"
        new = self._driver.reply(_without_end(text))
        return _content(new) or [{"type": "text", "text": OVER}]

    def _finish(self, text: str) -> float | None:
        """The reward after the final reply, which was no call; None: the rollout leaves its group."""
        assert self._driver is not None, "reset comes first"
        if text:  # none where TRL's budget ended after an observation
            self._driver.reply(_without_end(text))
        self._driver.cut()
        return self._driver.reward().total


def environment_factory(
    samples: Iterable[Sample],
    tool: Tool,
    settings: Settings,
    *,
    profile: Profile = SHAPED,
    view: View = VLM_VIEW,
) -> Callable[[], IbisEnvironment]:
    """What GRPOTrainer takes as `environment_factory`. All its environments share the tool.

    Raises InputError for a history other than `all`.
    """
    if settings.history != "all":
        raise InputError("TRL's rollouts only append", f"history {settings.history}", 'set history to "all"')
    known = {sample.sample_id: sample for sample in samples}
    return lambda: IbisEnvironment(known, tool, settings, profile, view)


def dataset_rows(samples: Iterable[Sample], settings: Settings) -> list[dict[str, Any]]:
    """Rows for `train_dataset`: the system prompt, and a user message that `reset` fills."""
    prompt = [{"role": "system", "content": settings.system_text}, {"role": "user", "content": ""}]
    return [{"prompt": prompt, "sample_id": sample.sample_id} for sample in samples]


def episode_rewards(
    completions: Sequence[Sequence[dict[str, Any]]], environments: Sequence[IbisEnvironment], **_: Any
) -> list[float | None]:
    """A `reward_funcs` entry. None, for an outside fault, is what TRL leaves out of a group."""
    return [
        environment._finish(_final_text(completion))
        for completion, environment in zip(completions, environments, strict=True)
    ]


def prepare(processor: Any) -> Any:
    """Set both templates on a Qwen-VL processor, in place; returns it. Needs transformers >= 5.13."""
    processor.chat_template = CHAT_TEMPLATE
    processor.tokenizer.chat_template = CHAT_TEMPLATE
    processor.tokenizer.response_template = RESPONSE_TEMPLATE
    return processor


def _final_text(completion: Sequence[dict[str, Any]]) -> str:
    """The text of a last assistant message that was no call; empty where the rollout was cut."""
    last = completion[-1] if completion else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return ""
    content = last.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _without_end(text: str) -> str:
    return text.removesuffix("<|im_end|>")


def _content(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A message as content blocks. Text cannot write control tokens, as in our own policy."""
    from PIL import Image

    blocks: list[dict[str, Any]] = []
    for message in messages:
        blocks += [{"type": "image", "image": Image.fromarray(image)} for image in message.images]
        blocks.append({"type": "text", "text": message.text.replace("<|", "< |")})
    return blocks
