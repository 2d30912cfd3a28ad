"""`chat:MODEL@URL`: any OpenAI-compatible endpoint, local or remote, as a policy.

What leaves this process is the conversation's text and its pictures, re-encoded as PNG from the
pixels of the observation, so that no file's name or metadata travels.
"""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from ibisagent.errors import InputError, PolicyError
from ibisagent.policies.chat_client import ChatClient, ChatOptions
from ibisagent.types import BASE_VERBS, Message, Observation, Pixels, PolicyReply, Support, Verb, View


def parse_chat_spec(spec: str) -> tuple[str, str]:
    """Model and URL of "MODEL@URL", split at the last `@http`; a model's name may hold @, : and /.

    Raises InputError where one of the two is missing.
    """
    found = re.fullmatch(r"(.+)@(https?://\S+)", spec.strip(), re.IGNORECASE)
    if found is None:
        fix = "write for example chat:my-model@http://127.0.0.1:8000/v1"
        raise InputError("chat: takes MODEL@URL with an http(s) URL", None, fix)
    return found[1], found[2]


def png_data_url(pixels: Pixels) -> str:
    """Pixels (uint8 HxWx3) as a PNG data URL: the pixels and nothing else."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the chat API takes them; pictures before the text."""
    converted: list[dict[str, Any]] = []
    for message in messages:
        content: Any = message.text
        if message.images:
            urls = [png_data_url(pixels) for pixels in message.images]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": message.text})
        converted.append({"role": message.role, "content": content})
    return converted


class ChatPolicy:
    """A model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, Ollama, a vendor).

    Greedy by default. The observation's seed is sent; whether the server heeds it is its own affair.
    A reply that is refused, empty or cut off is an error, not a text.
    """

    view = View(max_pixels=262_144, multiple=28)

    def __init__(
        self,
        model: str,
        url: str,
        *,
        allow_upload: bool = False,
        options: ChatOptions | None = None,
        verbs: Iterable[Verb] = BASE_VERBS,
    ) -> None:
        self.options = options or ChatOptions()
        self.client = ChatClient(model, url, allow_upload=allow_upload, options=self.options)
        # servers name a model that they were given as a folder by its path
        shown = PurePosixPath(model).name if model.startswith("/") else model
        self.name = f"chat:{shown}@{self.client.address}"
        self.verbs = frozenset(verbs)

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        allow_upload: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 1024,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        retries: int = 4,
        backoff: float = 0.5,
        concurrency: int = 4,
        verbs: Iterable[Verb] = BASE_VERBS,
    ) -> ChatPolicy:
        """A policy from "MODEL@URL"; times in seconds, `retries` further tries after the first.

        The key comes from IBISAGENT_API_KEY, else OPENAI_API_KEY. Raises InputError for a spec that
        cannot be used or a host that is not loopback without `allow_upload`, MissingExtraError
        without httpx.
        """
        model, url = parse_chat_spec(spec)
        options = ChatOptions(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            timeout=timeout,
            connect_timeout=connect_timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
        )
        return cls(model, url, allow_upload=allow_upload, options=options, verbs=verbs)

    def supports(self, instruction: str) -> Support:
        """A language model takes any instruction."""
        return Support(known=True)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """One reply per observation, in order, with at most `concurrency` requests in flight."""
        if not observations:
            return []
        started = time.perf_counter()
        pool = ThreadPoolExecutor(min(self.options.concurrency, len(observations)))
        try:
            answers = list(pool.map(self._answer, observations))
        finally:  # interrupted, nothing that waits is sent any more
            pool.shutdown(wait=False, cancel_futures=True)
        share = (time.perf_counter() - started) / len(observations)
        return [PolicyReply(text, error, tokens, share) for text, error, tokens in answers]

    def _answer(self, observation: Observation) -> tuple[str, str | None, int]:
        """Text, error and number of tokens."""
        try:
            text, tokens = self.client.complete(chat_messages(observation.messages), observation.seed)
        except PolicyError as error:
            return "", str(error), 0
        return text, None, tokens

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def fingerprint(self) -> Mapping[str, Any]:
        """What the replies depend on, as far as it is known on this side, as JSON values."""
        return {
            "policy": self.name,
            "temperature": self.options.temperature,
            "top_p": self.options.top_p,
            "max_tokens": self.options.max_tokens,
        }
