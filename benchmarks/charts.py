"""Charts as inline SVG: no scripts, colours by CSS class, so that they follow the page's light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

WIDTH = 1080
_LEFT, _RIGHT = 64, 24  # px around a plot
_ROW_PX = 104
_TALLEST_PX = 40
_BAR_PX = 26
_BARS_LEFT = 350
_LINE_HEIGHT = 280
_MIN_BINS, _MAX_BINS = 24, 90
_SERIES = 7  # colours there are: as many as a GPU has stages

Series = tuple[str, Sequence[float]]
Marks = dict[str, float]  # label -> where


def distributions(rows: Sequence[tuple[str, Sequence[float], Marks]], unit: str) -> str:
    """A histogram per row on one axis that ends a little after the largest mark; what lies beyond is counted."""
    top = max(max(marks.values()) for _, _, marks in rows) * 1.06
    low = min(min(samples) for _, samples, _ in rows)
    start = max(0.0, low - 0.06 * (top - low))
    axis = _Axis(start, max(top, start * 1.01), _LEFT, WIDTH - _RIGHT)
    height = len(rows) * _ROW_PX + 30
    parts = [axis.grid(len(rows) * _ROW_PX, unit)]
    for index, (name, samples, marks) in enumerate(rows):
        base = (index + 1) * _ROW_PX - 8
        bins = min(_MAX_BINS, max(_MIN_BINS, len(samples)))
        counts, edges = np.histogram(samples, bins=bins, range=(axis.low, axis.high))
        tallest = max(1, int(counts.max()))
        for count, begin, end in zip(counts.tolist(), edges, edges[1:], strict=False):
            if count:
                x, tall = axis(float(begin)), _TALLEST_PX * count / tallest
                width = max(1.0, axis(float(end)) - x - 0.8)
                parts.append(_rect(x, base - tall, width, tall, f"s{index % _SERIES}", f"{count} of {len(samples)}"))
        beyond = sum(sample > axis.high for sample in samples)
        label = f"{name}{f' ({beyond} beyond {axis.high:.4g} {unit})' if beyond else ''}"
        parts.append(_text(_LEFT, base - 82, label, "name"))
        for level, (mark, value) in enumerate(marks.items()):
            x = axis(value)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{base - 72}" y2="{base}"/>')
            parts.append(_text(x + 3, base - 66 + 12 * (level % 3), mark, "tick"))
    return _svg(height, parts, f"distributions of {', '.join(name for name, _, _ in rows)}")


def stacked_bars(
    rows: Sequence[tuple[str, dict[str, float]]],  # name, value of each part
    unit: str,
) -> str:
    """A horizontal bar per row, its parts side by side, its sum at the end."""
    axis = _Axis(0, max(sum(parts.values()) for _, parts in rows), _BARS_LEFT, WIDTH - 90)
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    drawn = [_legend(names, _BARS_LEFT)] if len(names) > 1 else []
    first = 34 if drawn else 4
    for index, (label, parts) in enumerate(rows):
        top, x = first + index * (_BAR_PX + 14), axis(0)
        drawn.append(_text(_BARS_LEFT - 12, top + _BAR_PX / 2 + 5, _short(label), "name end"))
        for name, value in parts.items():
            width = axis(value) - axis(0)
            title = f"{name}: {value:.3g} {unit}"
            drawn.append(_rect(x, top, max(0.0, width - 1), _BAR_PX, f"s{names.index(name) % _SERIES}", title))
            if width > 70:
                drawn.append(_text(x + 8, top + _BAR_PX / 2 + 5, f"{value:.3g}", "on"))
            x += width
        drawn.append(_text(x + 8, top + _BAR_PX / 2 + 5, f"{sum(parts.values()):.4g} {unit}", "tick"))
    return _svg(first + len(rows) * (_BAR_PX + 14), drawn, f"stages of {', '.join(label for label, _ in rows)}")


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],  # name, (x, y) ascending in x
    x_label: str,
    y_label: str,
    width: int = WIDTH // 2 - 20,
) -> str:
    """Curves over a logarithmic x, from 0 upwards."""
    xs = sorted({x for _, points in series for x, _ in points})
    across = _Axis(math.log(xs[0]), math.log(xs[-1]) if len(xs) > 1 else math.log(xs[0]) + 1, _LEFT, width - _RIGHT)
    up = _Axis(0, max(y for _, points in series for _, y in points) * 1.08, _LINE_HEIGHT - 44, 40)
    parts = [_legend([name for name, _ in series], _LEFT) if len(series) > 1 else ""]
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", "tick end"))
    for x in xs:
        parts.append(_text(across(math.log(x)), _LINE_HEIGHT - 24, f"{x:g}", "tick middle"))
    parts.append(_text((_LEFT + width - _RIGHT) / 2, _LINE_HEIGHT - 4, x_label, "tick middle"))
    for index, (name, points) in enumerate(series):
        places = [(across(math.log(x)), up(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="curve l{index % _SERIES}" points="{path}"/>')
        for (x, y), (at, value) in zip(places, points, strict=True):
            title = html.escape(f"{name}: {value:.4g} at {at:g}")
            parts.append(
                f'<circle class="s{index % _SERIES}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{title}</title></circle>'
            )
    parts.append(_text(_LEFT, 30 if len(series) > 1 else 18, y_label, "tick"))
    return _svg(_LINE_HEIGHT, parts, f"{y_label} by {x_label}", width)


class _Axis:
    """A linear scale from values to pixels."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        return self._begin + (value - self.low) / (self.high - self.low) * (self._end - self._begin)

    def ticks(self, wanted: int = 6) -> list[float]:
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step)
        return [round(step * i, 10) for i in range(first, math.floor(self.high / step) + 1)]

    def grid(self, height: float, unit: str) -> str:
        parts = []
        for tick in self.ticks(10):
            x = self(tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
            parts.append(_text(x, height + 18, f"{tick:g} {unit}", "tick middle"))
        return "".join(parts)


def _legend(names: Sequence[str], left: float) -> str:
    parts, x = [], float(left)
    for index, name in enumerate(names):
        parts.append(_rect(x, 4, 11, 11, f"s{index % _SERIES}", name))
        parts.append(_text(x + 17, 14, name, "tick"))
        x += 36 + 7 * len(name)
    return "".join(parts)


def _rect(x: float, y: float, width: float, height: float, css: str, title: str) -> str:
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _svg(height: float, parts: Sequence[str], label: str, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{html.escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
