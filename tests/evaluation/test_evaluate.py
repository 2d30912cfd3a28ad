import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_sets import SECRET, make_sets

from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_dataset
from ibisagent.episodes import from_record
from ibisagent.errors import IbisError, InputError
from ibisagent.evaluation.evaluate import Evaluate, evaluate, run
from ibisagent.evaluation.samples import read_lines
from ibisagent.evaluation.screen import show_unanswered
from ibisagent.evaluation.summary import equal_part
from ibisagent.masks import iou
from ibisagent.pair import PairOptions
from ibisagent.types import Mask, Observation, Policy, PolicyReply

PAIR = PairOptions(policy="scripted:noisy-oracle", tool="classical", max_turns=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def command(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """A finished run, absent targets included."""
    made = Evaluate(data, out=tmp_path_factory.mktemp("run"), absent="hard", pair=PAIR)
    assert evaluate(made) is not None
    return made


def summary_of(command: Evaluate) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((command.out / "summary.json").read_text())
    return summary


def value(summary: dict[str, Any], name: str) -> dict[str, Any]:
    [metric] = [metric for metric in summary["metrics"] if metric["name"] == name]
    return metric


def lines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Lines by case without times, which differ between equal runs."""
    found = {}
    for line in read_lines(folder):
        text = json.dumps(line, sort_keys=True)
        record = json.loads(text)
        for key in ("seconds", "policy_seconds", "tool_seconds"):
            record.pop(key)
        episode = record["episode"]
        for part in (episode, episode["start"], *(a for t in episode["turns"] for a in t["attempts"])):
            part.pop("seconds")
        for turn in episode["turns"]:
            turn.pop("tool_seconds")
        episode.pop("host")
        found[record["case"]] = record
    return found


def test_the_summary_says_what_the_masks_say(command: Evaluate, data: Path) -> None:
    found = open_dataset(data, options=ReadOptions(split="test"))
    samples = [sample for case in found.cases for sample in samples_of(case, found.options, absent=True)]
    pictures = {sample.picture.content_id: sample.picture for sample in samples}
    truths = {(s.picture.content_id, s.target): s for s in samples}
    by_set: dict[str, list[float]] = {}
    for line in read_lines(command.out):
        episode = from_record(line["episode"], resolve=pictures.get)
        sample = truths[episode.picture.content_id, episode.target]
        assert sample.truth is not None and np.array_equal(episode.truth, sample.truth)
        assert line["present"] == sample.truth.any() and line["dataset"] == sample.dataset
        if sample.truth.any():
            mask = np.zeros_like(sample.truth) if episode.mask is None else episode.mask
            by_set.setdefault(line["dataset"], []).append(iou(sample.truth, mask))
    summary = summary_of(command)
    everything = [score for scores in by_set.values() for score in scores]
    assert len(everything) == 8 and summary["cases"] == {
        "all": 10,
        "present": 8,
        "absent": 2,
        "unreadable": 0,
    }
    mean = value(summary, "mean IoU")
    assert mean["value"] == pytest.approx(np.mean(everything)) and mean["n"] == 8
    assert mean["left_out"] == {"target absent": 2} and mean["low"] <= mean["value"] <= mean["high"]
    macro = np.mean([np.mean(scores) for scores in by_set.values()])
    assert value(summary, "set-macro IoU")["value"] == pytest.approx(macro)
    assert summary["by_set"]["BTCV"]["mean IoU"]["value"] == pytest.approx(np.mean(by_set["BTCV"]))
    assert summary["schema"] == "ibisagent.evaluation/1" and summary["intervals"]["patients"] == 4


def test_no_name_of_a_patient_or_file_is_written(command: Evaluate) -> None:
    for file in command.out.iterdir():
        text = file.read_text()
        assert SECRET not in text and "Jane" not in text and str(command.data) not in text, file.name
    cases = [line["case"] for line in read_lines(command.out)]
    assert len(set(cases)) == 10 and all(len(case.split("/")) == 3 for case in cases)


def test_the_same_command_again_runs_nothing_and_says_the_same(command: Evaluate) -> None:
    before, old = (command.out / "samples.jsonl").read_bytes(), summary_of(command)
    again = evaluate(command)
    assert again is not None and again["times"]["cases_of_last_call"] == 0
    assert (command.out / "samples.jsonl").read_bytes() == before and equal_part(again) == equal_part(old)


def test_a_folder_holds_one_run(command: Evaluate) -> None:
    for other, named in (
        (replace(command, pair=replace(PAIR, seed=1)), "settings.seed: 1 here, 0 there"),
        (replace(command, pair=replace(PAIR, policy="scripted:oracle")), "scripted:oracle here"),
        (replace(command, absent="none"), "cases: 8 here, 10 there"),
        (replace(command, instruction="Where is the {target}?"), "instruction"),
        (replace(command, window="0,100"), r"reading.window: \[0.0, 100.0\] here, None there"),
        (replace(command, labels=("1=liver",)), r"reading.labels: {'1': 'liver'} here, None there"),
    ):
        with pytest.raises(InputError, match=named):
            evaluate(other)


def test_processes_and_shards_and_batches_give_an_equal_run(command: Evaluate, tmp_path: Path) -> None:
    whole, expected = summary_of(command), lines_of(command.out)
    spread = replace(command, out=tmp_path / "spread", workers=2, batch_size=3)
    summary = evaluate(spread)
    assert summary is not None and equal_part(summary) == equal_part(whole)
    assert lines_of(spread.out) == expected
    parts = replace(command, out=tmp_path / "parts", batch_size=1)
    assert evaluate(replace(parts, shard="2/2")) is None
    assert not (parts.out / "summary.json").exists()
    merged = evaluate(replace(parts, shard="1/2"))
    assert merged is not None and equal_part(merged) == equal_part(whole)
    assert {file.name for file in parts.out.glob("samples*")} == {
        "samples-1-of-2.jsonl",
        "samples-2-of-2.jsonl",
    }
    assert lines_of(parts.out) == expected


CHILD = """
import sys
from pathlib import Path
import ibisagent.tools.classical as classical, time
from ibisagent.evaluation.evaluate import Evaluate, evaluate, run
from ibisagent.pair import PairOptions
predict = classical.ClassicalTool.predict
def slow(self, requests):
    time.sleep(0.02)
    return predict(self, requests)
classical.ClassicalTool.predict = slow
pair = PairOptions(policy="scripted:noisy-oracle", tool="classical", max_turns=6)
evaluate(Evaluate(Path(sys.argv[1]), out=Path(sys.argv[2]), absent="hard", batch_size=2, pair=pair))
"""


def test_a_killed_run_is_continued_to_an_equal_summary(command: Evaluate, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    file = out / "samples.jsonl"
    kills = 0
    for wanted in (1, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(command.data), str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and file.read_bytes().count(b"\n") >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.005)
        process.wait()
        with file.open("ab") as lines:
            lines.write(b'{"schema":"ibisagent.sample/1","case":"BTC')  # what a kill may leave
    assert kills >= 1
    finished = evaluate(replace(command, out=out))
    assert finished is not None and equal_part(finished) == equal_part(summary_of(command))
    assert lines_of(out) == lines_of(command.out)


def test_a_picture_that_cannot_be_read_is_left_out_with_its_reason_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_sets(tmp_path / "sets")
    broken = next((data / "Other" / "test").iterdir())
    picture = broken.read_bytes()
    broken.write_bytes(b"no picture")
    command = Evaluate(data, out=tmp_path / "run", pair=PAIR)
    summary = evaluate(command)
    assert summary is not None
    lost = {"a": 2, "b": 1}[broken.name[0]]
    assert summary["cases"]["unreadable"] == lost
    metric = value(summary, "mean IoU")
    assert metric["n"] == 8 - lost and sum(metric["left_out"].values()) == lost
    said = run(command), capsys.readouterr().err
    assert said[0] == 3 and f"{lost} cases got no answer: " in said[1] and f"({lost}); the same" in said[1]
    broken.write_bytes(picture)
    assert run(command) == 0 and "got no answer" not in capsys.readouterr().err
    assert summary_of(command)["cases"] == {"all": 8, "present": 8, "absent": 0, "unreadable": 0}


def test_per_set_draws_the_same_cases_everywhere(data: Path, tmp_path: Path) -> None:
    one = evaluate(Evaluate(data, out=tmp_path / "one", per_set=2, pair=PAIR))
    assert one is not None and {name: row["mean IoU"]["n"] for name, row in one["by_set"].items()} == {
        "BTCV": 2,
        "Other": 2,
    }
    single = evaluate(Evaluate(data / "Other", out=tmp_path / "two", per_set=2, pair=PAIR))
    assert single is not None and single["by_set"]["Other"] == one["by_set"]["Other"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"shard": "3/2"}, "--shard is k/n"),
        ({"shard": "all"}, "--shard is k/n"),
        ({"workers": 0}, "--workers"),
        ({"batch_size": 0}, "--batch-size"),
        ({"per_set": 0}, "--per-set"),
        ({"instruction": "Find {thing}"}, "--instruction"),
        ({"split": "validation"}, "the split must be in the data set"),
        ({"datasets": ("Nowhere",)}, "--datasets are sets"),
        ({"labels": ("liver",)}, "--labels are pairs"),
        ({"pair": PairOptions(policy="human")}, "not asked of a person"),
    ],
)
def test_wrong_options_are_named(
    command: Evaluate, tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        evaluate(replace(command, out=tmp_path, **change))


def test_any_format_can_be_measured(tmp_path: Path, data: Path) -> None:
    """Plain folders of pictures and masks; the empty mask says that the target is absent."""
    for kind in ("images", "masks"):
        (tmp_path / "plain" / kind).mkdir(parents=True)
    source = data / "Other"
    for name in ("a", "b"):
        picture = Image.open(source / "test" / f"{name}_MRI_heart.png")
        mask = Image.open(source / "test_mask" / f"{name}_MRI_heart_left+ventricle.png").convert("L")
        picture.save(tmp_path / "plain" / "images" / f"{name}.png")
        mask.save(tmp_path / "plain" / "masks" / f"{name}.png")
    Image.new("L", (72, 60)).save(tmp_path / "plain" / "masks" / "c.png")
    picture.save(tmp_path / "plain" / "images" / "c.png")
    pair = replace(PAIR, policy="scripted:oracle")
    command = Evaluate(
        tmp_path / "plain", split="all", target="left ventricle", out=tmp_path / "out", pair=pair
    )
    summary = evaluate(command)
    assert summary is not None and summary["cases"]["present"] == 2 and summary["cases"]["absent"] == 1
    assert value(summary, "mean IoU")["value"] > 0.8 and value(summary, "MCC (presence)")["value"] == 1.0


@dataclass
class _Down:
    """A policy behind a connection that is down while `file` is there, from one text to another."""

    file: Path
    first: int = 3
    last: int = 1000

    def __call__(self, policy: Policy, truths: dict[str, Mask]) -> Policy:
        down, first, last, texts = self.file, self.first, self.last, 0

        class Behind(type(policy)):  # type: ignore[misc]
            def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
                nonlocal texts
                texts += len(observations)
                if down.exists() and first <= texts <= last:
                    return [PolicyReply(error="the endpoint must be reachable") for _ in observations]
                replies: list[PolicyReply] = super().act(observations)
                return replies

        policy.__class__ = Behind
        return policy


def test_an_endpoint_that_goes_down_stops_the_run_and_loses_nothing(
    command: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibisagent.evaluation.evaluate._MOST_UNANSWERED", 4)
    down = tmp_path / "down"
    run = replace(command, out=tmp_path / "run", batch_size=1, pair=replace(PAIR, max_turns=1))
    down.touch()
    with pytest.raises(IbisError, match=r"4 cases in a row without an answer.*reachable.*run again"):
        evaluate(run, wrap=_Down(down))
    kept = list(read_lines(run.out))
    assert len(kept) == 2 and all(line["status"] == "turn_limit" for line in kept)
    assert not (run.out / "summary.json").exists()
    down.unlink()
    summary = evaluate(run, wrap=_Down(down))
    assert summary is not None and "policy_error" not in summary["statuses"]
    assert summary["cases"]["all"] == 10 and list(read_lines(run.out))[:2] == kept


def test_a_short_outage_is_asked_again_to_an_equal_run(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few texts of each share fail: within an episode whose mask then stands, and before any mask."""
    down = tmp_path / "down"
    wrap = _Down(down, 5, 8)
    down.touch()
    short = replace(command, out=tmp_path / "run", batch_size=1, shard="1/2")
    assert evaluate(short, wrap=wrap) is None, "the other share is missing"
    other = replace(short, shard="2/2")
    summary = evaluate(other, wrap=wrap)
    assert summary is not None
    failed = [line for line in read_lines(short.out) if line["status"] == "policy_error"]
    lost = {line["case"] for line in failed}
    assert {line["outcome"] for line in failed} == {"segmented", "none"}
    assert summary["statuses"]["policy_error"] == len(lost) >= 3
    kept = {case: line for case, line in lines_of(short.out).items() if case not in lost}
    screen = Console(file=(said := io.StringIO()), soft_wrap=True)
    assert show_unanswered([short.out], screen) == 3
    assert said.getvalue() == (
        f"{len(lost)} cases got no answer: the endpoint must be reachable ({len(lost)}); "
        "the same command asks them again\n"
    )
    down.unlink()
    for part in (short, other):
        summary = evaluate(part, wrap=wrap)
    assert summary is not None and equal_part(summary) == equal_part(summary_of(command))
    assert lines_of(short.out) == lines_of(command.out) and kept.items() <= lines_of(short.out).items()
    assert show_unanswered([short.out], screen) == 0
    before = {file: file.read_bytes() for file in short.out.glob("samples*")}
    assert evaluate(replace(short, shard=None)) is not None
    assert {file: file.read_bytes() for file in short.out.glob("samples*") if file.stat().st_size} == before


def test_the_progress_line_says_the_mean_iou_of_the_table(command: Evaluate, tmp_path: Path) -> None:
    said: dict[str, list[str]] = {}
    first = replace(command, out=tmp_path / "run", shard="1/2")
    for name, part in (("first", first), ("rest", replace(first, shard=None))):
        screen = Console(file=(text := io.StringIO()), soft_wrap=True)
        summary = evaluate(part, screen)
        said[name] = re.findall(r"cases (\d+/\d+),.* mean IoU (\S+)", text.getvalue())
    assert summary is not None
    assert said["rest"] == [("10/10", f"{value(summary, 'mean IoU')['value']:.3f}")]


def test_an_endpoint_that_was_never_there_is_no_result(data: Path, tmp_path: Path) -> None:
    pair = PairOptions(policy="chat:x@http://127.0.0.1:9/v1", tool="classical")  # nothing listens there
    run = Evaluate(data, out=tmp_path, per_set=1, pair=pair)
    with pytest.raises(IbisError, match=r"2 cases in a row without an answer, the last one: .*reachable"):
        evaluate(run)
    assert list(read_lines(tmp_path)) == [] and not (tmp_path / "summary.json").exists()


@dataclass(frozen=True)
class _Refuses:
    """A policy that never answers on every second case, as a content filter would."""

    def __call__(self, policy: Policy, truths: dict[str, Mask]) -> Policy:
        seen: dict[str, None] = {}

        class Choosy(type(policy)):  # type: ignore[misc]
            def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
                seen.update(dict.fromkeys(item.sample_id for item in observations))
                places = list(seen)
                replies: list[PolicyReply] = super().act(observations)
                return [
                    PolicyReply(error="refused") if places.index(item.sample_id) % 2 else reply
                    for item, reply in zip(observations, replies, strict=True)
                ]

        policy.__class__ = Choosy
        return policy


def test_cases_that_fail_for_good_hold_up_no_others(
    command: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibisagent.evaluation.evaluate._MOST_UNANSWERED", 2)
    whole = replace(command, out=tmp_path / "run", batch_size=1, pair=replace(PAIR, max_turns=1))
    summary = evaluate(whole, wrap=_Refuses())
    assert summary is not None and summary["statuses"]["policy_error"] == 5
    file = whole.out / "samples.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:7]))  # killed at seven of ten
    (whole.out / "summary.json").unlink()
    again = evaluate(whole, wrap=_Refuses())  # three new ones, then those without an answer, all in a row
    assert again is not None and again["cases"]["all"] == 10 and (whole.out / "summary.json").exists()
    assert {line["case"] for line in read_lines(whole.out)} == {
        line["case"] for line in read_lines(command.out)
    }
    assert evaluate(replace(whole, missing="skip"), wrap=_Refuses()) is not None
    assert summary_of(whole)["policies"]["missing"] == "skip"


def test_a_shard_answers_for_its_own_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_sets(tmp_path / "data")
    (data / "Other/test/b_MRI_heart.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    whole = Evaluate(data, out=tmp_path / "run", pair=PAIR)
    codes = [run(replace(whole, shard=f"{number}/2")) for number in (1, 2)]
    assert sorted(codes) == [0, 3]
    assert capsys.readouterr().err.count("1 cases got no answer: A PNG file must be whole") == 1
    screen = Console(file=io.StringIO(), soft_wrap=True)
    twice = [whole.out, whole.out]  # as in a table of several runs on the same cases
    assert show_unanswered(twice, screen) == 3
    assert screen.file.getvalue().startswith("1 cases got no answer")  # type: ignore[attr-defined]
