"""The command line in-process, with real files; the shell itself is in test_odd_files_shell.py."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ibisagent.actions import click_pixel
from ibisagent.cli import RESULT_FILES, main
from ibisagent.doctor import EXTRAS
from ibisagent.masks import encode_rle
from ibisagent.tools.point_to_box import PointToBox
from ibisagent.types import Picture, Sample, Tool, ToolReply, ToolRequest

ON_DISC = "<think> a </think> <action> Positive Point (0.3906, 0.4167) </action>\n"
STOP = "<think> a </think> <action> Terminate </action> <answer> found </answer>\n"


@pytest.fixture
def files(sample: Sample, tmp_path: Path) -> Path:
    """A folder with Doe_John.png, truth.png and two scripts of policy texts."""
    Image.fromarray(sample.picture.pixels).save(tmp_path / "Doe_John.png")
    Image.fromarray(sample.truth.astype(np.uint8) * 255).save(tmp_path / "truth.png")
    (tmp_path / "good.txt").write_text(ON_DISC + STOP)
    (tmp_path / "stop.txt").write_text(STOP)
    (tmp_path / "nonsense.txt").write_text("no\nidea\n")
    (tmp_path / "late.txt").write_text(ON_DISC + "no\nidea\n")
    return tmp_path


def segment(files: Path, script: str, *more: str) -> int:
    """`script` by the classical tool into out/, where `more` names no others."""
    usual = {"--policy": f"scripted:@{files / script}", "--tool": "classical", "--out": str(files / "out")}
    words = [word for option, value in usual.items() if option not in more for word in (option, value)]
    return main(["segment", str(files / "Doe_John.png"), "Find the disc", *words, *more])


def test_segment_writes_mask_overlay_episode_and_report(
    files: Path, sample: Sample, capsys: pytest.CaptureFixture
) -> None:
    assert segment(files, "good.txt") == 0
    out = files / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(RESULT_FILES)
    mask = np.asarray(Image.open(out / "mask.png"))
    assert mask.shape == (96, 128) and set(np.unique(mask)) == {0, 255}
    assert ((mask > 0) & sample.truth).sum() / ((mask > 0) | sample.truth).sum() > 0.9
    record = json.loads((out / "episode.jsonl").read_text())
    assert record["result"]["outcome"] == "segmented" and len(record["turns"]) == 2
    shown = capsys.readouterr()
    assert f"mask: {out / 'mask.png'}" in shown.out and "Not a medical device" in shown.err
    assert "Positive Point (0.3906, 0.4167)" in shown.err
    everything = (
        shown.out + shown.err + (out / "episode.jsonl").read_text() + (out / "report.html").read_text()
    )
    assert "Doe_John" not in everything


@pytest.mark.parametrize(
    ("script", "code", "outcome", "status"),
    [
        ("stop.txt", 0, "absent", "terminated"),
        ("nonsense.txt", 3, "none", "unparsable"),
        ("late.txt", 4, "segmented", "unparsable"),
    ],
)
def test_exit_codes_say_what_happened(files: Path, script: str, code: int, outcome: str, status: str) -> None:
    assert segment(files, script) == code
    record = json.loads((files / "out" / "episode.jsonl").read_text())
    assert (record["result"]["outcome"], record["result"]["status"]) == (outcome, status)
    assert (files / "out" / "mask.png").exists() == (outcome != "none")


def test_earlier_results_are_only_replaced_when_asked(files: Path, capsys: pytest.CaptureFixture) -> None:
    assert segment(files, "good.txt") == 0
    before = (files / "out" / "episode.jsonl").read_bytes()
    assert segment(files, "stop.txt") == 2
    assert (
        "--overwrite" in capsys.readouterr().err and (files / "out" / "episode.jsonl").read_bytes() == before
    )
    assert segment(files, "nonsense.txt", "--overwrite") == 3
    assert not (files / "out" / "mask.png").exists(), "no mask of the earlier run is left"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--history", "some"], "history is none, last-K"),
        (["--verbs", "fly"], "--verbs holds undo or box"),
        (["--max-turns", "0"], "max_turns is at least 1"),
        (["--start", "/nowhere/mask.png"], "mask"),
        (["--start", "proposal"], "--start none"),
        (["--tool", "medsam3:x"], "choose from"),
        (["--policy", "gpt"], "choose from"),
        (["--policy", "scripted:oracle"], "--truth"),
        (["--window", "5"], "window"),
        (["--system-prompt", "/nowhere"], "--system-prompt"),
        (["--verbs", "box"], "leave Box out"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    files: Path, options: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert segment(files, "good.txt", *options) == 2
    shown = capsys.readouterr().err
    [line] = [line for line in shown.splitlines() if line.startswith("error:")]
    assert words in line and "Traceback" not in shown and "Doe_John" not in shown
    assert not (files / "out").exists()


def test_a_mask_to_start_from(files: Path) -> None:
    assert segment(files, "stop.txt", "--start", str(files / "truth.png")) == 0
    record = json.loads((files / "out" / "episode.jsonl").read_text())
    assert record["start"]["kind"] == "file" and record["result"]["outcome"] == "segmented"
    assert record["result"]["mask"] == record["start"]["mask"]


def test_the_oracle_needs_only_the_truth(files: Path) -> None:
    assert segment(files, "x", "--policy", "scripted:oracle", "--truth", str(files / "truth.png")) == 0


def test_replay_verifies_and_notices_damage(files: Path, capsys: pytest.CaptureFixture) -> None:
    assert segment(files, "good.txt") == 0
    log = files / "out" / "episode.jsonl"
    assert main(["replay", str(log), "--out", str(files / "pictures")]) == 0
    assert "verified (bit-exact)" in capsys.readouterr().err
    names = sorted(path.name for path in (files / "pictures").iterdir())
    assert names == ["0-0.png", "0-1.png", "0-2.png"]
    record = json.loads(log.read_text())
    record["turns"][0]["mask"] = encode_rle(np.zeros((96, 128), bool))
    log.write_text(json.dumps(record))
    assert main(["replay", str(log)]) == 1
    assert "NOT THE SAME" in capsys.readouterr().err


def test_every_episode_is_replayed_with_its_own_point_to_box(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log, three episodes: boxes of 10 %, of 40 %, clicks; each is verified by a tool of its own."""
    asked: list[float | None] = []

    def load(spec: str, *, point_to_box: float | None, **_: str) -> Tool:
        asked.append(point_to_box)
        tool = BoxOrClick()
        return tool if point_to_box is None else PointToBox(tool, point_to_box)

    monkeypatch.setattr("ibisagent.tools.load_tool", load)
    monkeypatch.setattr("ibisagent.agent.load_tool", load)
    lines = []
    for percent in (["--point-to-box", "10"], ["--point-to-box", "40"], []):
        assert segment(files, "good.txt", "--overwrite", *percent) == 0
        lines.append((files / "out" / "episode.jsonl").read_text())
    log = files / "all.jsonl"
    log.write_text("".join([*lines, lines[0]]))
    asked.clear()
    assert main(["replay", str(log)]) == 0
    assert asked == [10.0, 40.0, None], "each tool is loaded once"


class BoxOrClick:
    """A tool under the name of ours: the box that it gets, or a small square around the last click."""

    name = "classical"
    prompts = frozenset({"point", "box"})

    def set_image(self, pictures: Sequence[Picture]) -> None:
        """There is nothing to encode."""

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        replies = []
        for request in requests:
            mask = np.zeros((request.picture.height, request.picture.width), bool)
            height, width = mask.shape
            if request.boxes:
                box = request.boxes[-1]
                rows = slice(round(box.y1 * height), round(box.y2 * height))
                mask[rows, round(box.x1 * width) : round(box.x2 * width)] = True
            else:
                mask[click_pixel(request.clicks[-1], height, width)] = True
            replies.append(ToolReply(mask, 0.5))
        return replies

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        raise AssertionError("it takes no text")

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.name}


def test_replay_says_what_other_logs_are_and_which_file_is_meant(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, made = files / "results", files / "made"
    for folder in (results, made):
        folder.mkdir()
    (results / "samples.jsonl").write_text('{"schema": "ibisagent.sample/1"}\n')
    assert main(["replay", str(results)]) == 2
    said = capsys.readouterr().err
    assert "got 'ibisagent.sample/1', a case of `evaluate`" in said and "open report.html beside it" in said
    assert main(["data", "view", str(results), "--out", str(files / "page.html")]) == 2
    assert "open report.html beside it" in capsys.readouterr().err
    for number in range(2):
        (made / f"trajectories-0000{number}.jsonl").write_text("")
    assert main(["replay", str(made)]) == 2
    assert "a folder with 2 logs; name one of its files, such as trajectories-00000.jsonl" in (
        capsys.readouterr().err
    )
    assert main(["replay", str(files)]) == 2
    assert "got a folder with no logs; name the log itself" in capsys.readouterr().err


def test_replay_of_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", str(tmp_path / "nothing.jsonl")]) == 2
    assert "readable JSONL" in capsys.readouterr().err


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().err
    for part in ("python", "torch", "embedded tool", "embedded policy", "devices"):
        assert part in shown


def test_doctor_knows_every_extra_and_says_which_package_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    named = {
        extra: {re.split("[>=<]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert {extra: set(modules) for extra, (modules, _) in EXTRAS.items()} == named
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "accelerate" else find(name, *rest)
    )
    assert main(["doctor"]) == 0
    shown = " ".join(re.sub("[│┃]", " ", capsys.readouterr().err).split())  # however wide the table is
    said = r"without accelerate(, tensorboard)?; in a checkout of ibisagent: pip install '\.\[train\]'"
    assert re.search(said, shown), "tensorboard may be missing besides"


def test_half_commands_and_words_without_quotes_are_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0 and "audit, sft, rl, merge, plan" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ibisagent ")
    for words, said in (
        (["train"], "choose from: audit, sft, rl, merge, plan"),
        (["data", "foo"], "got foo; choose from: check, view"),
        (["segment", "a.png", "Find", "the", "liver"], "put the instruction in quotes"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--without", "left adrenal gland", "--split", "val", "--without=spleen", "liver"],
            "got --without twice; leave one out, or write all values of a list behind one: --without A B",
        ),
        (["--max-turns", "3", "--max_turns", "4"], "got --max-turns twice"),
        (["--allow-upload", "--seed", "1", "--allow-upload"], "got --allow-upload twice; leave one out"),
        (["--allow-upload", "--no-allow-upload"], "got --allow-upload and --no-allow-upload; leave one out"),
    ],
)
def test_no_option_is_dropped_silently(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(tmp_path), "--out", str(out), *words]) == 2
    shown = capsys.readouterr().err
    assert f"error: an option is written once; {said}" in shown and not out.exists()


def test_options_that_only_resemble_each_other_are_all_taken(files: Path) -> None:
    assert segment(files, "good.txt", "--max-turns", "2", "--max-new-tokens", "9", "--retries", "-1") == 2
    assert segment(files, "good.txt", "--max-turns", "2", "--max-new-tokens", "9", "--retries", "0") == 0


def test_the_first_mask_and_the_agreement_with_the_truth_are_shown(
    files: Path, sample: Sample, capsys: pytest.CaptureFixture
) -> None:
    truth = str(files / "truth.png")
    assert segment(files, "stop.txt", "--start", truth, "--truth", truth) == 0
    said = capsys.readouterr().err
    assert f"start   the mask given: {100 * sample.truth.mean():.1f} % of the picture" in said
    assert "with the true mask: IoU 1.000, Dice 1.000" in said
    assert segment(files, "good.txt", "--start", "none", "--overwrite") == 0
    said = capsys.readouterr().err
    assert "start   the bare picture\n" in said and "with the true mask" not in said


def test_replay_takes_the_folder_and_says_where_nothing_was_made(
    files: Path, capsys: pytest.CaptureFixture
) -> None:
    out = str(files / "out")
    assert main(["segment", str(files / "Doe_John.png"), "Find the toaster", "--out", out]) == 3
    assert "start " not in capsys.readouterr().err, "the tool was never asked"
    assert main(["replay", out]) == 0
    assert "no mask to compare" in " ".join(capsys.readouterr().err.split())
