"""A synthesis job with instructions of its own: counted, labelled, resumable."""

import json
from collections import Counter

import pytest
from made_data import made, make_set
from PIL import Image

from ibisagent.episodes import read_episodes
from ibisagent.errors import InputError
from ibisagent.replay import replay
from ibisagent.synthesis import synthesize
from ibisagent.synthesis.instructions import PRESENT
from ibisagent.synthesis.manifest import trajectory_files
from ibisagent.synthesis.synthesize import Synthesize, run
from ibisagent.tools.classical import ClassicalTool

SHARES = ("name:1", "question:1", "function:1", "relation:2", "absent:1", "contradictory:1")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(synthesize, "_SHARD_CASES", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data"), 8)


def command(data, out, **options):
    given = {
        "tool": "classical",
        "max_turns": 3,
        "keep_unreached": True,
        "absent": 0.6,
        "plain": 1.0,
        "hold_out": False,
    }
    return Synthesize(data, out, **(given | {"instructions": SHARES} | options))


def read(out):
    episodes = [episode for path in trajectory_files(out) for episode in read_episodes(path)]
    lines = [line for path in sorted(out.glob("instructions-*")) for line in path.read_text().splitlines()]
    return episodes, [json.loads(line) for line in lines]


def test_every_trajectory_has_an_instruction_with_its_kind(data, tmp_path):
    assert run(command(data, tmp_path / "out")) == 0
    episodes, facts = read(tmp_path / "out")
    assert [(fact["sample_id"], fact["seed"]) for fact in facts] == [(e.sample_id, e.seed) for e in episodes]
    kinds = Counter(fact["kind"] for fact in facts)
    counts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert counts["counts"]["instructions"] == dict(sorted(kinds.items()))
    assert counts["job"]["instructions"]["relation"] == 2.0
    assert kinds["relation"] and kinds["absent"] and kinds["contradictory"] and kinds["function"]
    for episode, fact in zip(episodes, facts, strict=True):
        assert episode.target == fact["target"]
        assert episode.truth.any() == (fact["kind"] in PRESENT)
        assert (episode.kind == "absent") == (not episode.truth.any())
        assert replay(episode, ClassicalTool()).verified
        if fact["kind"] == "relation":
            assert fact["target"] in fact["candidates"] and fact["relation"]
        if fact["kind"] == "contradictory":
            assert episode.sample_id.endswith("~contradictory")
            assert fact["target"] not in {e.target for e in episodes if e.truth.any()} or fact["side"]
    sentences = {episode.instruction for episode in episodes}
    assert len(sentences) > len(episodes) / 2
    assert run(command(data, tmp_path / "out")) == 0, "a finished job does nothing"


def test_an_interruption_changes_nothing(data, tmp_path, monkeypatch):
    run(command(data, tmp_path / "whole"))

    class Ends(BaseException):
        """Stands for a kill."""

    class Dying(ClassicalTool):
        left = 9

        def predict(self, requests):
            Dying.left -= 1
            if not Dying.left:
                raise Ends
            return super().predict(requests)

    with monkeypatch.context() as patch:
        patch.setattr("ibisagent.tools.load_tool", lambda *_, **__: Dying())
        with pytest.raises(Ends):
            run(command(data, tmp_path / "cut"))
    run(command(data, tmp_path / "cut"))
    assert made(tmp_path / "cut") == made(tmp_path / "whole")
    with pytest.raises(InputError, match="continued with the options"):
        run(command(data, tmp_path / "cut", instructions=("name:1",)))


def test_without_the_option_nothing_changes(data, tmp_path):
    run(command(data, tmp_path / "out", instructions=(), limit=3))
    episodes, facts = read(tmp_path / "out")
    assert not facts and "instructions" not in json.loads((tmp_path / "out/manifest.json").read_text())["job"]
    assert {episode.instruction for episode in episodes} <= {
        f"Find the {target} in this image." for target in ("liver", "spleen", "left kidney")
    }


def test_only_contradictory_ones_and_a_users_own_words(data, tmp_path):
    shares = dict.fromkeys(("plain", "self_correction", "wrong_start", "stop"), 0.0)
    run(command(data, tmp_path / "out", instructions=("contradictory:1",), absent=1.0, **shares))
    episodes, facts = read(tmp_path / "out")
    assert {fact["kind"] for fact in facts} == {"contradictory"} and len(episodes) == 12
    assert {episode.kind for episode in episodes} == {"absent"}
    (tmp_path / "own").mkdir()
    own = tmp_path / "own"
    Image.new("RGB", (40, 40), (90, 90, 90)).save(own / "a.jpg")
    shape = {"label": "target", "points": [[5, 5], [20, 5], [20, 20], [5, 20]]}
    (own / "a.json").write_text(
        json.dumps({"text": ["What looks odd here?"], "is_sentence": True, "shapes": [shape]})
    )
    run(command(own, tmp_path / "kept", split=None))
    episodes, facts = read(tmp_path / "kept")
    assert [episode.instruction for episode in episodes] == ["What looks odd here?"] and not facts


def test_bad_shares_are_named(data, tmp_path):
    with pytest.raises(InputError, match="KIND:SHARE"):
        run(command(data, tmp_path / "out", instructions=("names:1",)))
    assert not (tmp_path / "out").exists()
