"""Clicks as one box: where it lies, what negative clicks cut, what reaches the tool."""

from dataclasses import astuple

import numpy as np
import pytest

from ibisagent.errors import InputError, ToolError
from ibisagent.tools.point_to_box import PointToBox, box_around
from ibisagent.types import Box, Click, Picture, Tool, ToolReply, ToolRequest

PICTURE = Picture(np.zeros((10, 20, 3), np.uint8))


class BoxTool:
    """Fills the last box; fails on a request without one."""

    name = "boxes"

    def __init__(self, prompts=("box",)):
        self.prompts = frozenset(prompts)
        self.seen = []
        self.encoded = 0

    def set_image(self, pictures):
        self.encoded += len(pictures)

    def predict(self, requests):
        self.seen += requests
        return [ToolReply(mask=np.ones((10, 20), bool), score=r.boxes[0].x1) for r in requests]

    def propose(self, requests):
        return [ToolReply(mask=np.zeros((10, 20), bool)) for _ in requests]

    def fingerprint(self):
        return {"kind": "boxes"}


def positive(x: float, y: float) -> Click:
    return Click(x, y, True)


def negative(x: float, y: float) -> Click:
    return Click(x, y, False)


@pytest.mark.parametrize(
    ("clicks", "box", "expected"),
    [
        ([positive(0.5, 0.4)], None, (0.4, 0.3, 0.6, 0.5)),
        ([positive(0.02, 0.99)], None, (0.0, 0.89, 0.12, 1.0)),  # cut at the border
        ([positive(0.3, 0.5), positive(0.7, 0.6)], None, (0.2, 0.4, 0.8, 0.7)),
        ([positive(0.5, 0.5)], Box(0.1, 0.45, 0.2, 0.55), (0.1, 0.4, 0.6, 0.6)),
        # the right side moves to the negative click: it costs least
        ([positive(0.5, 0.5), negative(0.58, 0.5)], None, (0.4, 0.4, 0.58, 0.6)),
        ([positive(0.5, 0.5), negative(0.9, 0.9)], None, (0.4, 0.4, 0.6, 0.6)),  # outside: no effect
        ([positive(0.5, 0.5), negative(0.5, 0.5)], None, (0.4, 0.4, 0.6, 0.6)),  # cannot be cut off
        ([positive(0.0, 0.5), negative(0.05, 0.5)], None, (0.0, 0.4, 0.05, 0.6)),
        ([negative(0.5, 0.3)], Box(0.4, 0.0, 0.6, 0.9), (0.4, 0.3, 0.6, 0.9)),
    ],
)
def test_the_box_that_stands_for_clicks(clicks, box, expected):
    assert astuple(box_around(clicks, box, 20)) == pytest.approx(expected)


def test_every_positive_click_stays_inside_whatever_is_cut():
    draw = np.random.default_rng(0)
    for _ in range(300):
        clicks = [Click(*draw.random(2), bool(draw.random() < 0.5)) for _ in range(6)]
        clicks.append(positive(0.5, 0.5))
        box = box_around(clicks, None, float(draw.uniform(5, 100)))
        assert 0 <= box.x1 < box.x2 <= 1
        assert 0 <= box.y1 < box.y2 <= 1
        for click in clicks:
            if click.positive:
                assert box.x1 <= click.x <= box.x2
                assert box.y1 <= click.y <= box.y2


def test_the_tool_sees_a_box_and_no_clicks():
    inner = BoxTool()
    tool = PointToBox(inner, 20)
    assert isinstance(tool, Tool)
    assert tool.prompts == {"box", "point"}
    assert tool.name == "boxes+point-to-box-20"
    assert tool.fingerprint() == {"kind": "boxes", "point_to_box": 20}
    tool.set_image([PICTURE])
    assert inner.encoded == 1
    only_box = ToolRequest(PICTURE, boxes=(Box(0.1, 0.1, 0.2, 0.2),))
    replies = tool.predict([ToolRequest(PICTURE, (positive(0.5, 0.5),)), only_box])
    assert [request.clicks for request in inner.seen] == [(), ()]
    assert [reply.score for reply in replies] == [0.4, 0.1]
    assert tool.propose([only_box])[0].mask.sum() == 0


def test_negative_clicks_alone_fail_alone():
    tool = PointToBox(BoxTool(), 20)
    bad = ToolRequest(PICTURE, (negative(0.5, 0.5),))
    good = ToolRequest(PICTURE, (positive(0.5, 0.5),))
    replies = tool.predict([bad, good])
    assert "positive clicks" in replies[0].error
    assert replies[1].mask is not None
    with pytest.raises(ToolError, match="positive clicks"):
        tool.predict([bad])
    assert tool.predict([]) == []


@pytest.mark.parametrize("percent", [0, -5, 101, float("nan")])
def test_odd_percentages_are_refused(percent):
    with pytest.raises(InputError, match="percentage"):
        PointToBox(BoxTool(), percent)


def test_a_tool_without_boxes_is_refused():
    with pytest.raises(InputError, match="takes boxes"):
        PointToBox(BoxTool(("point",)), 20)
