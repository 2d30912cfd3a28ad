"""The page of a run: self-contained, escaped, and true to the summary."""

import base64
import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scores import made_up, renamed, write_run
from small_sets import make_sets

from ibisagent.evaluation.cases import plan
from ibisagent.evaluation.evaluate import Evaluate, evaluate
from ibisagent.evaluation.plots import Bar, bars, histogram, lines, scatter
from ibisagent.evaluation.report import evaluation_html, thumbnail
from ibisagent.evaluation.samples import read_run
from ibisagent.evaluation.summary import summarize
from ibisagent.pair import PairOptions
from ibisagent.types import Picture

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = make_sets(tmp_path_factory.mktemp("sets"))
    out = tmp_path_factory.mktemp("run")
    evaluate(Evaluate(data, out=out, pair=PairOptions(policy="scripted:image-centre", tool="classical")))
    return (out / "report.html").read_text()


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    tags = Tags(page)
    assert "script" not in tags.tags and "link" not in tags.tags and tags.tags.count("img") == 8
    assert tags.tags.count("svg") == 6 and "default-src 'none'" in page
    for name, value in tags.attributes:
        assert not name.startswith("on") and name != "style"
        if name in ("src", "href"):
            assert (value or "").startswith("data:image/jpeg;base64,")
    [picture, *_] = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert max(Image.open(io.BytesIO(base64.b64decode(picture))).size) == 240


def test_every_figure_of_the_summary_is_on_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", made_up())
    summary = {"run": read_run(folder), **summarize(made_up()), "times": {}, "host": {}}
    text = evaluation_html(summary, folder, [], "Find the {target}.")
    for metric in summary["metrics"]:
        assert escape(metric["name"]) in text
        digits = 4 if metric["unit"] == "" else 2
        assert metric["value"] is None or f"{metric['value']:.{digits}f}" in text
    assert text.count("picture not found") == 50


def test_what_comes_from_data_or_models_is_escaped(tmp_path: Path) -> None:
    scores = [renamed(case, target=EVIL, dataset=EVIL, modality=EVIL, status=EVIL) for case in made_up()]
    folder = write_run(tmp_path / "run", scores, policy=EVIL)
    summary = {"run": read_run(folder), **summarize(scores), "times": {EVIL: EVIL}, "host": {}}
    tags = Tags(evaluation_html(summary, folder, [], EVIL))
    assert "script" not in tags.tags and "img" not in tags.tags
    assert not [name for name, _ in tags.attributes if name.startswith("on")]


def test_plots_are_wellformed_and_to_scale() -> None:
    chart = bars([Bar("a & b", 0.5, 0.25, 0.75, 9), Bar("c", 1.0, None, None, 1)], "Title <1>")
    [first, second] = [e for e in ElementTree.fromstring(_svg(chart)).iter() if e.get("class") == "bar"]
    assert float(second.get("width", 0)) == pytest.approx(2 * float(first.get("width", 0)), abs=0.2)
    curve = lines({"x": [0.0, 0.5, 1.0], "y": [1.0]}, "t", "turns")
    dots = [e for e in ElementTree.fromstring(_svg(curve)).iter() if e.get("class") == "dot s0"]
    heights = [float(dot.get("cy", 0)) for dot in dots]
    assert heights[0] > heights[1] > heights[2]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    counts = [
        e for e in ElementTree.fromstring(_svg(histogram([0.0, 0.01, 1.0], "t", "IoU"))).iter()
        if e.get("class") == "bar"
    ]  # fmt: skip
    assert len(counts) == 20 and counts[0][0].text == "2 cases" and counts[-1][0].text == "1 cases"
    for empty in (scatter([], "t", "s"), lines({}, "t", "x"), bars([], "t"), histogram([], "t", "x")):
        ElementTree.fromstring(_svg(empty))


def _svg(figure: str) -> str:
    return figure[figure.index("<svg") : figure.index("</figure>")]


def test_the_thumbnail_shows_result_and_truth() -> None:
    truth, predicted = np.zeros((2, 120, 240), bool)
    truth[20:60, 20:100] = predicted[70:110, 120:220] = True
    drawn = thumbnail(Picture(np.full((120, 240, 3), 100, np.uint8)), truth, predicted)
    assert drawn.shape == (120, 240, 3)
    assert tuple(drawn[20, 50]) == (255, 210, 0) and tuple(drawn[40, 50]) == (100, 100, 100)
    assert tuple(drawn[90, 170]) != (100, 100, 100)


def test_the_page_opens_in_a_browser_without_a_complaint(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "report.html"
    file.write_text(page)
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
         file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # a request that the policy forbids, or one that fails, would be a message on the console
    assert "CONSOLE" not in done.stderr and "By modality" in done.stdout


def test_plan_is_what_the_folder_holds(tmp_path: Path) -> None:
    data = make_sets(tmp_path)
    tasks = plan(data, absent="hard").tasks
    index = json.loads((data / "BTCV" / "test.json").read_text())
    assert sum(len(task.targets) for task in tasks) == 10 and len(index["images"]) == 3
