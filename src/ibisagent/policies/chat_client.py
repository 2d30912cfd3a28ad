"""A small client for OpenAI-compatible `/chat/completions` endpoints: bounded, patient, discreet.

Every wait and every size has a limit, what may pass is tried again, and the key shows up nowhere but
in its header. Pictures leave this machine only where that is allowed. Read top to bottom: address,
answer, client. Left out on purpose: streaming of tokens, tools, redirects.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ibisagent.errors import InputError, MissingExtraError, PolicyError, install

if TYPE_CHECKING:
    import httpx

KEY_VARIABLES = ("IBISAGENT_API_KEY", "OPENAI_API_KEY")
MAX_ANSWER_BYTES = 4 * 2**20
MAX_WAIT = 60.0  # seconds between two tries; a server that asks for more is given up

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatOptions:
    """How to ask and how long to wait."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    timeout: float = 60.0  # seconds for one try to be answered
    connect_timeout: float = 10.0  # seconds
    retries: int = 4  # further tries after the first
    backoff: float = 0.5  # seconds before the second try, doubled each time
    concurrency: int = 4  # requests in flight

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            value = f"{self.temperature} and {self.top_p}"
            raise InputError("temperature is 0 or above and top_p in (0, 1]", value)
        if min(self.max_tokens, self.concurrency) < 1 or min(self.retries, self.backoff) < 0:
            raise InputError("max_tokens and concurrency are at least 1, retries and backoff at least 0")
        if min(self.timeout, self.connect_timeout) <= 0:
            raise InputError("time-outs are above 0 seconds", f"{self.timeout} and {self.connect_timeout}")


# --- address ----------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: 127.0.0.0/8, ::1 (also IPv4-mapped) or exactly `localhost`."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def base_url(url: str) -> httpx.URL:
    """A base URL such as http://127.0.0.1:8000/v1. Raises InputError for credentials or no web address."""
    import httpx

    rule, fix = "an endpoint is a web address", "write http(s)://HOST[:PORT]/v1"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InputError(rule, None, fix) from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.fragment:
        raise InputError(rule, None, fix)
    secret = any(re.search("key|token|secret|password|sig", name, re.IGNORECASE) for name in parsed.params)
    if parsed.userinfo or secret:
        fix = f"put the key into the environment as {KEY_VARIABLES[0]}"
        raise InputError("a URL carries no credentials", None, fix)
    return parsed


def api_key() -> str | None:
    """The key from the environment, if any. Raises InputError where no header can carry it."""
    key = next((value for name in KEY_VARIABLES if (value := os.environ.get(name, "").strip())), None)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise InputError("a key is printable ASCII without spaces", None, "set the variable again")
    return key


# --- answer -----------------------------------------------------------------------------------


class TryAgain(PolicyError):
    """A failure that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(
        self, rule: str, value: object = None, fix: str | None = None, wait: float | None = None
    ) -> None:
        super().__init__(rule, value, fix)
        self.wait = wait


def read_answer(body: bytes) -> tuple[str, int]:
    """Text and number of written tokens from a chat completion. Raises PolicyError."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason")
        tokens = (answer.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise PolicyError("the endpoint's answer must be a chat completion") from None
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    if refusal or finish == "content_filter":
        raise PolicyError("the model must answer", "a refusal", "try another model")
    if finish == "length":
        raise PolicyError("the reply must be whole", "one cut off at max_tokens", "raise max_tokens")
    if not isinstance(text, str) or not text.strip():
        raise PolicyError("the reply must hold text", "none")
    return text, tokens if isinstance(tokens, int) and tokens > 0 else 0


def read_error(body: bytes) -> tuple[str, str]:
    """The server's own message, and the request field that it does not support; empty where unnamed."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return (error, "") if isinstance(error, str) else ("", "")
    message = next((error[key] for key in ("message", "detail") if isinstance(error.get(key), str)), "")
    unsupported = str(error.get("code")).startswith("unsupported_")
    return message, str(error.get("param") or "") if unsupported else ""


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or an HTTP date), RFC 9110 section 10.2.3."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass  # then it is a date
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


# --- client -----------------------------------------------------------------------------------


class ChatClient:
    """One model at one endpoint; safe to share between threads.

    Redirects are not followed, certificates are checked, and for a loopback host proxies from the
    environment are ignored, since they would carry pictures away.
    """

    def __init__(self, model: str, url: str, *, allow_upload: bool, options: ChatOptions) -> None:
        """Raises InputError for a host that is not loopback without `allow_upload`."""
        if importlib.util.find_spec("httpx") is None:
            raise MissingExtraError("chat: needs httpx", None, install("chat"))
        import httpx

        base = base_url(url)
        host = base.raw_host.decode("ascii").strip("[]")
        local = is_loopback(host)
        if not local and not allow_upload:
            rule = "pictures leave this machine only where that is allowed"
            raise InputError(rule, host, "add --allow-upload, or use an endpoint on this machine")
        if not local:
            plain = ", without encryption" if base.scheme == "http" else ""
            _log.warning("Each turn's picture and instruction are sent to %s%s.", host, plain)
        self.model, self.options = model, options
        self.address = str(base.copy_with(query=None)).rstrip("/")  # for people: no query
        path = base.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        self._endpoint = base.copy_with(path=path)
        self._key = api_key()
        self._unsupported: set[str] = set()  # request fields that this server has refused
        self._lock = threading.Lock()
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(options.timeout, connect=options.connect_timeout),
            follow_redirects=False,
            trust_env=not local,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, messages: Sequence[Mapping[str, Any]], seed: int) -> tuple[str, int]:
        """Text and number of tokens for messages in the API's form.

        `seed` is sent to the server and draws the jitter of the waits. Raises PolicyError, whose text
        never holds the key.
        """
        jitter = random.Random(seed)
        for attempt in range(self.options.retries + 1):
            try:
                text, tokens = read_answer(self._post(self._request(messages, seed)))
                return self._redact(text), tokens
            except TryAgain as failure:
                if attempt == self.options.retries or (failure.wait or 0.0) > MAX_WAIT:
                    tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
                    raise PolicyError(
                        failure.rule, failure.value, failure.fix or f"gave up after {tries}"
                    ) from None
                wait = self.options.backoff * 2**attempt * jitter.uniform(0.5, 1.0)
                time.sleep(min(MAX_WAIT, max(wait, failure.wait or 0.0)))
        raise AssertionError("the last try returns or raises")

    def _request(self, messages: Sequence[Mapping[str, Any]], seed: int) -> bytes:
        """The request's body, without the fields that this server has refused."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
            "seed": seed % 2**31,  # some servers read 32 bits
            "stream": False,
        }
        if self.options.top_p < 1:
            fields["top_p"] = self.options.top_p
        if "max_tokens" in self._unsupported:  # its newer name
            fields["max_completion_tokens"] = self.options.max_tokens
        return json.dumps({name: fields[name] for name in fields if name not in self._unsupported}).encode()

    def _post(self, body: bytes) -> bytes:
        """The answer's bytes for one request. Raises TryAgain for what may pass, else PolicyError."""
        import httpx

        late = f"the endpoint must answer within {self.options.timeout:g} s"
        deadline = time.monotonic() + self.options.timeout
        answer = bytearray()
        try:
            with self._client.stream("POST", self._endpoint, content=body) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise PolicyError("the endpoint's answer must not be compressed")
                for chunk in response.iter_raw():
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise PolicyError(f"an answer has at most {MAX_ANSWER_BYTES} bytes", "more")
                    if time.monotonic() > deadline:
                        raise TryAgain(late)
        # httpx's own messages may quote what was sent, so only their kind is passed on
        except httpx.TimeoutException:
            raise TryAgain(late) from None
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                fix = "set SSL_CERT_FILE to your authority's file"
                raise PolicyError("the endpoint's certificate must be valid", None, fix) from None
            raise TryAgain("the endpoint must be reachable", type(error).__name__, "is it running?") from None
        except httpx.HTTPError as error:
            raise PolicyError("the endpoint must speak HTTP", type(error).__name__) from None
        self._check(response, bytes(answer))
        return bytes(answer)

    def _check(self, response: httpx.Response, body: bytes) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(response.headers.get("retry-after"))
            asked = f" and the wish to wait {wait:.0f} s" if wait else ""
            raise TryAgain("the endpoint must answer", f"status {status}{asked}", wait=wait)
        if 300 <= status < 400:
            raise PolicyError("redirects are not followed", f"status {status}", "give the final URL")
        if status in (401, 403):
            fix = f"set {' or '.join(KEY_VARIABLES)}"
            raise PolicyError("the endpoint must accept the key", f"status {status}", fix)
        message, unsupported = read_error(body)
        if unsupported in {"max_tokens", "temperature", "top_p", "seed"}:
            with self._lock:
                first = unsupported not in self._unsupported
                self._unsupported.add(unsupported)
            if first:
                _log.warning("The endpoint does not support %s and goes its own way there.", unsupported)
            raise TryAgain("the endpoint must take the request", f"{unsupported} refused")
        raise PolicyError(
            "the endpoint must take the request",
            self._quote(status, message),
            "check model and URL; most base URLs end in /v1" if status == 404 else None,
        )

    def _quote(self, status: int, message: str) -> str:
        """Status and the server's words without key, pictures and control characters; short."""
        words = re.sub(r"data:[^\s\"']+", "[picture]", self._redact(message))
        words = "".join(letter if letter.isprintable() else " " for letter in words)[:200]
        return f"status {status}: {words}" if words else f"status {status}"

    def _redact(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")
