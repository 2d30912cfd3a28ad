"""Jobs over Ray equal those of this process; one small node is started for all tests here."""

import sys

import pytest
from evaluation.small_sets import make_sets
from synthesis.made_data import made, make_set, without_times

from ibisagent.cli import main
from ibisagent.errors import InputError, MissingExtraError
from ibisagent.evaluation.evaluate import Evaluate, evaluate
from ibisagent.evaluation.samples import read_lines
from ibisagent.evaluation.summary import equal_part
from ibisagent.pair import PairOptions
from ibisagent.synthesis import synthesize
from ibisagent.synthesis.synthesize import Synthesize, run


@pytest.fixture(scope="module")
def node():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_missing_ray_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"checkout of ibisagent: pip install '\.\[ray\]'"):
        run(Synthesize(tmp_path, tmp_path / "out", engine="ray"))
    with pytest.raises(MissingExtraError, match=r"checkout of ibisagent: pip install '\.\[ray\]'"):
        evaluate(Evaluate(tmp_path, out=tmp_path / "out", engine="ray"))
    assert main(["synthesize", str(tmp_path), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2


def test_synthesis_over_ray_equals_that_of_one_process(node, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "_SHARD_CASES", 2)
    data = make_set(tmp_path / "data", 5)
    options = {
        "tool": "classical",
        "max_turns": 3,
        "keep_unreached": True,
        "self_correction": 0.4,
        "hold_out": False,
    }
    assert run(Synthesize(data, tmp_path / "here", **options)) == 0
    monkeypatch.chdir(tmp_path)
    relative = data.relative_to(tmp_path)
    assert run(Synthesize(relative, tmp_path / "ray", **options, engine="ray", workers=2)) == 0
    assert made(tmp_path / "ray") == made(tmp_path / "here")
    assert len(list((tmp_path / "ray").glob("trajectories-*"))) == 3


def test_an_interrupted_job_continues_over_ray(node, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "_SHARD_CASES", 2)
    data = make_set(tmp_path / "data", 4)
    options = {"tool": "classical", "max_turns": 3, "keep_unreached": True, "hold_out": False}
    run(Synthesize(data, tmp_path / "whole", **options))
    run(Synthesize(data, tmp_path / "part", **options))
    shard = tmp_path / "part/trajectories-00000.jsonl"
    lines = shard.read_text().splitlines(keepends=True)
    (tmp_path / "part/journal-00000.jsonl").write_text("".join(lines[:1]) + lines[-1][:30])
    shard.unlink()
    run(Synthesize(data, tmp_path / "part", **options, engine="ray"))
    assert made(tmp_path / "part") == made(tmp_path / "whole")


def test_evaluation_over_ray_equals_that_of_one_process(node, tmp_path):
    data = make_sets(tmp_path / "data")
    pair = PairOptions(policy="scripted:oracle", tool="classical", start="none", max_turns=3)
    here = evaluate(Evaluate(data, out=tmp_path / "here", pair=pair, workers=1))
    ray = evaluate(Evaluate(data, out=tmp_path / "ray", pair=pair, workers=2, engine="ray"))
    assert equal_part(ray) == equal_part(here)
    cases = [
        {line["case"]: without_times(line["episode"]) for line in read_lines(tmp_path / name)}
        for name in ("here", "ray")
    ]
    assert cases[0] == cases[1] and len(cases[0]) == 8


def test_a_fault_in_a_worker_keeps_its_words(node, tmp_path):
    data = make_set(tmp_path / "data", 2)
    for engine in ("process", "ray"):
        with pytest.raises(InputError, match="the tool is one that ibisagent knows"):
            run(Synthesize(data, tmp_path / engine, tool="nothing", engine=engine))
