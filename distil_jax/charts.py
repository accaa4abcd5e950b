"""Charts as SVG, which needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a5fa8", "#c79a2b", "#5b8e9c", "#a3476b", "#6b6b6b")
_MOST_DOTS = 30  # on a curve
_WIDTH, _HEIGHT = 306, 200  # of a chart of curves; two fit beside each other, one fits a telephone
_ACROSS = 3  # charts in a row of a picture


def curves(title: str, groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], level: float | None = None) -> str:
    """A small chart of (x, y) points joined by lines, in one colour a group; it fits a telephone.

    `level` is a value to compare with, a dashed line.
    """
    points = [point for _, group in groups for point in group]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = bounds([y for _, y in points] + ([] if level is None else [level]))
    width, height, left, top, bottom = _WIDTH, _HEIGHT, 52, 26, 24

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1) * (width - left - 12)
        return left + across, top + (y_high - y) / (y_high - y_low) * (height - top - bottom)

    parts = [f'<text x="4" y="15" font-weight="600" font-size="13">{escape(title)}</text>']
    for tick in ticks(y_low, y_high):
        y = at(x_low, tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (x_low, x_high) if x_high > x_low else (x_low,):
        x, anchor = at(tick, y_low)[0], "start" if tick == x_low else "end"
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">step {tick:,.0f}</text>')
    if level is not None:
        y = at(x_low, level)[1]
        parts.append(
            f'<line x1="{left}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#666" stroke-dasharray="5 4"/>'
        )
    for number, (name, group) in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in group))
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for point in group if len(group) <= _MOST_DOTS else group[-1:]:
            x, y = at(*point)
            said = f"{escape(name)}, step {point[0]:,.0f}: {point[1]:.4g}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{said}</title></circle>')
    return svg(parts, width, height)


def picture(series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A chart for each title, in rows: a file of its own, on white, since a page may be dark. "" for no series."""
    if not series:
        return ""
    across = min(len(series), _ACROSS)
    width, height = across * _WIDTH, -(-len(series) // across) * _HEIGHT
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for number, (title, points) in enumerate(series.items()):
        row, column = divmod(number, across)
        chart = curves(title, [(title, points)])
        parts.append(chart.replace("<svg ", f'<svg x="{column * _WIDTH}" y="{row * _HEIGHT}" ', 1))
    return svg(parts, width, height) + "\n"


def svg(parts: Sequence[str], width: float, height: float) -> str:
    """A picture of elements, `width` x `height` pixels."""
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui,sans-serif" font-size="12" fill="#222" role="img">\n{inside}\n</svg>'
    )


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: a little beyond the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the ends of an axis."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
