"""The page of a run: aggregates, plots, tables and the worst cases with pictures.

It fetches nothing and holds no script; everything from data or models is escaped, and a content
security policy allows only the page's own style and embedded pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ibisagent import render
from ibisagent.datasets.cases import ReadOptions
from ibisagent.evaluation.cases import Task, samples
from ibisagent.evaluation.perturb import Perturbation
from ibisagent.evaluation.plots import Bar, bars, histogram, lines, scatter
from ibisagent.evaluation.samples import read_lines, read_scores
from ibisagent.evaluation.scoring import CaseScore
from ibisagent.masks import decode_rle
from ibisagent.report import DISCLAIMER
from ibisagent.types import Mask, Picture, Pixels

WORST = 50  # cases shown with pictures
SIDE = 240  # pixels of a thumbnail's longest side
_TRUTH = (255, 210, 0)  # RGB of the true outline
_SHOWN = 1500  # points of a scatter plot at most


Reading = tuple[ReadOptions, Perturbation | None]  # how a run read and changed its pictures


def evaluation_html(
    summary: Mapping[str, Any],
    folder: Path,
    tasks: Sequence[Task],
    instruction: str,
    reading: Reading | None = None,
) -> str:
    """The page as text. `tasks` say where pictures of the worst cases lie, `reading` how they were read."""
    scores = sorted(read_scores(folder), key=lambda case: case.case)
    pair, data = summary["run"]["pair"], summary["run"]["data"]
    body = (
        f"<h1>{escape(pair['policy'])} with {escape(pair['tool'])}</h1>"
        f"<p>{data['cases']} cases of split <code>{escape(data['split'])}</code>, "
        f"instruction <code>{escape(instruction)}</code>, start {escape(pair['settings']['start'])}, "
        f"at most {pair['settings']['max_turns']} turns.</p>{_perturbed(data)}"
        f"{_policies(summary)}<h2>Aggregates</h2>{metric_table(summary['metrics'])}"
        f"<h2>Plots</h2><div class=plots>{_plots(summary, scores)}</div>"
        f"<h2>By turn</h2>{_turn_table(summary.get('by_turn', []))}"
        f"<h2>By set</h2>{_group_table(summary['by_set'])}"
        f"<h2>By target</h2>{_group_table(summary['by_target'])}"
        f"<h2>By modality</h2>{_group_table(summary['by_modality'])}"
        f"<h2>How episodes ended</h2>{_counts(summary['statuses'])}"
        f"<h2>Worst cases, at most {WORST}</h2>{_worst(scores, folder, tasks, reading)}"
        f"<h2>How it was made</h2>{_facts(summary)}"
    )
    return page(f"ibisagent evaluation: {pair['policy']} with {pair['tool']}", body)


def page(title: str, body: str, extra_style: str = "", script: str = "") -> str:
    """A whole page around `body`, which must be escaped already; `script` runs once it is there."""
    style = files("ibisagent.evaluation").joinpath("evaluation.css").read_text(encoding="utf-8") + extra_style
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; form-action 'none'"
    if script:
        policy += f"; script-src {_hash(script)}"
        body += f"<script>{script}</script>"
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"{body}<footer>{DISCLAIMER}</footer></body></html>\n"
    )


def _hash(text: str) -> str:
    """A source of a content security policy: this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def number(value: float | None, unit: str = "") -> str:
    """A figure as text: four digits for shares, two for what has a unit."""
    if value is None:
        return "-"
    return f"{value:.4f}" if unit == "" else f"{value:.2f}"


def metric_table(metrics: Iterable[Mapping[str, Any]]) -> str:
    """Every aggregate with its interval, n, and what was left out."""
    rows = []
    for metric in metrics:
        unit = metric["unit"]
        span = (
            ""
            if metric["low"] is None
            else f"{number(metric['low'], unit)} to {number(metric['high'], unit)}"
        )
        out = ", ".join(f"{count} {reason}" for reason, count in metric["left_out"].items())
        rows.append(
            f"<tr><td>{escape(metric['name'])}</td><td class=number>{number(metric['value'], unit)} "
            f"{escape(unit)}</td><td class=number>{span}</td><td class=number>{metric['n']}</td>"
            f"<td class=small>{escape(out)}</td></tr>"
        )
    head = (
        "<tr><th>metric</th><th class=number>value</th><th class=number>95 % interval</th>"
        "<th class=number>n</th><th>left out</th></tr>"
    )
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>"


def thumbnail(picture: Picture, truth: Mask, predicted: Mask | None) -> Pixels:
    """The picture with the result painted and the true outline in yellow."""
    scale = SIDE / max(picture.height, picture.width)
    height, width = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    pixels = render.resize_pixels(picture.pixels, height, width)
    if predicted is not None:
        pixels = render.paint(pixels, render.resize_mask(predicted, height, width))
    drawn = pixels.copy()
    outline = render.resize_mask(truth, height, width).astype(np.uint8)
    contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _TRUTH, 1)
    return drawn


def picture_figure(pixels: Pixels, caption: str) -> str:
    """An embedded JPEG with its caption."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def pictures_of(
    cases: Sequence[str], folder: Path, tasks: Sequence[Task], reading: Reading | None = None
) -> dict[str, Pixels]:
    """Thumbnails of cases by id, as far as their episodes and picture files are there."""
    wanted = set(cases)
    places = {name: task for task in tasks for name in task.case_ids() if name in wanted}
    drawn: dict[str, Pixels] = {}
    for line in read_lines(folder):
        task = places.get(line["case"])
        if task is None or line["episode"] is None:
            continue
        episode = line["episode"]
        predicted = episode["result"]["mask"]
        picture = _picture(task, line["case"], reading)
        truth = decode_rle(episode["truth"])
        mask = None if predicted is None else decode_rle(predicted)
        drawn[line["case"]] = thumbnail(picture, truth, mask)
    return drawn


def _perturbed(data: Mapping[str, Any]) -> str:
    change = data.get("perturbation")
    if change is None:
        return ""
    kind, strength = escape(change["kind"]), f"{change['strength']:g}"
    return f"<p>Every case is changed: <b>{kind}</b>, strength {strength}, seed {change['seed']}.</p>"


def _picture(task: Task, case: str, reading: Reading | None) -> Picture:
    """The picture as the run saw it."""
    options, change = reading or (None, None)
    if options is None or change is None:
        return task.entry.picture.read()
    [sample] = [sample for sample in samples(task, options) if sample.sample_id == case]
    return change(sample).picture


def _policies(summary: Mapping[str, Any]) -> str:
    policies, intervals = summary["policies"], summary["intervals"]
    return (
        f"<p class=small>Both masks empty: {escape(policies['empty'])}. No prediction: "
        f"{escape(policies['missing'])}. Masks are on the true mask's grid; nothing is resized. Intervals: "
        f"{intervals['level']:g} %, {escape(intervals['method'])}, {intervals['replicates']} replicates, "
        f"{intervals['patients']} patients or pictures.</p>"
    )


def _plots(summary: Mapping[str, Any], scores: Sequence[CaseScore]) -> str:
    shown = [case for case in scores if case.present and not case.unreadable]
    step = max(1, len(shown) // _SHOWN)
    seconds = [
        (case.policy_seconds + case.tool_seconds, case.iou(), f"{case.target}, {case.turns} turns")
        for case in shown[::step]
    ]
    curves = {
        name: summary[key]
        for name, key in (("after turns", "iou_by_turn"), ("after clicks", "iou_by_click"))
        if summary[key]
    }
    parts = [
        _bars(summary["by_set"], "Mean IoU by set"),
        _bars(summary["by_modality"], "Mean IoU by modality"),
        _bars(summary["by_target"], "Mean IoU by target"),
        lines(
            curves, "Mean IoU over turns and clicks (finished episodes keep their last)", "turns or clicks"
        ),
        histogram([case.iou() for case in shown], "Cases by IoU", "IoU"),
        scatter(seconds, "Cost against quality: one dot a case", "seconds of policy and tool"),
    ]
    return "".join(parts)


def _bars(groups: Mapping[str, Any], title: str) -> str:
    rows = {name: group["mean IoU"] for name, group in groups.items()}
    items = [
        Bar(name, row["value"], row["low"], row["high"], row["n"])
        for name, row in rows.items()
        if row["value"] is not None
    ]
    return bars(items, title)


def _group_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(next(iter(groups.values()))) if groups else []
    head = "".join(f"<th class=number>{escape(name)}</th>" for name in names)
    rows = []
    for group, metrics in groups.items():
        cells = []
        for metric in metrics.values():
            unit = metric["unit"]
            span = "" if metric["low"] is None else f"<br><span class=small>{number(metric['low'], unit)} to "
            span += f"{number(metric['high'], unit)}</span>" if span else ""
            cells.append(f"<td class=number>{number(metric['value'], unit)}{span}</td>")
        n = metrics[names[0]]["n"]
        rows.append(f"<tr><td>{escape(group)}</td><td class=number>{n}</td>{''.join(cells)}</tr>")
    return (
        f"<div class=wide><table><tr><th></th><th class=number>n</th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _turn_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each turn is worth; each figure with its interval and n."""
    names = [name for name in rows[0] if name not in ("turn", "cases")] if rows else []
    head = "".join(f"<th class=number>{escape(name)}</th>" for name in names)
    lines = []
    for row in rows:
        cells = []
        for name in names:
            item = row[name]
            span = "" if item["low"] is None else f"{number(item['low'])} to {number(item['high'])}, "
            small = f"<br><span class=small>{span}n {item['n']}</span>"
            cells.append(f"<td class=number>{number(item['value'])}{small}</td>")
        lines.append(f"<tr><td>{row['turn']}</td><td class=number>{row['cases']}</td>{''.join(cells)}</tr>")
    return (
        f"<div class=wide><table><tr><th>turn</th><th class=number>cases</th>{head}</tr>"
        f"{''.join(lines)}</table></div>"
    )


def _counts(counts: Mapping[str, int]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td class=number>{n}</td></tr>" for name, n in counts.items())
    return f"<table>{rows}</table>"


def _worst(scores: Sequence[CaseScore], folder: Path, tasks: Sequence[Task], reading: Reading | None) -> str:
    shown = [case for case in scores if case.present and not case.unreadable]
    worst = sorted(shown, key=lambda case: (case.iou(), case.case))[:WORST]
    drawn = pictures_of([case.case for case in worst], folder, tasks, reading)
    figures = []
    for case in worst:
        caption = f"{case.dataset}, {case.target}: IoU {case.iou():.3f}, {case.turns} turns, {case.status}"
        if case.case in drawn:
            figures.append(picture_figure(drawn[case.case], caption))
        else:
            figures.append(f"<figure><figcaption>{escape(caption)} (picture not found)</figcaption></figure>")
    legend = "<p class=small>Green: the result. Yellow outline: the true mask.</p>"
    return f"{legend}<div class=gallery>{''.join(figures)}</div>"


def _facts(summary: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = []
    for part in ("data", "pair"):
        rows += _flat(summary["run"][part])
    rows += _flat(summary["times"]) + _flat(summary["host"])
    cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in rows)
    return f"<table class=small>{cells}</table>"


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in record.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows
