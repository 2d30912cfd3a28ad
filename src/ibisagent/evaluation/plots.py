"""Plots as inline SVG: no script, no file, no font fetched; colours follow the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
_ROW = 20  # height of one bar with its gap


@dataclass(frozen=True)
class Bar:
    """One bar from 0 to 1 with its interval."""

    label: str
    value: float
    low: float | None
    high: float | None
    n: int


def bars(items: Sequence[Bar], title: str) -> str:
    """Horizontal bars on [0, 1], one row each, with whiskers for the intervals."""
    label_width, plot = 210, WIDTH - 210 - 90
    height = _TOP + _ROW * len(items) + 24
    parts = [
        _grid_line(label_width + plot * tick / 5, _TOP, height - 22, f"{tick / 5:g}") for tick in range(6)
    ]
    for row, item in enumerate(items):
        top = _TOP + row * _ROW
        middle = top + _ROW / 2
        end = label_width + plot * min(max(item.value, 0.0), 1.0)
        parts.append(_text(label_width - 8, middle + 4, item.label, "end"))
        parts.append(
            f'<rect class="bar" x="{label_width}" y="{top + 3}" width="{end - label_width:.1f}" '
            f'height="{_ROW - 6}"/>'
        )
        if item.low is not None and item.high is not None:
            low, high = label_width + plot * item.low, label_width + plot * item.high
            parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}"/>')
        parts.append(_text(label_width + plot + 8, middle + 4, f"{item.value:.3f} (n {item.n})", "start"))
    return _svg(parts, height, title)


def lines(series: Mapping[str, Sequence[float]], title: str, x_name: str) -> str:
    """Values in [0, 1] over steps 0, 1, 2, ...; one line for each name."""
    longest = max((len(values) for values in series.values()), default=0)
    steps = max(longest - 1, 1)
    parts = _axes(_ticks(steps), steps, x_name)
    for index, (name, values) in enumerate(series.items()):
        points = [(_x(step / steps), _y(value)) for step, value in enumerate(values)]
        path = " ".join(f"{'M' if not at else 'L'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(points))
        parts.append(f'<path class="line s{index % 4}" d="{path}"/>')
        parts += [f'<circle class="dot s{index % 4}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
        x, y = WIDTH - _RIGHT - 6, HEIGHT - _BOTTOM - 10 - 16 * index
        parts.append(f'<text class="s{index % 4}" x="{x}" y="{y}" text-anchor="end">{escape(name)}</text>')
    return _svg(parts, HEIGHT, title)


def scatter(points: Sequence[tuple[float, float, str]], title: str, x_name: str) -> str:
    """Points (x >= 0, y in [0, 1], label shown when pointed at)."""
    largest = max((x for x, _, _ in points), default=1.0) or 1.0
    parts = _axes(_ticks(largest), largest, x_name)
    for x, y, label in points:
        parts.append(
            f'<circle class="dot s0 faint" cx="{_x(x / largest):.1f}" cy="{_y(y):.1f}" r="3">'
            f"<title>{escape(label)}</title></circle>"
        )
    return _svg(parts, HEIGHT, title)


def histogram(values: Sequence[float], title: str, x_name: str, bins: int = 20) -> str:
    """Counts of values in [0, 1] in equal bins, the last one closed."""
    counts = [0] * bins
    for value in values:
        counts[min(int(value * bins), bins - 1)] += 1
    most = max(counts) or 1
    parts = _axes([0.0, 0.25, 0.5, 0.75, 1.0], 1.0, x_name, y_labels=False)
    for index, count in enumerate(counts):
        left, right = _x(index / bins), _x((index + 1) / bins)
        top = _y(0.95 * count / most)
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{_y(0) - top:.1f}"><title>{count} cases</title></rect>'
        )
        if count:
            parts.append(_text((left + right) / 2, top - 2, str(count), "middle"))
    return _svg(parts, HEIGHT, title)


def _axes(ticks: Sequence[float], largest: float, x_name: str, y_labels: bool = True) -> list[str]:
    parts = []
    for tick in range(6):
        y = _y(tick / 5)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        if y_labels:
            parts.append(_text(_LEFT - 6, y + 4, f"{tick / 5:g}", "end"))
    parts += [_text(_x(tick / largest), HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle") for tick in ticks]
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    return parts


def _ticks(largest: float) -> list[float]:
    """About five round values from 0 to `largest`."""
    rough = largest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(int(largest / step + 1e-9) + 1)]


def _x(share: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * share


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(max(share, 0.0), 1.0)


def _grid_line(x: float, top: float, bottom: float, label: str) -> str:
    return f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>' + _text(x, bottom + 16, label, "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
