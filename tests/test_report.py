import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from make_golden import golden_episode

from ibisagent.report import DISCLAIMER, episode_html
from ibisagent.types import EpisodeStatus, Outcome

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Tags(HTMLParser):
    """Counts tags, remembers sources and balance."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_page_is_self_contained_and_shows_every_turn() -> None:
    page = episode_html(golden_episode())
    tags = read(page)
    assert tags.tags.count("section") == 4 and tags.tags.count("img") == 7
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    assert "default-src 'none'" in page and "http" not in re.sub(r"data:[^\"]*|http-equiv", "", page)
    for text in (DISCLAIMER, "Positive Point (0.4000, 0.4000)", "The window was 0 to 255."):
        assert text in page
    assert "no_action" in page and "One bright disc “left” of the centre." in page


def test_everything_from_models_and_files_is_escaped() -> None:
    episode = golden_episode()
    attempt = replace(episode.turns[0].attempts[0], text=EVIL)
    turn = replace(episode.turns[0], think=EVIL, note=EVIL, attempts=(attempt,))
    picture = replace(episode.picture, assumptions=(EVIL,))
    evil = replace(
        episode,
        instruction=EVIL,
        answer=EVIL,
        message=EVIL,
        sample_id=EVIL,
        turns=(turn, *episode.turns[1:]),
        picture=picture,
        fingerprint=episode.fingerprint | {"policy": {"name": EVIL}},
    )
    tags = read(episode_html(evil))
    assert "script" not in tags.tags and tags.handlers == [] and tags.tags.count("style") == 1
    assert tags.tags.count("img") == read(episode_html(episode)).tags.count("img")
    assert tags.text.count(EVIL) >= 6


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"status": EpisodeStatus.TURN_LIMIT}, "did not say that this mask is final"),
        (
            {"outcome": Outcome.NONE, "mask": None, "status": EpisodeStatus.UNSUPPORTED_TARGET, "turns": ()},
            "none",
        ),
        ({"outcome": Outcome.ABSENT, "mask": np.zeros((40, 50), bool)}, "Not present"),
    ],
)
def test_what_went_otherwise_is_said(change: dict, shown: str) -> None:
    assert shown in episode_html(replace(golden_episode(), **change))


def test_assumed_laterality_is_said() -> None:
    episode = golden_episode()
    assert "Left and right are assumed" not in episode_html(episode)
    assumed = replace(episode, picture=replace(episode.picture, laterality="assumed"))
    assert "Left and right are assumed" in episode_html(assumed)
    mirrored = episode_html(replace(episode, picture=replace(episode.picture, laterality="mirrored")))
    assert (
        "Image left is the patient&#x27;s left, as the file says" in mirrored
        and "are assumed" not in mirrored
    )
