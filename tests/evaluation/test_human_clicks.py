import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sets import make_sets

from ibisagent.actions import click_at, click_pixel
from ibisagent.agent import Agent
from ibisagent.episodes import write_episodes
from ibisagent.errors import EpisodeFormatError, InputError
from ibisagent.evaluation.evaluate import Evaluate, evaluate
from ibisagent.evaluation.human_clicks import (
    HumanClicks,
    compare_clicks,
    offset,
    place,
    read_clicks,
    run,
)
from ibisagent.evaluation.samples import read_scores
from ibisagent.pair import PairOptions
from ibisagent.policies.human import HumanPolicy
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import Click, Mask, Sample


def brute_depth(click: Click, error: Mask) -> float:
    """Distance to the nearest pixel outside, over that of all pixels; one component assumed."""
    ringed = np.pad(error, 1)
    outside = np.argwhere(~ringed)
    inside = np.argwhere(ringed)
    distances = {tuple(p): np.hypot(*(outside - p).T).min() for p in inside}
    row, column = click_pixel(click, *error.shape)
    return float(distances[row + 1, column + 1] / max(distances.values()))


def test_depth_is_the_distance_to_the_border_over_the_largest() -> None:
    truth = np.zeros((30, 40), bool)
    truth[4:19, 0:21] = True
    truth[10:25, 0:7] = True
    rng = np.random.default_rng(1)
    for row, column in rng.permutation(np.argwhere(truth))[:25]:
        click = click_at(int(row), int(column), 30, 40, True)
        assert place(click, truth, None).depth == pytest.approx(brute_depth(click, truth))
    mask = np.zeros_like(truth)
    mask[4:19, 0:30] = True  # too wide, and misses the foot
    added = click_at(11, 25, 30, 40, False)
    assert place(added, truth, mask).depth == pytest.approx(brute_depth(added, mask & ~truth))
    assert not place(replace(added, positive=True), truth, mask).in_error
    assert place(click_at(0, 0, 30, 40, True), truth, mask).depth is None


def test_depth_is_relative_to_the_own_part_of_the_error() -> None:
    truth = np.zeros((40, 40), bool)
    truth[2:5, 2:5] = truth[10:39, 10:39] = True
    assert place(click_at(3, 3, 40, 40, True), truth, None).depth == 1.0
    assert place(click_at(2, 3, 40, 40, True), truth, None).depth == pytest.approx(0.5)


def test_offset_is_a_share_of_the_diagonal() -> None:
    a, b = click_at(0, 0, 30, 40, True), click_at(29, 39, 30, 40, True)
    assert offset(a, b, (30, 40)) == pytest.approx(np.hypot(29, 39) / 50)
    assert offset(a, a, (30, 40)) == 0.0


def record(sample: Sample, lines: list[str], log: Path) -> None:
    """An episode by the human policy, as `segment --policy human --truth` writes it."""
    said = iter(lines)
    agent = Agent(HumanPolicy(ask=lambda _: next(said)), ClassicalTool())
    [episode] = [event.episode for event in agent.stream([sample]) if event.episode is not None]
    write_episodes(log, [episode])


def test_a_recording_of_the_human_policy_is_read(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample.truth is not None
    log = tmp_path / "episode.jsonl"
    record(sample, ["+ 0.3906 0.4167", "- 0.05 0.95", "undo", "+ 0.42 0.48", "done"], log)
    clicks = list(read_clicks(log))
    assert [click.turn for click in clicks] == [1, 2, 4] and clicks[0].mask is None
    assert [len(click.before) for click in clicks] == [0, 1, 2]
    assert np.array_equal(clicks[0].truth, sample.truth) and clicks[2].mask is not None
    table = compare_clicks(clicks)
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["recorded", "centre", "component", "uniform", "jittered", "people"]
    assert table["clicks"] == 3 and table["episodes"] == 1 and table["first_clicks"] == 1
    first = compare_clicks(clicks[:1])["rows"]
    assert first[0]["in the error"]["value"] == 1.0 and first[0]["depth"]["value"] > 0.9
    assert first[1]["depth"]["value"] == 1.0 and first[1]["offset"]["value"] < 0.02
    assert first[1]["same sign"]["value"] == 1.0
    assert run(HumanClicks((log,), out=tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out" / "human-clicks.json").read_text()) == table
    assert "human-clicks.json" in capsys.readouterr().out


def test_a_result_folder_is_a_recording_too(tmp_path: Path) -> None:
    """The oracle's clicks are those of the centre simulator: no offset beyond four decimals."""
    pair = PairOptions(policy="scripted:oracle", tool="classical", max_turns=4)
    command = Evaluate(make_sets(tmp_path / "sets"), out=tmp_path / "run", pair=pair)
    assert evaluate(command) is not None
    clicks = list(read_clicks(command.out))
    scores = read_scores(command.out)
    assert len(clicks) == sum(score.clicks for score in scores) >= 8
    assert {click.patient for click in clicks} == {score.patient for score in scores}
    rows = {row["name"]: row for row in compare_clicks(clicks)["rows"]}
    assert rows["recorded"]["in the error"]["value"] == 1.0
    assert rows["centre"]["offset"]["value"] < 1e-4 and rows["centre"]["same sign"]["value"] == 1.0
    assert rows["centre"]["depth minus recorded"]["value"] == 0.0
    assert rows["uniform"]["depth"]["value"] < rows["people"]["depth"]["value"] < 1.0
    assert rows["uniform"]["offset"]["low"] > 0


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda text: "no json", "every line is one episode"),
        (lambda text: text.replace("ibisagent.episode/1", "other/1"), "every line is one episode"),
        (lambda text: json.dumps({**json.loads(text), "truth": None}), "hold their true masks"),
        (lambda text: json.dumps({**json.loads(text), "turns": 3}), "every line is one episode"),
    ],
)
def test_what_is_no_recording_is_named(sample: Sample, tmp_path: Path, change, rule: str) -> None:
    log = tmp_path / "episode.jsonl"
    record(sample, ["+ 0.4 0.4", "done"], log)
    log.write_text(change(log.read_text()))
    with pytest.raises(EpisodeFormatError, match=rule):
        list(read_clicks(log))


def test_an_empty_recording_and_a_wrong_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one click"):
        compare_clicks([])
    with pytest.raises(InputError, match=r"holds samples\.jsonl"):
        list(read_clicks(tmp_path))
    with pytest.raises(EpisodeFormatError, match="readable file"):
        list(read_clicks(tmp_path / "none.jsonl"))
