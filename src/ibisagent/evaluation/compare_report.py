"""The page of a comparison: differences with intervals, wins and losses, what changed most."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ibisagent.evaluation.compare import TIE, verdict
from ibisagent.evaluation.report import number, page


def comparison_html(comparison: Mapping[str, Any]) -> str:
    """The page as text; self-contained, no script, everything escaped."""
    names = {side: _name(comparison["runs"][side]) for side in ("a", "b")}
    cases = comparison["cases"]
    settings = "".join(f"<li>{escape(line)}</li>" for line in comparison["settings_that_differ"])
    body = (
        f"<h1>A and B on {cases['paired']} cases</h1>"
        f"<p>A: {escape(names['a'])}<br>B: {escape(names['b'])}</p>"
        f"<p class=small>{cases['only_in_a']} cases only in A, {cases['only_in_b']} only in B; these do not "
        "count. Differences are B minus A; intervals draw the same patients for both.</p>"
        f"<h2>Differences</h2>{_differences(comparison)}<h2>Wins and losses by IoU</h2>{_wins(comparison)}"
        f"<h2>What changed most</h2>{_changed(comparison)}"
        f"<h2>Settings that differ</h2><ul>{settings or '<li>none</li>'}</ul>"
    )
    return page("ibisagent comparison", body)


def _name(pair: Mapping[str, Any]) -> str:
    return f"{pair.get('policy')} with {pair.get('tool')}, start {pair.get('settings', {}).get('start')}"


def _differences(comparison: Mapping[str, Any]) -> str:
    head = ("metric", "A", "B", "B - A", "95 % interval", "n", "")
    rows = []
    for row in comparison["differences"]:
        unit = row["unit"]
        span = "" if row["low"] is None else f"{number(row['low'], unit)} to {number(row['high'], unit)}"
        figures = (
            number(row["a"], unit),
            number(row["b"], unit),
            number(row["difference"], unit),
            span,
            str(row["n"]),
        )
        cells = "".join(f"<td class=number>{figure}</td>" for figure in figures)
        rows.append(f"<tr><td>{escape(row['name'])}</td>{cells}<td>{verdict(dict(row))}</td></tr>")
    return _table(head, rows)


def _wins(comparison: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td class=number>{row[key]}</td>" for key in ("wins", "losses", "ties"))
        + "</tr>"
        for name, row in comparison["by_set"].items()
    ]
    return f"<p class=small>A tie: IoU closer than {TIE}.</p>" + _table(
        ("set", "B wins", "B loses", "ties"), rows
    )


def _changed(comparison: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(row['case'])}</td><td class=number>{row['iou_a']:.3f}</td>"
        f"<td class=number>{row['iou_b']:.3f}</td><td class=number>{row['change']:+.3f}</td>"
        f"<td>{escape(row['status_a'])}</td><td>{escape(row['status_b'])}</td></tr>"
        for row in comparison["changed_most"]
    ]
    if not rows:
        return "<p>No case changed.</p>"
    return _table(("case", "IoU of A", "IoU of B", "change", "status of A", "status of B"), rows)


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    titles = "".join(
        f"<th{' class=number' if index else ''}>{escape(title)}</th>" for index, title in enumerate(head)
    )
    return f"<div class=wide><table><tr>{titles}</tr>{''.join(rows)}</table></div>"
