import json
from pathlib import Path

import pytest
from small_sets import make_sets

from ibisagent.evaluation.evaluate import Evaluate, run
from ibisagent.evaluation.paper import BENCHMARKS, SYSTEMS
from ibisagent.pair import PairOptions

PAIR = PairOptions(policy="scripted:oracle", tool="classical")


def test_benchmarks_that_are_there_are_run_and_the_others_say_what_they_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sets(tmp_path / "BiomedParseData")
    command = Evaluate(tmp_path, out=tmp_path / "out", reproduce="paper", pair=PAIR)
    assert run(command) == 0
    rows = json.loads((tmp_path / "out" / "reproduction.json").read_text())["rows"]
    assert [row["ours"] is None for row in rows] == [False, True, True]
    ours = rows[0]["ours"]
    assert ours["cases"] == 8 and ours["IoU"] > 79 and ours["cDice"] > ours["cIoU"]
    assert rows[0]["published"]["IBISAgent"] == [85.58, 92.21, 96.39]
    said = capsys.readouterr().err
    assert "needs the test list of MeCoVQA-G+" in said and "not public" in said


def test_other_data_are_a_row_of_their_own(tmp_path: Path) -> None:
    data = make_sets(tmp_path / "sets")
    assert run(Evaluate(data, out=tmp_path / "out", reproduce="paper", pair=PAIR)) == 0
    rows = json.loads((tmp_path / "out" / "reproduction.json").read_text())["rows"]
    assert rows[-1]["name"] == "your data, split test" and rows[-1]["ours"]["cases"] == 8


def test_every_system_has_figures_in_every_row() -> None:
    assert all(len(benchmark.published) == len(SYSTEMS) for benchmark in BENCHMARKS)
