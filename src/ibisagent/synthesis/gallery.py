"""`ibisagent data view EPISODES --out FILE`: trajectories side by side on one page, with filters.

Every turn as the policy met it, with its click, its thought and the IoU that came of it. The page
fetches nothing: its style and its one script are in it and named by their hashes in a content
security policy, and everything from data or models is escaped. It is bounded: what passes the
filters of the command line beyond `--limit` is counted and left out.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ibisagent.errors import InputError, writing_to

if TYPE_CHECKING:
    from ibisagent.types import Episode, Mask, Pixels

PAGE = "gallery.html"


@dataclass(frozen=True)
class View:
    """Show trajectories on one HTML page: every turn with click, thought and IoU; filters and search."""

    episodes: Annotated[Path, tyro.conf.Positional]
    """an episode log, or the folder of `ibisagent synthesize`"""
    out: Path
    """the page to write, or a folder that gets gallery.html"""
    kind: tuple[str, ...] = ()
    """only these kinds, such as self_correction"""
    dataset: tuple[str, ...] = ()
    """only these data sets"""
    target: tuple[str, ...] = ()
    """only these targets"""
    below: float | None = None
    """only those whose worst IoU is lower than this"""
    text: str | None = None
    """only those whose instruction, thoughts or answer hold this"""
    order: Literal["log", "worst"] = "log"
    """which come first, and are kept: as in the log, or by their worst IoU"""
    limit: int = 100
    """at most so many; about 0.1 MB each"""


@dataclass(frozen=True)
class Facts:
    """What filters ask about one trajectory."""

    kind: str
    dataset: str
    target: str
    worst: float | None  # lowest IoU of a mask that stood; None without a true mask or any mask
    result: float | None  # IoU of the result


def run(command: View) -> int:
    """Write the page; returns the exit code, 0. Raises InputError."""
    from ibisagent.synthesis.manifest import trajectory_files

    if command.limit < 1:
        raise InputError("--limit is at least 1", command.limit)
    page, shown, passing, read = gallery(trajectory_files(command.episodes), command)
    if not passing:
        raise InputError(
            "there is a trajectory to show", f"none of {read} passes the filters", "leave some out"
        )
    out = command.out if command.out.suffix in (".html", ".htm") else command.out / PAGE
    with writing_to("--out is a file"):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    left = f", {passing - shown} left out by --limit" if passing > shown else ""
    print(f"{shown} of {read} trajectories{left} in {out}")
    return 0


def gallery(logs: Iterable[Path], command: View) -> tuple[str, int, int, int]:
    """The page as text; how many trajectories it shows, how many pass the filters and were read."""
    from ibisagent.evaluation.report import page
    from ibisagent.report import DISCLAIMER

    kept: list[tuple[float, int, Facts, str]] = []  # a heap whose first is the one to drop
    read = passing = 0
    for episode in _episodes(logs):
        read += 1
        facts = facts_of(episode)
        if not _passes(facts, episode, command):
            continue
        passing += 1
        rank = -passing if command.order == "log" else -(2.0 if facts.worst is None else facts.worst)
        if len(kept) < command.limit:
            heapq.heappush(kept, (rank, -passing, facts, card(episode, facts)))
        elif (rank, -passing) > kept[0][:2]:
            heapq.heapreplace(kept, (rank, -passing, facts, card(episode, facts)))
    kept.sort(key=lambda entry: entry[:2], reverse=True)
    left = f" {passing - len(kept)} more pass and are left out (--limit)." if passing > len(kept) else ""
    body = (
        f"<h1>Trajectories</h1><p>{len(kept)} of {read} that were read.{left} {DISCLAIMER}</p>"
        "<p class=small>Green: the mask that stood. Yellow outline: the true mask. Yellow plus: positive "
        "click. Red minus: negative click. Worst IoU: the lowest of the masks that stood.</p>"
        f"{_filters([facts for _, _, facts, _ in kept])}"
        f"<div id=cards>{''.join(html for *_, html in kept)}</div>"
    )
    own = files("ibisagent.synthesis")
    style, script = (own.joinpath(f"gallery.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    return page("ibisagent: trajectories", body, style, script), len(kept), passing, read


def facts_of(episode: Episode) -> Facts:
    """What filters ask about; IoU(empty, empty) is 1, so a right `absent` has 1."""
    from ibisagent.masks import iou

    truth = episode.truth
    masks = [episode.start_mask, *(turn.mask for turn in episode.turns), episode.mask]
    ious = [] if truth is None else [iou(truth, mask) for mask in masks if mask is not None]
    return Facts(
        kind=episode.kind or "episode",
        dataset=episode.sample_id.split("/")[0],
        target=episode.target or "",
        worst=min(ious, default=None),
        result=None if truth is None or episode.mask is None else iou(truth, episode.mask),
    )


def _episodes(logs: Iterable[Path]) -> Iterator[Episode]:
    from ibisagent.episodes import read_episodes

    for log in logs:
        yield from read_episodes(log)


def _passes(facts: Facts, episode: Episode, command: View) -> bool:
    asked = ((command.kind, facts.kind), (command.dataset, facts.dataset), (command.target, facts.target))
    if any(wanted and value not in wanted for wanted, value in asked):
        return False
    if command.below is not None and (facts.worst is None or facts.worst >= command.below):
        return False
    words = [episode.instruction, episode.answer, *(turn.think for turn in episode.turns)]
    text = "\n".join(word for word in words if word)
    return command.text is None or command.text.lower() in text.lower()


# --- the page ---------------------------------------------------------------------------------


def _filters(shown: Iterable[Facts]) -> str:
    shown = list(shown)

    def choice(name: str, label: str, values: Iterable[str]) -> str:
        options = "".join(
            f'<option value="={escape(value)}">{escape(value or "(no name)")} ({count})</option>'
            for value, count in sorted(Counter(values).items())
        )
        return f'<label>{label}<select name={name}><option value="">all</option>{options}</select></label>'

    bound = "<input type=number min=0 max=1 step=0.05 name="
    return (
        "<form id=filters>"
        + choice("kind", "kind", (facts.kind for facts in shown))
        + choice("set", "data set", (facts.dataset for facts in shown))
        + choice("target", "target", (facts.target for facts in shown))
        + f"<label>worst IoU at most{bound}worst></label><label>result's IoU at most{bound}result></label>"
        "<label>search<input type=search name=text></label>"
        "<label>order<select name=order><option value=log>as written</option>"
        "<option value=worst>worst IoU first</option><option value=result>worst result first</option>"
        "</select></label><button type=reset>all</button><span id=shown></span></form>"
    )


def card(episode: Episode, facts: Facts) -> str:
    """One trajectory: a picture for every turn before its action, and one for the end."""
    from ibisagent.actions import format_action
    from ibisagent.evaluation.report import picture_figure
    from ibisagent.report import draw_action
    from ibisagent.synthesis.trajectories import wrong_turns

    wrong = wrong_turns(episode) if episode.truth is not None else ()
    figures, before = [], episode.start_mask
    for turn in episode.turns:
        action = "no action" if turn.action is None else format_action(turn.action)
        caption = f"Turn {turn.number}: {action}"
        figure = picture_figure(draw_action(_thumbnail(episode, before), turn.action), caption)
        note = " A click outside the error." if turn.number in wrong else ""
        after = f"{_iou(episode, turn.mask)}.{note}"
        lines = f"<p>{escape(turn.think or '')}</p><p class=small>After it: {escape(after)}</p>"
        mark = " class=wrong" if turn.number in wrong else ""
        figures.append(f"<div{mark}>{figure}{lines}</div>")
        before = turn.mask
    end = picture_figure(_thumbnail(episode, episode.mask), f"End: {_iou(episode, episode.mask)}")
    figures.append(f"<div>{end}<p>{escape(episode.answer or episode.message)}</p></div>")
    data = "".join(
        f' data-{name}="{escape(value)}"'
        for name, value in (
            ("kind", facts.kind),
            ("set", facts.dataset),
            ("target", facts.target),
            ("worst", _figure(facts.worst)),
            ("result", _figure(facts.result)),
        )
    )
    said = (
        f"{facts.dataset}, {facts.target or 'no name'}; {len(episode.turns)} turns; {episode.status}; "
        f"{episode.outcome}; worst IoU {_figure(facts.worst) or '-'}, result {_figure(facts.result) or '-'}"
    )
    return (
        f"<section class=card{data}><h2>{escape(episode.instruction)}</h2>"
        f'<p><span class="badge {escape(facts.kind)}">{escape(facts.kind)}</span> {escape(said)} '
        f"<span class=small>{escape(episode.sample_id)}, seed {episode.seed}</span></p>"
        f"<div class=strip>{''.join(figures)}</div></section>"
    )


def _thumbnail(episode: Episode, mask: Mask | None) -> Pixels:
    import numpy as np

    from ibisagent.evaluation.report import thumbnail

    picture = episode.picture
    truth = np.zeros((picture.height, picture.width), bool) if episode.truth is None else episode.truth
    return thumbnail(picture, truth, mask)


def _iou(episode: Episode, mask: Mask | None) -> str:
    from ibisagent.masks import iou

    if mask is None:
        return "no mask"
    return "a mask" if episode.truth is None else f"IoU {iou(episode.truth, mask):.3f}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
