"""A job is whole, labelled, counted, and the same however often it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_data import made, make_set
from PIL import Image

from ibisagent.datasets.biomedparse import split_of
from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.episodes import check_actions, read_episodes
from ibisagent.errors import InputError
from ibisagent.replay import replay
from ibisagent.synthesis import export, synthesize
from ibisagent.synthesis.manifest import trajectory_files
from ibisagent.synthesis.synthesize import Synthesize, run
from ibisagent.synthesis.trajectories import reached
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training.sft import TrainSft, train

PICTURES = 6


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(synthesize, "_SHARD_CASES", 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data"), PICTURES)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize, "_SHARD_CASES", 3)
        out = tmp_path_factory.mktemp("whole") / "out"
        assert run(command(data, out)) == 0
    return out


def command(data, out, **options):
    given = {
        "tool": "classical",
        "max_turns": 4,
        "keep_unreached": True,
        "absent": 0.2,
        "self_correction": 0.4,
        "batch_size": 2,
        "stop_at": 0.94,
        "hold_out": False,
    }
    return Synthesize(data, out, **(given | options))


def episodes(out):
    return [episode for path in trajectory_files(out) for episode in read_episodes(path)]


def test_the_validation_patients_are_left_out_unless_they_are_wanted(data, whole, tmp_path):
    for split, held in (("train", {"val"}), (None, set())):
        folder = tmp_path / str(split)
        run(command(data, folder, hold_out=True, split=split))
        left = {e.sample_id.rpartition("/")[0] for e in episodes(whole)}
        left -= {e.sample_id.rpartition("/")[0] for e in episodes(folder)}
        cases = open_dataset(data, None, ReadOptions(split="train")).cases
        assert {split_of(case.patient or case.key) for case in cases if case.key in left} == held
        assert len(left) == len(held), "one of the six is a validation patient"


def test_every_target_has_one_labelled_trajectory_that_replays(data, whole):
    found = episodes(whole)
    present = [episode for episode in found if episode.kind != "absent"]
    assert len(present) == 9, "six livers and three spleens"
    assert len({episode.sample_id for episode in found}) == len(found)
    tool = ClassicalTool()
    for episode in found:
        check_actions(episode)
        assert replay(episode, tool).verified
        assert (episode.kind == "unreached") != reached(episode, 0.94)
    manifest = json.loads((whole / "manifest.json").read_text())
    kinds = Counter(episode.kind for episode in found)
    assert manifest["complete"] and manifest["counts"]["kinds"] == dict(sorted(kinds.items()))
    assert manifest["counts"]["trajectories"] == len(found) and manifest["counts"]["datasets"] == {
        "SET": len(found)
    }
    assert manifest["counts"]["turns"] == sum(len(episode.turns) for episode in found)
    assert manifest["fingerprint"]["tool"]["name"] == "classical"
    assert len(list(whole.glob("journal-*"))) == 0 and len(list(whole.glob("trajectories-*"))) == 2
    text = "".join(path.read_text() for path in whole.glob("*.json*"))
    assert str(data) not in text and "p0_CT" not in text, "neither paths nor file names"


def test_unreached_ones_are_left_out_and_counted(data, whole, tmp_path):
    kept = [episode.sample_id for episode in episodes(whole) if episode.kind != "unreached"]
    assert len(kept) < len(episodes(whole)), "the data has some"
    assert run(command(data, tmp_path / "out", keep_unreached=False)) == 0
    assert [episode.sample_id for episode in episodes(tmp_path / "out")] == kept
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert counts["left_out"] == {"unreached": len(episodes(whole)) - len(kept)}


class _Ends(BaseException):
    """Stands for a kill: nothing in the package catches it."""


class _Dying(ClassicalTool):
    left = 0

    def predict(self, requests):
        _Dying.left -= 1
        if _Dying.left <= 0:
            raise _Ends
        return super().predict(requests)


def test_a_run_that_ends_anywhere_continues_to_the_same_result(data, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("ibisagent.tools.load_tool", lambda *_, **__: _Dying())
    rng = np.random.default_rng(0)
    ends = 0
    while True:
        _Dying.left = int(rng.integers(1, 14))
        try:
            run(command(data, out))
            break
        except _Ends:
            ends += 1
            for journal in out.glob("journal-*.jsonl"):  # the last line may be torn
                content = journal.read_bytes()
                if content and rng.random() < 0.5:
                    journal.write_bytes(content[: -int(rng.integers(1, 60))])
    assert ends >= 3
    assert made(out) == made(whole)


def test_finished_trajectories_are_not_made_again(data, whole, tmp_path, monkeypatch):
    calls = Counter()

    class Counting(ClassicalTool):
        def predict(self, requests):
            calls["all"] += len(requests)
            return super().predict(requests)

    monkeypatch.setattr("ibisagent.tools.load_tool", lambda *_, **__: Counting())
    run(command(data, tmp_path / "once", batch_size=1))
    once = calls.pop("all")
    out = tmp_path / "out"
    monkeypatch.setattr("ibisagent.tools.load_tool", lambda *_, **__: _Dying())
    _Dying.left = 9
    with pytest.raises(_Ends):
        run(command(data, out, batch_size=1))
    done = sum(
        sum(turn.tool_seconds > 0 for turn in episode.turns)
        for journal in out.glob("*.jsonl")
        for episode in read_episodes(journal)
    )
    monkeypatch.setattr("ibisagent.tools.load_tool", lambda *_, **__: Counting())
    run(command(data, out, batch_size=1))
    assert done > 0 and calls["all"] == once - done
    assert made(out) == made(whole)
    run(command(data, out, batch_size=1))
    assert calls["all"] == once - done, "a finished job does nothing"


def test_an_interrupted_job_is_read_by_nobody_until_it_is_finished(data, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ibisagent.tools.load_tool", lambda *_, **__: _Dying())
        _Dying.left = 16
        with pytest.raises(_Ends):
            run(command(data, out))
    assert list(out.glob("trajectories-*")) and list(out.glob("journal-*")), "one shard of two is finished"
    for read in (
        lambda: trajectory_files(out),
        lambda: train(TrainSft(out, tmp_path / "sft", steps=1)),
        lambda: export.run(export.Export(out, tmp_path / "export")),
    ):
        with pytest.raises(InputError, match=r"synthesis is finished; got an unfinished one in .*; repeat"):
            read()
    [shard] = out.glob("trajectories-*")
    assert trajectory_files(shard) == [shard], "a log that is named is taken"
    assert run(command(data, out)) == 0
    assert [path.name for path in trajectory_files(out)] == [path.name for path in trajectory_files(whole)]
    (out / "manifest.json").write_text('{"schema": "ibisagent.synth')
    with pytest.raises(InputError, match=r"manifest\.json, which is damaged"):
        trajectory_files(out)


def test_what_lies_beside_logs_is_no_log(tmp_path):
    for name in ("journal-00000", "left-out-00000", "instructions-00000"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="got none"):
        trajectory_files(tmp_path)
    (tmp_path / "episode.jsonl").write_text("{}\n")
    assert [path.name for path in trajectory_files(tmp_path)] == ["episode.jsonl"]


START = "import sys; from pathlib import Path; from ibisagent.synthesis import synthesize as s; s._SHARD_CASES = 3;"


def test_sigkill_with_two_workers_then_continue(data, whole, tmp_path):
    out = tmp_path / "out"
    code = START + (
        "s.run(s.Synthesize(Path(sys.argv[1]), Path(sys.argv[2]), tool='classical', max_turns=4, stop_at=0.94, "
        "keep_unreached=True, absent=0.2, self_correction=0.4, batch_size=2, workers=2, hold_out=False))"
    )
    script = tmp_path / "job.py"
    script.write_text("if __name__ == '__main__':\n    " + code)
    process = subprocess.Popen(
        [sys.executable, script, data, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 400
    while time.monotonic() < until and process.poll() is None:
        if sum(path.stat().st_size > 0 for path in out.glob("*-0000*.jsonl")):
            break
        time.sleep(0.02)
    assert process.poll() is None or list(out.glob("trajectories-*")), process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while time.monotonic() < until and _alive(process.pid):  # workers end with their parent
        time.sleep(0.05)
    assert not _alive(process.pid)
    assert run(command(data, out)) == 0
    assert made(out) == made(whole)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    states = [
        Path(f"/proc/{pid.name}/stat").read_text().rsplit(")", 1)[1].split()
        for pid in Path("/proc").iterdir()
        if pid.name.isdigit() and (pid / "stat").exists()
    ]
    return any(int(state[2]) == group and state[0] != "Z" for state in states)


def test_other_options_in_the_same_folder_are_refused(data, whole):
    before = made(whole)
    others = ({"seed": 1}, {"stop_at": 0.9}, {"undo": False}, {"plain": 0.1}, {"window": "0,100"})
    for options in (*others, {"labels": ("1=liver",)}, {"target": "liver"}):
        with pytest.raises(InputError, match="continued with the options"):
            run(command(data, whole, **options))
    assert made(whole) == before


def test_bad_options_are_named(data, tmp_path):
    for options, words in (
        ({"workers": 0}, "--workers"),
        ({"stop_at": 1.5}, "--stop-at"),
        ({"labels": ("liver",)}, "pairs"),
        ({"split": "val"}, "split"),
        ({"tool": "nothing"}, "tool"),
    ):
        with pytest.raises(InputError, match=words):
            run(command(data, tmp_path / "out", **options))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/episode.jsonl").write_text("")
    with pytest.raises(InputError, match="folder of its own"):
        run(command(data, tmp_path / "other"))


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path):
    root = make_set(tmp_path / "data", 3)
    Image.new("1", (10, 10)).save(root / "SET/train_mask/p0_CT_abdomen_liver.png")
    (root / "SET/train/p1_CT_abdomen.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert run(command(root, tmp_path / "out", absent=0.0)) == 0
    assert len(episodes(tmp_path / "out")) == 2, "liver and spleen of the third"
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert counts["left_out"] == {"unreadable": 2}


def test_repeats_differ_and_only_absent_is_possible(data, tmp_path):
    run(command(data, tmp_path / "twice", repeats=2, limit=2, clicks="people", absent=0.0))
    found = episodes(tmp_path / "twice")
    pairs = Counter(episode.sample_id for episode in found)
    assert set(pairs.values()) == {2} and {episode.seed for episode in found} == {0, 1}
    shares = dict.fromkeys(("plain", "self_correction", "wrong_start", "stop"), 0.0)
    run(command(data, tmp_path / "absent", absent=1.0, **shares))
    assert {episode.kind for episode in episodes(tmp_path / "absent")} == {"absent"}
    assert len(episodes(tmp_path / "absent")) == PICTURES


def test_real_data_with_the_default_mix(data_root, tmp_path):
    small = replace(command(data_root / "BTCV", tmp_path / "out"), limit=1, max_turns=2, absent=0.3)
    assert run(small) == 0
    assert all(
        episode.truth.shape == (episode.picture.height, episode.picture.width)
        for episode in episodes(tmp_path / "out")
    )
