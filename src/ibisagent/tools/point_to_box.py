"""Clicks for a tool that takes boxes only (`--point-to-box PERCENT`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ibisagent.errors import InputError, ToolError
from ibisagent.types import Box, Click, Picture, Prompt, Tool, ToolReply, ToolRequest


class PointToBox:
    """Turns all clicks of a request into one box and hands that to `tool`.

    Each positive click is the centre of a square whose sides are `percent` of the picture's; the
    box is the smallest around all of them (and around the request's last box, if it has one), cut
    at the picture's border. Negative clicks, oldest first, cut the box: the side that loses the
    least area moves to the click, unless a positive click would fall out, when it is ignored. So
    more clicks can make the box larger or smaller, but only ever as a box.
    """

    def __init__(self, tool: Tool, percent: float) -> None:
        """`percent` in (0, 100]. Raises InputError outside, or if `tool` takes no boxes."""
        if not 0 < percent <= 100:
            raise InputError("--point-to-box takes a percentage above 0 and up to 100", percent)
        if "box" not in tool.prompts:
            raise InputError("--point-to-box needs a tool that takes boxes", tool.name, "leave it out")
        self._tool = tool
        self._percent = percent
        self.name = f"{tool.name}+point-to-box-{percent:g}"
        self.prompts: frozenset[Prompt] = tool.prompts | {"point"}

    def set_image(self, pictures: Sequence[Picture]) -> None:
        """Encode what is not cached yet."""
        self._tool.set_image(pictures)

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """One mask per request, in order. Raises ToolError only if all failed."""
        replies: dict[int, ToolReply] = {}
        asked: dict[int, ToolRequest] = {}
        for index, request in enumerate(requests):
            try:
                asked[index] = self._boxed(request)
            except InputError as error:
                replies[index] = ToolReply(error=str(error))
        if requests and not asked:
            raise ToolError(f"{self.name} could not answer: {replies[0].error}")
        replies.update(zip(asked, self._tool.predict(list(asked.values())), strict=True))
        return [replies[index] for index in range(len(requests))]

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        """The tool's own proposals; no clicks are involved."""
        return self._tool.propose(requests)

    def fingerprint(self) -> Mapping[str, Any]:
        """The tool's own, and the percentage."""
        return {**self._tool.fingerprint(), "point_to_box": self._percent}

    def _boxed(self, request: ToolRequest) -> ToolRequest:
        if not request.clicks:
            return request
        box = box_around(request.clicks, request.boxes[-1] if request.boxes else None, self._percent)
        return replace(request, clicks=(), boxes=(box,))


def box_around(clicks: Sequence[Click], box: Box | None, percent: float) -> Box:
    """The box that stands for `clicks` (see PointToBox), widening `box` where there is one.

    Raises InputError if there is neither a positive click nor a box.
    """
    half = percent / 200
    kept = [(click.x, click.y) for click in clicks if click.positive]
    sides = [(x - half, y - half, x + half, y + half) for x, y in kept]
    if box is not None:
        sides.append((box.x1, box.y1, box.x2, box.y2))
    if not sides:
        raise InputError("a box is drawn around positive clicks", "negative ones only")
    left, top = max(0.0, min(s[0] for s in sides)), max(0.0, min(s[1] for s in sides))
    right, bottom = min(1.0, max(s[2] for s in sides)), min(1.0, max(s[3] for s in sides))
    around = Box(left, top, right, bottom)
    for click in clicks:
        if not click.positive:
            around = _cut(around, click, kept)
    return around


def _cut(box: Box, click: Click, kept: Sequence[tuple[float, float]]) -> Box:
    """`box` less what lies beyond `click` on the side that costs least; itself if none is possible."""
    if not (box.x1 < click.x < box.x2 and box.y1 < click.y < box.y2):
        return box
    cuts = (
        (replace(box, x1=click.x), all(x > click.x for x, _ in kept)),
        (replace(box, y1=click.y), all(y > click.y for _, y in kept)),
        (replace(box, x2=click.x), all(x < click.x for x, _ in kept)),
        (replace(box, y2=click.y), all(y < click.y for _, y in kept)),
    )
    allowed = [cut for cut, keeps_all in cuts if keeps_all]
    return max(allowed, key=lambda cut: (cut.x2 - cut.x1) * (cut.y2 - cut.y1), default=box)
