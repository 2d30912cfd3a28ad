from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scores import made_up, unreadable, write_run

from ibisagent.errors import InputError
from ibisagent.evaluation.compare import Compare, compare, run, verdict


def row(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [item for item in comparison["differences"] if item["name"] == name]
    return found


def test_a_run_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", made_up())
    comparison = compare(Compare(folder, folder))
    assert len(comparison["differences"]) > 30
    for item in comparison["differences"]:
        if item["difference"] is not None:
            assert (item["difference"], item["low"], item["high"]) == (0.0, 0.0, 0.0), item["name"]
        assert not item["significant"] and verdict(item) == ""
    assert comparison["by_set"]["all"] == {"wins": 0, "losses": 0, "ties": 60}
    assert comparison["changed_most"] == [] and comparison["settings_that_differ"] == []


def test_paired_differences_equal_plain_loops(tmp_path: Path) -> None:
    first, second = made_up(0), made_up(0, shift=0.05)
    lost = [*second[:-1], unreadable(second[-1], "gone")]
    comparison = compare(Compare(write_run(tmp_path / "a", first), write_run(tmp_path / "b", lost, "other")))
    pairs = [(a.iou(), b.iou()) for a, b in zip(first, lost) if a.present and not b.unreadable]
    mean = row(comparison, "mean IoU")
    assert mean["n"] == len(pairs)
    assert mean["difference"] == pytest.approx(np.mean([b - a for a, b in pairs]), abs=1e-12)
    assert mean["significant"] and mean["low"] > 0 and verdict(mean) == "better"
    hausdorff = row(comparison, "HD95 (px)")
    assert hausdorff["difference"] < 0 and verdict(hausdorff) == "better"
    wins = comparison["by_set"]["all"]
    assert wins["wins"] == sum(b - a >= 0.01 for a, b in zip(*map(ious, (first, lost))))
    assert sum(wins.values()) == 60
    changes = [abs(item["change"]) for item in comparison["changed_most"]]
    assert changes == sorted(changes, reverse=True) and len(changes) == 20
    assert comparison["settings_that_differ"] == ["policy: made-up here, other there"]


def ious(cases: list[Any]) -> list[float]:
    return [case.iou() for case in cases]


def test_pairing_narrows_the_interval(tmp_path: Path) -> None:
    """The same shift on every case: certain when paired, though the two runs' intervals overlap."""
    first, second = made_up(0), made_up(0, shift=0.02)
    comparison = compare(Compare(write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)))
    mean = row(comparison, "mean IoU")
    assert mean["significant"] and mean["high"] - mean["low"] < 0.02


def test_runs_on_other_cases_or_truths_are_refused(tmp_path: Path) -> None:
    cases = made_up()
    a = write_run(tmp_path / "a", cases[:30])
    with pytest.raises(InputError, match="share cases"):
        compare(Compare(a, write_run(tmp_path / "b", cases[30:])))
    other = [replace(cases[0], truth_pixels=cases[0].truth_pixels + 1), *cases[1:]]
    with pytest.raises(InputError, match="same true masks"):
        compare(Compare(a, write_run(tmp_path / "c", other)))
    with pytest.raises(InputError, match=r"holds samples\.jsonl"):
        compare(Compare(a, tmp_path))


def test_the_pages_are_written_and_hold_no_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = [replace(made_up()[0], case="S0/<script>alert(1)</script>/t0"), *made_up()[1:]]
    a = write_run(tmp_path / "a", evil, policy="<img src=x onerror=alert(1)>")
    better = [replace(evil[0], intersection=evil[0].truth_pixels), *made_up(0, shift=0.1)[1:]]
    b = write_run(tmp_path / "b", better)
    assert run(Compare(a, b, out=tmp_path / "out")) == 0
    assert "comparison.json" in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script" not in page and "<img" not in page and "default-src 'none'" in page
