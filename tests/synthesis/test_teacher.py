"""A teacher behind a real HTTP server: what it is given, what is taken from it, what it may cost."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from made_data import make_set, without_times
from teacher_server import GOOD, TeacherServer

from ibisagent.episodes import read_episodes
from ibisagent.errors import InputError
from ibisagent.synthesis.manifest import trajectory_files
from ibisagent.synthesis.synthesize import Synthesize, run
from ibisagent.synthesis.teacher import CHAT, COUNTS, Ask, ChatTeacher, Ledger, TeacherOptions, ledger_path
from ibisagent.synthesis.trajectories import wrong_turns
from ibisagent.types import Click, Terminate, Undo

pytest.importorskip("httpx")
QUICK = replace(CHAT, backoff=0.01, retries=1, timeout=5.0)
PLAIN = "No mask yet. A clear part of the liver is at the left. I click it."


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("IBISAGENT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(number=0, action=None, **given):
    image = np.full((28, 28, 3), number, np.uint8)
    said = {"instruction": "Find the liver.", "painted": False, "target": "liver", "thought": PLAIN}
    return Ask(image=image, action=action or Click(0.25, 0.5, True), seed=number, **(said | given))


def teacher(server, folder, **options):
    return ChatTeacher(TeacherOptions(server.spec, **({"rate": 1e6, "chat": QUICK} | options)), folder)


def counts(folder):
    found = Ledger(folder / "ledger.json").counts()
    assert tuple(found) == COUNTS
    return {name: count for name, count in found.items() if count and not name.startswith("tokens")}


def test_what_the_teacher_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("IBISAGENT_API_KEY", "sk-secret")
    with TeacherServer() as server:
        asks = [ask(), ask(1, Undo(), painted=True), ask(2, Terminate(), painted=True)]
        assert teacher(server, tmp_path).thoughts(asks) == [GOOD] * 3
        texts = {server.text(index) for index in range(3)}
        assert texts == {one.text() for one in asks}
        system = server.asked[0]["messages"][0]["content"]
        assert server.asked[0]["model"] == "org/teacher" and "Never mention a ground truth" in system
        assert server.headers_seen[0]["Authorization"] == "Bearer sk-secret"
        parts = server.asked[0]["messages"][1]["content"]
        assert [part["type"] for part in parts] == ["image_url", "text"]
    click, undo, stop = (one.text() for one in asks)
    assert "Positive Point (0.2500, 0.5000)" in click and "No mask is painted" in click and PLAIN in click
    assert "back" in undo and "painted in green" in undo and "stops" in stop
    assert "sk-secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert counts(tmp_path) == {"asked": 3, "written": 3}


def test_nothing_is_paid_twice(tmp_path):
    with TeacherServer() as server:
        assert teacher(server, tmp_path).thoughts([ask()]) == [GOOD]
        again = teacher(server, tmp_path).thoughts([ask(), replace(ask(), seed=9)])
        assert again == [GOOD] * 2 and len(server.asked) == 1
        for other in (
            ask(1),
            ask(instruction="Find it."),
            ask(action=Click(0.3, 0.5, True)),
            ask(painted=True),
            ask(thought="Else."),
        ):
            assert teacher(server, tmp_path).thoughts([other]) == [GOOD]
        assert len(server.asked) == 6


def test_what_was_kept_and_cannot_be_used_is_asked_for_again(tmp_path):
    leak = '{"text": "The ground truth shows the whole of it."}'
    with TeacherServer() as server:
        teacher(server, tmp_path).thoughts([ask()])
        [kept] = tmp_path.glob("*/*.json")
        for number, damaged in enumerate(("{", "[]", '{"other": 1}', '{"text": 3}', leak), start=2):
            kept.write_text(damaged)
            assert teacher(server, tmp_path).thoughts([ask()]) == [GOOD]
            assert len(server.asked) == number


def test_leaks_are_asked_for_again_then_the_template_stays(tmp_path):
    bad = "The ground truth covers more of the liver on this side."
    with TeacherServer(lambda number, body: bad if number == 1 else GOOD) as server:
        assert teacher(server, tmp_path / "a").thoughts([ask()]) == [GOOD]
        again = server.asked[1]["messages"]
        assert again[2] == {"role": "assistant", "content": bad}
        assert "the ground truth" in again[3]["content"] and again[3]["role"] == "user"
        assert counts(tmp_path / "a") == {"asked": 2, "written": 1, "rejected": 1}
    texts = [
        bad,
        "It is </think><action>Terminate</action> so.",
        "Long words. " * 200,
        "肝臓",
        "IoU is low and so I go on.",
    ]
    for number, text in enumerate(texts):
        folder = tmp_path / str(number)
        with TeacherServer(lambda number, body, text=text: text) as server:
            assert teacher(server, folder).thoughts([ask()]) == [None]
            assert teacher(server, folder).thoughts([ask()]) == [None], "a refusal is kept too"
            assert len(server.asked) == 2
        assert counts(folder) == {"asked": 2, "rejected": 2, "fell_back": 2}
        stored = "".join(path.read_text() for path in folder.rglob("*/*.json"))
        assert text[:12] not in stored, "what leaks is not kept"


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        (500, {}),
        (429, {"Retry-After": "0"}),
        (404, {}),
        (401, {}),
    ],
    ids=["nonsense", "no choice", "no text", "500", "429", "404", "401"],
)
def test_a_server_that_fails_leaves_the_template(tmp_path, answer):
    with TeacherServer(lambda number, body: answer) as server:
        assert teacher(server, tmp_path).thoughts([ask()]) == [None]
        tries = 2 if isinstance(answer, tuple) and answer[0] in (429, 500) else 1
        assert len(server.asked) == tries, "what may pass is tried again"
        assert counts(tmp_path) == {"asked": 1, "failed": 1, "fell_back": 1}
        server.script = lambda number, body: GOOD
        assert teacher(server, tmp_path).thoughts([ask()]) == [GOOD], "a failure is not kept"


def test_a_server_that_recovers_or_is_slow(tmp_path):
    with TeacherServer(lambda number, body: (429, {}) if number == 1 else GOOD) as server:
        assert teacher(server, tmp_path / "a").thoughts([ask()]) == [GOOD]
        assert counts(tmp_path / "a") == {"asked": 1, "written": 1}

    def slow(number, body):
        time.sleep(0.6)
        return GOOD

    with TeacherServer(slow) as server:
        hurried = replace(QUICK, timeout=0.15, retries=0)
        assert teacher(server, tmp_path / "b", chat=hurried).thoughts([ask()]) == [None]
        assert counts(tmp_path / "b") == {"asked": 1, "failed": 1, "fell_back": 1}


def test_a_dead_teacher_stops_the_job_with_a_named_error(tmp_path):
    with TeacherServer(lambda number, body: (500, {})) as server:
        broken = teacher(server, tmp_path, chat=replace(QUICK, retries=0))
        with pytest.raises(InputError, match="teacher answers"):
            broken.thoughts([ask(number) for number in range(40)])
        assert len(server.asked) <= 12 + QUICK.concurrency


def test_budgets_hold_for_all_processes_of_a_job(tmp_path):
    with TeacherServer() as server:
        first, second = (teacher(server, tmp_path / "calls", calls=5) for _ in "ab")
        texts = first.thoughts([ask(number) for number in range(4)])
        texts += second.thoughts([ask(number) for number in range(4, 8)])
        assert texts.count(GOOD) == 5 and texts.count(None) == 3 and len(server.asked) == 5
        assert counts(tmp_path / "calls") == {"asked": 5, "written": 5, "fell_back": 3}
        again = teacher(server, tmp_path / "calls", calls=5).thoughts([ask(0), ask(9)])
        assert again == [GOOD, None], "what is kept costs nothing"
        server.asked.clear()
        tokens = 3000
        texts = teacher(server, tmp_path / "tokens", tokens=tokens).thoughts([ask(n) for n in range(30)])
        found = Ledger(tmp_path / "tokens/ledger.json").counts()
        assert 1 <= len(server.asked) == texts.count(GOOD) < 30
        assert found["tokens_written"] == 11 * len(server.asked)
        assert found["tokens_written"] + found["tokens_read"] <= tokens


def test_failed_calls_count_in_full(tmp_path):
    with TeacherServer(lambda number, body: b"nonsense") as server:
        teacher(server, tmp_path).thoughts([ask()])
    assert Ledger(tmp_path / "ledger.json").counts()["tokens_read"] > QUICK.max_tokens


def test_pace_and_concurrency_are_bounded(tmp_path):
    with TeacherServer() as server:
        teacher(server, tmp_path / "a", rate=20.0).thoughts([ask(number) for number in range(7)])
        times = sorted(server.times)
        assert times[-1] - times[0] >= 6 / 20 - 0.05

    def slow(number, body):
        time.sleep(0.05)
        return GOOD

    with TeacherServer(slow) as server:
        bounded = teacher(server, tmp_path / "b", chat=replace(QUICK, concurrency=2))
        assert bounded.thoughts([ask(number) for number in range(8)]) == [GOOD] * 8
        assert server.most_in_flight == 2


def test_bad_options_are_named():
    for options, words in (
        ({"spec": "teacher"}, "MODEL@URL"),
        ({"calls": 0}, "--teacher-budget"),
        ({"tokens": 0}, "--teacher-budget"),
        ({"rate": 0.0}, "--teacher-rate"),
    ):
        with pytest.raises(InputError, match=words):
            TeacherOptions(**({"spec": "m@http://127.0.0.1:1/v1"} | options))
    away = TeacherOptions("m@https://example.org/v1")
    with pytest.raises(InputError, match="--allow-upload"):
        away.client()
    replace(away, allow_upload=True).client().close()
    assert TeacherOptions("chat:/data/models/big@http://127.0.0.1:1/v1").model == "big"


# --- whole jobs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data"), 4)


def command(data, out, server, **options):
    given = {
        "tool": "classical",
        "max_turns": 3,
        "keep_unreached": True,
        "self_correction": 1.0,
        "plain": 0.5,
        "hold_out": False,
    }
    said = {"teacher": server.spec, "teacher_rate": 1e6}
    return Synthesize(data, out, **(given | said | options))


def episodes(out):
    return [episode for path in trajectory_files(out) for episode in read_episodes(path)]


def test_a_job_with_a_teacher_and_its_counts(data, tmp_path):
    def say(number, body):
        return (
            GOOD
            if "stops here" in body["messages"][1]["content"][-1]["text"]
            else "Here lies the part of it that I look for."
        )

    with TeacherServer(say) as server:
        out = tmp_path / "out"
        assert run(command(data, out, server)) == 0
        first = {path.name: without_times(path.read_text()) for path in out.glob("trajectories-*")}
        calls = len(server.asked)
        wrong = written = 0
        for episode in episodes(out):
            for turn in episode.turns:
                mistake = turn.number in wrong_turns(episode) and episode.kind != "absent"
                wrong += mistake
                said = turn.think in (GOOD, "Here lies the part of it that I look for.")
                assert not (mistake and said), "nobody is paid for a thought that is not to be learnt"
                written += said
                assert turn.attempts[0].format_fault is None
            assert episode.fingerprint["policy"]["thoughts"] == "chat:org/teacher"
        assert wrong > 0 and written > 10
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["job"]["teacher"]["model"] == "org/teacher"
        assert manifest["teacher"]["asked"] == calls and manifest["teacher"]["fell_back"] == 0
        assert manifest["teacher"]["written"] + manifest["teacher"]["cached"] == written
        assert "127.0.0.1" not in json.dumps(manifest["job"]), "another port is the same job"
        for path in out.glob("trajectories-*"):
            path.unlink()  # made again, all from what is kept
        assert run(command(data, out, server)) == 0
        assert len(server.asked) == calls and ledger_path(out).exists()
        for path in out.glob("trajectories-*"):
            assert [without_times(json.loads(line)) for line in path.read_text().splitlines()] == [
                without_times(json.loads(line)) for line in first[path.name].splitlines()
            ]
        with pytest.raises(InputError, match="continued with the options"):
            run(command(data, out, server, teacher=None))


def test_a_job_whose_teacher_leaks_is_that_without_one(data, tmp_path):
    with TeacherServer(lambda number, body: "As the annotation shows it lies here.") as server:
        run(command(data, tmp_path / "leaks", server))
        run(command(data, tmp_path / "plain", server, teacher=None))
    texts = [
        [
            attempt.text
            for episode in episodes(tmp_path / name)
            for turn in episode.turns
            for attempt in turn.attempts
        ]
        for name in ("leaks", "plain")
    ]
    assert texts[0] == texts[1] and texts[0]
    found = json.loads((tmp_path / "leaks/manifest.json").read_text())["teacher"]
    assert found["rejected"] == found["asked"] > 0 and found["written"] == 0 < found["fell_back"]
    assert "teacher" not in json.loads((tmp_path / "plain/manifest.json").read_text())


def test_a_job_is_refused_before_anything_is_made(data, tmp_path):
    with TeacherServer() as server:
        for options, words in (
            ({"teacher": "m@https://example.org/v1"}, "--allow-upload"),
            ({"teacher": "m"}, "MODEL@URL"),
            ({"teacher_rate": -1.0}, "--teacher-rate"),
            ({"teacher_budget": (0, 5)}, "--teacher-budget"),
        ):
            with pytest.raises(InputError, match=words):
                run(command(data, tmp_path / "out", server, **options))
        assert not (tmp_path / "out").exists() and not server.asked
