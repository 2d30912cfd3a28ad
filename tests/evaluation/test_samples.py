from pathlib import Path

import pytest

from ibisagent.errors import EpisodeFormatError, InputError
from ibisagent.evaluation.samples import claim, mend, read_lines, read_run, samples_file
from ibisagent.evaluation.scoring import unanswered


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"{}\n", b"{}\n"),
        (b'{}\n{"case"', b"{}\n"),
        (b'{"case"', b""),
        (b"{}\n" + b"x" * (3 << 20), b"{}\n"),
        (b"{}\n" * 2 + b"\n", b"{}\n" * 2 + b"\n"),
    ],
)
def test_an_unfinished_last_line_is_cut_off(tmp_path: Path, before: bytes, after: bytes) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_bytes(before)
    mend(file)
    assert file.read_bytes() == after
    mend(tmp_path / "none.jsonl")


def test_each_case_is_read_once_over_all_files(tmp_path: Path) -> None:
    samples_file(tmp_path, (1, 2)).write_text('{"case":"a","n":1}\n{"case":"b"}\n')
    samples_file(tmp_path, (2, 2)).write_text('{"case":"a","n":2}\n{"case":"c"}\n{"ca')
    lines = list(read_lines(tmp_path))
    assert [line["case"] for line in lines] == ["a", "b", "c"] and lines[0]["n"] == 1


def test_an_answer_counts_wherever_it_stands_and_else_the_last_line(tmp_path: Path) -> None:
    lost = '"status":"policy_error","outcome":"none"'
    kept = '"status":"tool_error","outcome":"segmented"'
    late = '"status":"time_limit","outcome"'
    samples_file(tmp_path, (1, 2)).write_text(
        f'{{"case":"a",{lost}}}\n{{"case":"b",{kept},"n":1}}\n{{"case":"c","status":"terminated","n":1}}\n'
        f'{{"case":"d","unreadable":"no picture"}}\n{{"case":"e",{late}:"segmented"}}\n'
    )
    samples_file(tmp_path).write_text(
        f'{{"case":"b",{kept},"n":2}}\n{{"case":"a","status":"terminated","n":2}}\n'
        f'{{"case":"c",{lost}}}\n{{"case":"a",{lost}}}\n{{"case":"f",{late}:"none"}}\n'
    )
    lines = {line["case"]: line for line in read_lines(tmp_path)}
    assert len(list(read_lines(tmp_path))) == 6 and (lines["a"]["n"], lines["b"]["n"]) == (2, 2)
    assert lines["c"]["n"] == 1, "an answer is not lost to a later failure"
    assert {name: unanswered(line) for name, line in lines.items()} == {
        "a": None,
        "b": "tool_error",
        "c": None,
        "d": "no picture",
        "e": None,
        "f": "time_limit",
    }


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    samples_file(tmp_path).write_text('{"case":"a"}\nnonsense\n{"case":"b"}\n')
    with pytest.raises(EpisodeFormatError, match=r"line 2 of samples\.jsonl"):
        list(read_lines(tmp_path))


def test_facts_are_written_once_and_then_checked(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    claim(tmp_path, "data", {"split": "test", "nested": {"x": 1}})
    claim(tmp_path, "pair", {"policy": "p"})
    claim(tmp_path, "data", {"split": "test", "nested": {"x": 1}})
    run = read_run(tmp_path)
    assert run is not None and run["data"]["split"] == "test" and run["pair"] == {"policy": "p"}
    with pytest.raises(InputError, match=r"nested\.x: 2 here, 1 there"):
        claim(tmp_path, "data", {"split": "test", "nested": {"x": 2}})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"reads ibisagent\.run/1"):
        claim(tmp_path, "data", {})
