"""The chat policy against a real HTTP server on this machine that plays each scenario."""

import base64
import importlib.util
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from ibisagent.errors import InputError, MissingExtraError
from ibisagent.masks import iou
from ibisagent.policies.chat import ChatPolicy, parse_chat_spec
from ibisagent.policies.chat_client import MAX_ANSWER_BYTES, is_loopback, retry_after
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import BASE_VERBS, EpisodeStatus, Message, Observation, Outcome, Policy

pytest.importorskip("httpx")
KEY = "sk-secret-0123456789"


@dataclass
class Answer:
    """What the server sends back."""

    body: object = None  # JSON, or bytes as they are
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0  # seconds before the status line
    drip: float = 0.0  # seconds between the bytes of the body


class Server(ThreadingHTTPServer):
    """Answers with what `script` returns; keeps what it was asked."""

    daemon_threads = True
    script: Callable[[dict, int], Answer]

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.headers_seen, self.paths = [], [], []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the play."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.headers_seen.append(dict(self.headers))
            server.paths.append(self.path)
            number = len(server.asked)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        answer = server.script(body, number)
        time.sleep(answer.delay)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        with server.lock:
            server.in_flight -= 1
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if answer.drip:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(answer.drip)
        else:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def say(text, finish="stop", tokens=7, **message):
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return Answer({"choices": [choice], "usage": {"completion_tokens": tokens}})


def start_server():
    server = Server()
    server.script = lambda body, number: say("fine")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def server():
    started = start_server()
    yield started
    started.shutdown()
    started.server_close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("IBISAGENT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def load(server, **options):
    return ChatPolicy.load(f"org/model:7b@{server.url}", **({"backoff": 0.01, "retries": 2} | options))


def observe(text="Find the liver.", seed=5, images=()):
    messages = (Message("system", "You are careful."), Message("user", text, tuple(images)))
    pixels = images[-1] if images else np.zeros((28, 28, 3), np.uint8)
    return Observation("s", text, pixels, messages, None, (), BASE_VERBS, 1, 0, seed)


def picture(seed, height=56, width=84):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def error_of(policy, observation=None):
    reply = policy.act([observation or observe()])[0]
    assert reply.text == "" and reply.error
    return reply.error


# --- the request ------------------------------------------------------------------------------


def test_the_request_holds_the_conversation_and_the_pixels(server):
    first, second = picture(1), picture(2, 28, 28)
    reply = load(server, max_tokens=99).act([observe(images=[first, second], seed=2**40 + 3)])[0]
    assert (reply.text, reply.error, reply.tokens) == ("fine", None, 7)
    assert reply.seconds > 0
    assert server.paths == ["/v1/chat/completions"]
    body = server.asked[0]
    parts = body["messages"][1].pop("content")
    assert body == {
        "model": "org/model:7b",
        "messages": [{"role": "system", "content": "You are careful."}, {"role": "user"}],
        "temperature": 0.0,
        "max_tokens": 99,
        "seed": 3,
        "stream": False,
    }
    assert parts.pop() == {"type": "text", "text": "Find the liver."}
    for part, pixels in zip(parts, (first, second), strict=True):
        assert part["type"] == "image_url"
        head, coded = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        raw = base64.b64decode(coded)
        opened = Image.open(io.BytesIO(raw))
        assert np.array_equal(np.asarray(opened), pixels) and opened.mode == "RGB"
        assert png_chunks(raw) == {b"IHDR", b"IDAT", b"IEND"}  # nothing but pixels
    assert "Authorization" not in server.headers_seen[0]


def test_an_episode_through_an_endpoint(server, sample):
    row, column = (float(places.mean()) for places in np.nonzero(sample.truth))
    click = f"Positive Point ({column / sample.truth.shape[1]:.4f}, {row / sample.truth.shape[0]:.4f})"
    texts = [
        f"<think> There. </think> <action> {click} </action>",
        "<think> It fits. </think> <action> Terminate </action> <answer> A bright disc. </answer>",
    ]
    server.script = lambda body, number: say(texts[number - 1])
    episode = next(collect(rollout([sample], load(server), ClassicalTool(), Settings())))
    assert (episode.status, episode.outcome) == (EpisodeStatus.TERMINATED, Outcome.SEGMENTED)
    assert episode.answer == "A bright disc." and iou(episode.mask, sample.truth) > 0.8
    assert episode.turns[0].attempts[0].tokens == 7
    before, after = (body["messages"][1]["content"][0]["image_url"]["url"] for body in server.asked)
    assert before != after  # the second picture shows the mask


def png_chunks(raw):
    names, place = set(), 8
    while place < len(raw):
        names.add(raw[place + 4 : place + 8])
        place += 12 + int.from_bytes(raw[place : place + 4], "big")
    return names


def test_sampling_options_are_sent(server):
    load(server, temperature=0.7, top_p=0.9).act([observe()])
    assert (server.asked[0]["temperature"], server.asked[0]["top_p"]) == (0.7, 0.9)


def test_the_key_comes_from_the_environment_ours_first(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    load(server).act([observe()])
    monkeypatch.setenv("IBISAGENT_API_KEY", f" {KEY}\n")
    load(server).act([observe()])
    assert [seen["Authorization"] for seen in server.headers_seen] == ["Bearer second", f"Bearer {KEY}"]


def test_a_key_that_no_header_can_carry_is_refused_unseen(server, monkeypatch):
    monkeypatch.setenv("IBISAGENT_API_KEY", "sk secret\x07")
    with pytest.raises(InputError, match="printable ASCII") as caught:
        load(server)
    assert "secret" not in str(caught.value)


def test_order_is_kept_and_requests_in_flight_are_bounded(server):
    together = threading.Barrier(3)

    def script(body, number):
        together.wait(timeout=30)  # answers only while three are in flight
        text = body["messages"][1]["content"]
        return replace(say(f"to {text}"), delay=0.02 * (3 - int(text) % 3))  # the first asked comes last

    server.script = script
    replies = load(server, concurrency=3).act([observe(str(number)) for number in range(9)])
    assert [reply.text for reply in replies] == [f"to {number}" for number in range(9)]
    assert server.most_in_flight == 3
    assert load(server).act([]) == []


def test_one_bad_item_does_not_spoil_the_others(server):
    server.script = lambda body, number: (
        Answer({}, status=400) if body["messages"][1]["content"] == "bad" else say("fine")
    )
    replies = load(server).act([observe("a"), observe("bad"), observe("b")])
    assert [reply.text for reply in replies] == ["fine", "", "fine"]
    assert replies[1].error


# --- what may pass is tried again -------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the client would have slept, in order."""
    slept = []
    monkeypatch.setattr("ibisagent.policies.chat_client.time", FakeTime(slept))
    return slept


class FakeTime:
    """The clock of the client: real, but for sleeping."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, slept):
        self.sleep = slept.append


def test_429_waits_as_long_as_the_server_asks(server, waits):
    server.script = lambda body, number: Answer({}, 429, {"Retry-After": "7"}) if number == 1 else say("fine")
    assert load(server).act([observe()])[0].text == "fine"
    assert waits == [7.0] and len(server.asked) == 2


def test_waits_double_with_a_jitter_that_the_seed_repeats(server, waits):
    server.script = lambda body, number: Answer({}, 500)
    policy = load(server, retries=3, backoff=1.0)
    for seed in (1, 1, 2):
        error_of(policy, observe(seed=seed))
    first, again, other = waits[:3], waits[3:6], waits[6:]
    assert first == again != other
    assert all(0.5 * 2**number <= wait <= 2**number for number, wait in enumerate(first))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_giving_up(server, status):
    server.script = lambda body, number: Answer({}, status)
    assert error_of(load(server)) == f"the endpoint must answer; got status {status}; gave up after 3 tries"
    assert len(server.asked) == 3


def test_a_wait_that_is_too_long_is_not_waited_for(server):
    server.script = lambda body, number: Answer({}, 429, {"Retry-After": "3600"})
    assert "status 429 and the wish to wait 3600 s" in error_of(load(server))
    assert len(server.asked) == 1


def test_retry_after_takes_seconds_and_dates():
    from datetime import UTC, datetime, timedelta

    assert retry_after("2.5") == 2.5 and retry_after("-1") == 0.0
    assert retry_after(None) is None and retry_after("soon") is None
    assert 28 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)) <= 30


def test_a_slow_endpoint_times_out(server):
    released = threading.Event()
    server.script = lambda body, number: say("late" if released.wait(timeout=30) else "never")
    assert error_of(load(server, timeout=0.2, retries=1)).startswith("the endpoint must answer within 0.2 s")
    assert len(server.asked) == 2
    released.set()


def test_an_answer_that_drips_times_out_as_a_whole(server):
    server.script = lambda body, number: replace(say("late"), drip=0.02)
    assert "must answer within 0.3 s" in error_of(load(server, timeout=0.3, retries=0))


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        policy = ChatPolicy.load(f"m@{url}", retries=1, backoff=0.01)
        assert error_of(policy) == "the endpoint must be reachable; got ConnectError; is it running?"


# --- answers that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(b"<html>"), "must be a chat completion"),
        (Answer(b"\xff\xfe"), "must be a chat completion"),
        (Answer(b"[" * 100_000), "must be a chat completion"),
        (Answer({"choices": []}), "must be a chat completion"),
        (Answer({"choices": [{"message": "hello"}]}), "must be a chat completion"),
        (Answer([1, 2]), "must be a chat completion"),
        (say(None), "must hold text"),
        (say("  \n"), "must hold text"),
        (say({"text": "x"}), "must hold text"),
        (say("<think> cut", finish="length"), "cut off at max_tokens"),
        (say("", finish="content_filter"), "a refusal"),
        (say(None, refusal="I cannot help with that."), "a refusal"),
        (Answer(say("x").body, headers={"Content-Encoding": "gzip"}), "must not be compressed"),
        (Answer({"error": {"message": "no such model"}}, 404), "status 404: no such model; check model and"),
        (Answer({"detail": "bad\x1b[31m request"}, 422), "status 422: bad [31m request"),
        (Answer(b"<html>", 400), "got status 400"),
    ],
)
def test_answers_that_cannot_be_used_are_errors_and_not_tried_again(server, answer, said):
    server.script = lambda body, number: answer
    assert said in error_of(load(server))
    assert len(server.asked) == 1


def test_text_in_parts_and_an_answer_without_usage(server):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    body = {"choices": [{"message": {"content": parts}}]}
    server.script = lambda *_: Answer(body)
    reply = load(server).act([observe()])[0]
    assert (reply.text, reply.tokens) == ("one two", 0)


def test_a_huge_answer_is_cut_off(server):
    server.script = lambda body, number: say("x" * 2 * MAX_ANSWER_BYTES)
    assert f"at most {MAX_ANSWER_BYTES} bytes" in error_of(load(server))


def test_redirects_are_not_followed(server):
    other = start_server()
    server.script = lambda body, number: Answer({}, 307, {"Location": f"{other.url}/chat/completions"})
    assert "redirects are not followed" in error_of(load(server))
    assert other.asked == [] and len(server.asked) == 1
    other.shutdown()
    other.server_close()


def test_fields_that_a_server_does_not_support_are_left_out(server, caplog):
    def script(body, number):
        for name in ("max_tokens", "temperature"):
            if name in body:
                error = {"message": f"Unsupported: {name}", "param": name, "code": "unsupported_parameter"}
                return Answer({"error": error}, 400)
        return say("fine")

    server.script = script
    policy = load(server, max_tokens=77)
    assert policy.act([observe()])[0].text == "fine"
    assert server.asked[-1]["max_completion_tokens"] == 77
    assert policy.act([observe()])[0].text == "fine"
    assert len(server.asked) == 4  # learnt once
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [
        ("max_tokens",),
        ("temperature",),
    ]


# --- discretion -------------------------------------------------------------------------------


def test_the_key_shows_up_nowhere(server, monkeypatch, caplog):
    monkeypatch.setenv("IBISAGENT_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    policy = load(server)
    server.script = lambda body, number: Answer({"error": {"message": f"wrong key {KEY}"}}, 400)
    assert error_of(policy).endswith("got status 400: wrong key [key]")
    server.script = lambda body, number: Answer({"error": {"message": f"wrong key {KEY[:8]}***"}}, 401)
    assert error_of(policy).endswith("set IBISAGENT_API_KEY or OPENAI_API_KEY") and "sk-" not in error_of(
        policy
    )
    server.script = lambda body, number: say(f"your key is {KEY}")
    assert policy.act([observe()])[0].text == "your key is [key]"
    server.script = lambda body, number: Answer(b"", 500)
    error_of(policy)
    shown = f"{policy.name} {json.dumps(policy.fingerprint())} {caplog.text}"
    assert KEY not in shown and "secret" not in shown


def test_pictures_that_a_server_quotes_are_not_repeated(server):
    def script(body, number):
        url = body["messages"][1]["content"][0]["image_url"]["url"]
        return Answer({"error": {"message": f"cannot read '{url}' at all"}}, 400)

    server.script = script
    error = error_of(load(server), observe(images=[picture(1)]))
    assert error.endswith("status 400: cannot read '[picture]' at all")


def test_a_loopback_endpoint_is_asked_past_any_proxy(server, monkeypatch):
    proxy = start_server()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert load(server).act([observe()])[0].text == "fine"
    assert proxy.asked == [] and len(server.asked) == 1
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.200.3.4", "localhost", "LOCALHOST", "localhost.", "::1", "::ffff:127.0.0.1"],
)
def test_loopback_hosts(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "evil-localhost",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "192.168.1.2",
        "::ffff:10.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "",
    ],
)
def test_other_hosts(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://api.example.com/v1", "only where that is allowed; got api.example.com; add --allow-upload"),
        ("http://localhost.evil.com/v1", r"got localhost\.evil\.com"),
        ("http://0.0.0.0:8000/v1", r"got 0\.0\.0\.0"),
        ("http://[::ffff:10.0.0.1]/v1", "only where that is allowed"),
        ("http://127.0.0.1@evil.com/v1", "a URL carries no credentials"),
        (
            "http://evil.com\\@127.0.0.1/v1",
            "carries no credentials|is a web address|only where that is allowed",
        ),
        (
            "http://127.0.0.1\\.evil.com/v1",
            "carries no credentials|is a web address|only where that is allowed",
        ),
        ("http://127.0.0.1:80#@evil.com/", "an endpoint is a web address"),
        ("http://me:pass@127.0.0.1/v1", "a URL carries no credentials"),
        ("http://127.0.0.1/v1?api_key=abc", "a URL carries no credentials"),
        ("http://", "takes MODEL@URL|an endpoint is a web address"),
    ],
)
def test_addresses_that_are_refused(url, said):
    with pytest.raises(InputError, match=said) as caught:
        ChatPolicy.load(f"m@{url}")
    assert "pass" not in str(caught.value).replace("password", "") and "abc" not in str(caught.value)


def test_an_allowed_upload_says_so_once(caplog):
    policy = ChatPolicy.load("m@http://api.example.com/v1?api-version=3", allow_upload=True)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Each turn's picture and instruction are sent to api.example.com, without encryption."]
    assert policy.name == "chat:m@http://api.example.com/v1"
    assert str(policy.client._endpoint) == "http://api.example.com/v1/chat/completions?api-version=3"


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "http://localhost:11434/v1/", "https://127.0.0.1"])
def test_this_machine_needs_no_permission(url, caplog):
    ChatPolicy.load(f"m@{url}")
    assert caplog.records == []


# --- spec and policy --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("m@http://h/v1", "m", "http://h/v1"),
        ("Qwen/Qwen2.5-VL-7B-Instruct@https://h:8/v1", "Qwen/Qwen2.5-VL-7B-Instruct", "https://h:8/v1"),
        ("qwen2.5vl:7b@http://localhost:11434/v1", "qwen2.5vl:7b", "http://localhost:11434/v1"),
        ("a@b@HTTP://h", "a@b", "HTTP://h"),
        ("m@http://one@http://two/v1", "m@http://one", "http://two/v1"),
        ("ft:m@2024-01@httpx@http://h/v1", "ft:m@2024-01@httpx", "http://h/v1"),
    ],
)
def test_specs_are_split_at_the_last_address(spec, model, url):
    assert parse_chat_spec(spec) == (model, url)


@pytest.mark.parametrize(
    "spec", ["", "m", "@http://h", "m@", "m@ftp://h", "m@http://", "m@http://a b", "http://h"]
)
def test_specs_without_model_or_url(spec):
    with pytest.raises(InputError, match="takes MODEL@URL"):
        parse_chat_spec(spec)


def test_it_is_a_policy_and_names_no_path(server):
    policy = ChatPolicy.load(f"/home/me/models/ibis-7b@{server.url}")
    assert isinstance(policy, Policy)
    assert policy.name == f"chat:ibis-7b@{server.url}"
    assert policy.supports("anything at all").known
    assert policy.verbs == BASE_VERBS
    assert policy.fingerprint() == {
        "policy": policy.name,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 1024,
    }


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"concurrency": 0}, {"timeout": 0}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(InputError):
        ChatPolicy.load("m@http://127.0.0.1/v1", **options)


def test_without_httpx(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "httpx" else find(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"checkout of ibisagent: pip install '\.\[chat\]'"):
        ChatPolicy.load("m@http://127.0.0.1/v1")
