"""One self-contained HTML page for an episode: every turn side by side, nothing fetched, no script.

Everything that came from a model or a file is escaped, and a content security policy allows no
more than the page's own style and embedded pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
from html import escape
from importlib.resources import files

import cv2
import numpy as np
from PIL import Image

from ibisagent import render
from ibisagent.actions import click_pixel, format_action
from ibisagent.replay import observed_pictures
from ibisagent.types import Action, Box, Click, Episode, Mask, Outcome, Pixels, Turn

DISCLAIMER = "Not a medical device. For research only; not for diagnosis or treatment."
THUMBNAIL = 512  # longest side of the pictures in the page

_STYLE = files("ibisagent").joinpath("report.css").read_text(encoding="utf-8")


def episode_html(episode: Episode) -> str:
    """The page for one episode, as text."""
    style_hash = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; form-action 'none'"
    pictures = observed_pictures(episode)
    turns = "".join(_turn_card(turn, pictures[index]) for index, turn in enumerate(episode.turns))
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>ibisagent: {escape(episode.instruction)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(episode.instruction)}</h1>"
        f'<p><span class="badge {episode.outcome}">{episode.outcome}</span> '
        f"status <code>{episode.status}</code> after {len(episode.turns)} turns, {episode.seconds:.2f} s. "
        f"{escape(episode.message)}</p>"
        f"{_warnings(episode)}{_answer(episode)}<h2>Result</h2>{_result(episode)}"
        f"<h2>Turns</h2>{_start(episode)}<div class=turns>{turns}</div>"
        f"<h2>Assumptions</h2>{_assumptions(episode)}<h2>How it was made</h2>{_settings(episode)}"
        f"<footer>{DISCLAIMER}</footer></body></html>\n"
    )


def _warnings(episode: Episode) -> str:
    lines = []
    if episode.outcome is Outcome.SEGMENTED and episode.status != "terminated":
        lines.append("The policy did not say that this mask is final.")
    if episode.picture.laterality == "assumed":
        lines.append(
            "Left and right are assumed: the file does not say which side of the patient is shown where."
        )
    if episode.picture.laterality == "mirrored":
        lines.append("Image left is the patient's left, as the file says; names of sides are the patient's.")
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in lines)


def _answer(episode: Episode) -> str:
    return f"<p><b>Answer.</b> {escape(episode.answer)}</p>" if episode.answer else ""


def _result(episode: Episode) -> str:
    picture = _fit(episode.picture.pixels)
    figures = [_figure(picture, "The picture")]
    if episode.mask is not None:
        shown = render.resize_mask(episode.mask, *picture.shape[:2])
        outlined = render.paint(picture, shown, "contour")
        caption = f"Mask: {_size(episode.mask)}"
        if episode.outcome is Outcome.ABSENT:
            caption = "Not present: the mask is empty"
        figures += [_figure(render.paint(picture, shown), caption), _figure(outlined, "Outline")]
    return f"<div class=result>{''.join(figures)}</div>"


def _start(episode: Episode) -> str:
    if episode.start == "none" or (not episode.turns and episode.start_mask is None):
        return ""
    if episode.start_mask is None:
        return "<p>The tool proposed no mask; the episode began from the bare picture.</p>"
    origin = "the tool's proposal" if episode.start == "proposal" else "the mask that was given"
    score = "" if episode.start_score is None else f", tool's score {episode.start_score:.2f}"
    return f"<p>The episode began from {origin}: {_size(episode.start_mask)}{score}.</p>"


def _turn_card(turn: Turn, before: Pixels) -> str:
    seen = draw_action(_fit(before), turn.action)
    action = "no action" if turn.action is None else format_action(turn.action)
    lines = [
        f"<h3>Turn {turn.number}</h3>{_image(seen, f'What the policy saw in turn {turn.number}')}",
        f"<p>{escape(turn.think or '')}</p><p><code>{escape(action)}</code></p>",
    ]
    if turn.note:
        lines.append(f'<p class="warning">{escape(turn.note)}</p>')
    size = "no mask" if turn.mask is None else _size(turn.mask)
    score = "" if turn.score is None else f", score {turn.score:.2f}"
    times = f"Policy {turn.policy_seconds:.2f} s, tool {turn.tool_seconds:.2f} s."
    lines.append(f'<p class="small">After it: {size}{score}. {times}</p>')
    if turn.rewards:
        parts = ", ".join(f"{escape(name)} {value:+.3f}" for name, value in turn.rewards.items())
        lines.append(f'<p class="small">Rewards: {parts}.</p>')
    for attempt in turn.attempts:
        fault = attempt.failure or attempt.format_fault
        summary = "text as written" + (f" ({escape(str(fault))})" if fault else "")
        lines.append(
            f'<details class="small"><summary>{summary}</summary><pre>{escape(attempt.text)}</pre></details>'
        )
    return f"<section class=turn>{''.join(lines)}</section>"


def _assumptions(episode: Episode) -> str:
    picture = episode.picture
    items = [*picture.assumptions] or ["None beyond what the file says."]
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _settings(episode: Episode) -> str:
    mark = episode.fingerprint
    rows = {
        "policy": mark.get("policy", {}),
        "tool": mark.get("tool", {}),
        "history": mark.get("history"),
        "verbs": ", ".join(episode.settings["verbs"]),
        "start": episode.start,
        "seed": episode.seed,
        "picture": ", ".join(
            filter(
                None, (f"{episode.picture.height} x {episode.picture.width} pixels", episode.picture.source)
            )
        ),
        "sample": episode.sample_id,
    }
    cells = "".join(f"<tr><th>{key}</th><td>{escape(_plain(value))}</td></tr>" for key, value in rows.items())
    return f"<table>{cells}</table>"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return str(value)


def _size(mask: Mask) -> str:
    count = int(np.count_nonzero(mask))
    return f"{count:,} pixels ({100 * count / mask.size:.1f} %)"


def draw_action(pixels: Pixels, action: Action | None) -> Pixels:
    """Pixels (uint8 HxWx3) with the click (yellow plus, red minus) or box drawn; a new array."""
    drawn = pixels.copy()
    height, width = drawn.shape[:2]
    match action:
        case Click():
            row, column = click_pixel(action, height, width)
            color = (255, 220, 0) if action.positive else (255, 60, 60)
            for shade, thickness in (((0, 0, 0), 4), (color, 2)):
                cv2.circle(drawn, (column, row), 8, shade, thickness, cv2.LINE_AA)
                cv2.line(drawn, (column - 4, row), (column + 4, row), shade, thickness)
                if action.positive:
                    cv2.line(drawn, (column, row - 4), (column, row + 4), shade, thickness)
        case Box():
            first = (int(action.x1 * width), int(action.y1 * height))
            cv2.rectangle(drawn, first, (int(action.x2 * width), int(action.y2 * height)), (255, 220, 0), 2)
    return drawn


def _fit(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = THUMBNAIL / max(height, width)
    return render.resize_pixels(pixels, max(1, round(height * scale)), max(1, round(width * scale)))


def _figure(pixels: Pixels, caption: str) -> str:
    return f"<figure>{_image(pixels, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(pixels: Pixels, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
