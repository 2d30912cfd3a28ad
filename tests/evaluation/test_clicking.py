"""Clicks on any tool: against a loop written out by hand, and the command with its folder."""

import json

import numpy as np
import pytest
from conftest import disc
from small_sets import SECRET, make_sets

from ibisagent.actions import click_pixel
from ibisagent.cli import main
from ibisagent.errors import InputError, ToolError
from ibisagent.evaluation.clicking import Clicked, click_cases, click_metrics
from ibisagent.evaluation.clicks_run import Clicks, measure
from ibisagent.synthesis.clicks import ClickSimulator, next_click
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import Click, Picture, Sample, ToolReply, ToolRequest

SIZE = (40, 50)


def make_samples(count=5):
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        truth = disc(*SIZE, 20, 15 + 4 * index, 7) | disc(*SIZE, 8, 40, 4)
        grey = np.clip(60 + 70 * truth + rng.normal(0, 25, SIZE), 0, 255).astype(np.uint8)
        picture = Picture(np.repeat(grey[..., None], 3, axis=2))
        made.append(Sample(f"case{index}", picture, "Find it", truth=truth))
    return made


def by_hand(sample, tool, count):
    ious, clicks, mask, logits = [0.0], (), None, None
    for _ in range(count):
        click = next_click(sample.truth, mask, clicks)
        if click is None:
            break
        clicks += (click,)
        [reply] = tool.predict([ToolRequest(sample.picture, clicks, low_res_logits=logits)])
        mask, logits = reply.mask, reply.low_res_logits
        ious.append((mask & sample.truth).sum() / (mask | sample.truth).sum())
    return tuple(ious), clicks


class Painter:
    """Paints a square around every positive click; fails on request. Takes text: the left half."""

    name = "painter"
    prompts = frozenset({"point", "text"})

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.heard = []

    def set_image(self, pictures):
        pass

    def predict(self, requests):
        self.heard += [request.instruction for request in requests]
        return [self._one(request) for request in requests]

    def propose(self, requests):
        mask = np.zeros(SIZE, bool)
        mask[:, :25] = True
        return [ToolReply(mask, 0.5) for _ in requests]

    def _one(self, request):
        if self.fail_at is not None and len(request.clicks) >= self.fail_at:
            return ToolReply(error="out of paint")
        mask = np.zeros(SIZE, bool)
        for click in request.clicks:
            row, column = click_pixel(click, *SIZE)
            mask[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = click.positive
        return ToolReply(mask, 0.5)

    def fingerprint(self):
        return {"name": self.name}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_a_loop_by_hand_whatever_the_batch(batch_size):
    samples, tool = make_samples(), ClassicalTool()
    found = list(click_cases(samples, tool, clicks=4, batch_size=batch_size))
    assert [one.case for one in found] == [sample.sample_id for sample in samples]
    for sample, one in zip(samples, found):
        ious, clicks = by_hand(sample, tool, 4)
        assert one.clicks == clicks and one.ious == pytest.approx(ious, abs=1e-12)
        assert one.iou_after(3) == one.ious[3] and one.iou_after(99) == one.ious[-1]


def test_simulators_draw_by_case_and_seed_alone():
    samples, tool = make_samples(), Painter()
    people = ClickSimulator("people")
    first = list(click_cases(samples, tool, people, 3, seed=1))
    assert first == list(click_cases(samples[::-1], tool, people, 3, seed=1, batch_size=2))[::-1]
    assert first != list(click_cases(samples, tool, people, 3, seed=2))
    assert first != list(click_cases(samples, tool, None, 3, seed=1))


def test_starts_from_a_proposal_and_tells_the_name_only_where_asked():
    [sample] = make_samples(1)
    tool = Painter()
    [bare] = click_cases([sample], tool, clicks=2)
    assert bare.ious[0] == 0 and bare.scores == (None, 0.5, 0.5) and tool.heard == [None, None]
    [named] = click_cases([sample], tool, clicks=1, named=True)
    assert named.ious == bare.ious[:2] and tool.heard[2:] == ["Find it"]
    [proposed] = click_cases([sample], tool, clicks=1, start="proposal")
    half = np.zeros(SIZE, bool)
    half[:, :25] = True
    assert proposed.ious[0] == (half & sample.truth).sum() / (half | sample.truth).sum()
    assert not proposed.clicks[0].positive, "the half picture covers more that is wrong than it misses"


def test_absent_targets_are_no_cases_and_a_reached_truth_ends_it():
    samples = make_samples(2)
    samples[0] = Sample("absent", samples[0].picture, "Find it", truth=np.zeros(SIZE, bool))

    class Knows(Painter):
        def _one(self, request):
            return ToolReply(samples[1].truth)

    [one] = click_cases(samples, Knows(), clicks=5)
    assert one.case == "case1" and one.ious == (0.0, 1.0) and len(one.clicks) == 1


def test_a_failed_call_is_no_mask():
    class Breaks(Painter):
        def predict(self, requests):
            raise ToolError("a tool runs", "a broken one")

    class Silent(Painter):
        def _one(self, request):
            return ToolReply()

    samples = make_samples(2)
    found = list(click_cases(samples, Painter(fail_at=2), clicks=5))
    assert {one.error for one in found} == {"out of paint"} and all(len(one.ious) == 2 for one in found)
    assert all("broken" in one.error for one in click_cases(samples, Breaks(), clicks=5))
    assert all(one.error and one.ious == (0.0,) for one in click_cases(samples, Silent(), clicks=5))


def test_metrics_by_hand():
    click = Click(0.5, 0.5, True)
    found = [
        Clicked("a", (0.0, 0.7, 0.86), (None, 0.6, 0.9), (click, click)),
        Clicked("b", (0.0, 0.2, 0.4, 0.4), (None, 0.2, 0.4, 0.4), (click,) * 3),
        Clicked("c", (0.0, 0.9), (None, 0.9), (click,)),
        Clicked("d", (0.0,), (None,), (click,), "broken"),
    ]
    sets = {"a": "X", "b": "X", "c": "Y", "d": "Y"}
    rows = {row["name"]: row for row in click_metrics(found, sets, {key: key for key in sets}, 3)}
    assert rows["IoU after 1"]["value"] == pytest.approx((0.7 + 0.2 + 0.9) / 3)
    assert rows["IoU after 3"]["value"] == pytest.approx((0.86 + 0.4 + 0.9) / 3)
    assert rows["IoU after 3"]["set_macro"]["value"] == pytest.approx((0.63 + 0.9) / 2)
    assert rows["IoU after 3"]["by_set"] == {"X": pytest.approx(0.63), "Y": 0.9}
    assert rows["NoC@85"]["value"] == pytest.approx((2 + 3 + 1) / 3)
    assert rows["failures of NoC@85"]["value"] == pytest.approx(1 / 3) and rows["NoC@85"]["n"] == 3
    area = ((0.35 + 0.78 + 0.86) / 3 + (0.1 + 0.3 + 0.4) / 3 + (0.45 + 0.9 + 0.9) / 3) / 3
    assert rows["area under IoU to 3"]["value"] == pytest.approx(area)
    assert "IoU after 5" not in rows


def test_calibration_equals_bins_by_hand():
    rng = np.random.default_rng(3)
    found = [
        Clicked(str(i), tuple(rng.random(4)), (None, *rng.random(3)), (Click(0.5, 0.5, True),) * 3)
        for i in range(20)
    ]
    own = {one.case: "X" for one in found}
    rows = click_metrics(found, own, {case: case for case in own}, 20)
    [ece] = [row["value"] for row in rows if row["name"].startswith("ECE")]
    pairs = [(one.scores[min(k, 3)], one.ious[min(k, 3)]) for one in found for k in range(1, 11)]
    scores, ious = np.array(pairs).T
    bins = (scores * 10).astype(int)
    gaps = [abs(scores[bins == b].mean() - ious[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    assert ece == pytest.approx(sum(gaps))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("data"))


def options(data, out, **given):
    return Clicks(data, **({"tool": "classical", "out": out, "clicks": 3, "batch_size": 3} | given))


def test_the_command_continues_adds_simulators_and_hides_names(data, tmp_path, capsys):
    whole = measure(options(data, tmp_path / "whole", simulator=("centre", "people")))
    out = tmp_path / "out"
    measure(options(data, out))
    file = out / "clicks.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    file.write_text("".join(lines[:3]) + lines[3][:40])  # as a kill leaves it
    words = ["clicks", str(data), "--tool", "classical", "--clicks", "3", "--batch-size", "3"]
    assert main([*words, "--out", str(out), "--simulator", "centre", "people"]) == 0
    assert json.loads((out / "summary.json").read_text()) == whole
    assert set(whole["simulators"]) == {"centre", "people"}
    assert "NoC@85" in capsys.readouterr().err
    text = "".join(path.read_text() for path in out.iterdir())
    assert SECRET not in text and str(data) not in text
    curve = whole["simulators"]["centre"]["iou_by_click"]
    assert len(curve) == 4 and curve[0] == 0 < curve[1]
    with pytest.raises(InputError, match="holds one run"):
        measure(options(data, out, clicks=5))


def test_bad_options_and_files_are_named(data, tmp_path):
    for given, words in (
        ({"clicks": 0}, "--clicks"),
        ({"tool": "nothing"}, "tool"),
        ({"named": True}, "takes text"),
        ({"start": "proposal"}, "takes text"),
        ({"split": "val"}, "split"),
    ):
        with pytest.raises(InputError, match=words):
            measure(options(data, tmp_path / "bad", **given))
    picture = data / "Other/test/b_MRI_heart.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    summary = measure(options(data, tmp_path / "out", simulator=("centre",)))
    assert summary["simulators"]["centre"]["left_out"] == 1
    picture.write_bytes(whole)
    mended = measure(options(data, tmp_path / "out", simulator=("centre",)))
    assert mended["simulators"]["centre"]["left_out"] == 0, "what could not be read is measured again"
    assert mended == measure(options(data, tmp_path / "fresh", simulator=("centre",)))
