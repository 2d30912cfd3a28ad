"""The gallery: whole, bounded, filtered, escaped, with nothing fetched."""

import base64
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from make_golden import golden_episode
from test_report import EVIL, read

from ibisagent.cli import main
from ibisagent.episodes import write_episodes
from ibisagent.errors import InputError
from ibisagent.report import DISCLAIMER
from ibisagent.synthesis.gallery import View, facts_of, gallery, run


def shaken(mask, pixels):
    """The mask with its first pixels taken away: an IoU that is known."""
    smaller = mask.copy()
    rows, columns = np.nonzero(mask)
    smaller[rows[:pixels], columns[:pixels]] = False
    return smaller


@pytest.fixture
def episodes():
    """Three trajectories: result IoU 1, about .8 and about .5; the last one is of another set."""
    golden = golden_episode()
    truth = golden.mask
    size = int(truth.sum())
    made = []
    for number, share in enumerate((0.0, 0.2, 0.5)):
        mask = shaken(truth, int(share * size))
        turns = tuple(replace(turn, mask=mask) for turn in golden.turns)
        made.append(
            replace(
                golden,
                sample_id=f"{'A' if number < 2 else 'B'}/{number}/disc",
                kind="plain" if number else "stop",
                target=("disc", "square", "disc")[number],
                instruction=f"Find number {number}",
                start_mask=None,
                start="none",
                turns=turns,
                mask=mask,
                truth=truth,
            )
        )
    return made


def shown(log, **options):
    return re.findall(r"<h2>(.*?)</h2>", gallery([log], View(log, log, **options))[0])


def test_every_turn_and_the_end_are_there_and_nothing_is_fetched(episodes, tmp_path):
    log = tmp_path / "log.jsonl"
    write_episodes(log, episodes)
    assert main(["data", "view", str(log), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/gallery.html").read_text()
    tags = read(page)
    assert tags.tags.count("section") == 3
    assert tags.tags.count("img") == sum(len(episode.turns) + 1 for episode in episodes)
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert "http" not in re.sub(r"data:[^\"]*|http-equiv", "", page)
    assert page.count(DISCLAIMER) == 2 and "One bright disc “left” of the centre." in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_facts_are_those_of_the_masks(episodes):
    facts = [facts_of(episode) for episode in episodes]
    size = int(episodes[0].truth.sum())
    assert [one.result for one in facts] == [1.0, 1 - int(0.2 * size) / size, 1 - int(0.5 * size) / size]
    assert all(one.worst == one.result for one in facts)
    assert [one.dataset for one in facts] == ["A", "A", "B"]
    none = facts_of(replace(episodes[0], truth=None))
    assert none.worst is None and none.result is None


def test_filters_order_and_limit(episodes, tmp_path):
    log = tmp_path / "log.jsonl"
    write_episodes(log, episodes)
    names = [f"Find number {number}" for number in range(3)]
    assert shown(log) == names
    assert shown(log, kind=("stop",)) == names[:1]
    assert shown(log, dataset=("A",), target=("square",)) == names[1:2]
    assert shown(log, below=0.9) == names[1:]
    assert shown(log, text="NUMBER 2") == names[2:]
    assert shown(log, order="worst") == names[::-1]
    assert shown(log, order="worst", limit=1) == names[2:]
    page, count, passing, read_ = gallery([log], View(log, log, limit=2, below=1.1))
    assert (count, passing, read_) == (2, 3, 3) and "1 more pass and are left out" in page
    assert 'data-worst="1.000"' in page and '<option value="=plain">plain (1)</option>' in page


def test_a_click_outside_the_error_is_marked(episodes, tmp_path):
    log = tmp_path / "log.jsonl"
    wrong = replace(episodes[0], truth=~episodes[0].truth)
    write_episodes(log, [wrong])
    page = gallery([log], View(log, log))[0]
    assert "class=wrong" in page and "outside the error" in page


def test_everything_from_data_and_models_is_escaped(episodes, tmp_path):
    turn = replace(episodes[0].turns[0], think=EVIL)
    evil = replace(
        episodes[0],
        instruction=EVIL,
        target=EVIL,
        kind=EVIL,
        sample_id=EVIL,
        answer=EVIL,
        turns=(turn, *episodes[0].turns[1:]),
    )
    write_episodes(tmp_path / "log.jsonl", [evil])
    tags = read(gallery([tmp_path / "log.jsonl"], View(tmp_path, tmp_path))[0])
    assert tags.tags.count("script") == 1 and tags.tags.count("style") == 1 and tags.handlers == []
    assert tags.tags.count("img") == len(evil.turns) + 1


def test_what_cannot_be_shown_is_named(episodes, tmp_path):
    log = tmp_path / "log.jsonl"
    write_episodes(log, episodes)
    for options, words in (
        ({"episodes": tmp_path / "nothing"}, "log"),
        ({"kind": ("absent",)}, "none of 3"),
        ({"limit": 0}, "--limit"),
        ({"out": log / "page.html"}, "--out"),
    ):
        given = {"episodes": log, "out": tmp_path / "page.html"} | options
        with pytest.raises(InputError, match=words):
            run(View(**given))
    log.write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        run(View(log, tmp_path / "page.html"))
