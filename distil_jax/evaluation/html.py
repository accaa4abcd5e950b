"""Pages that need nothing beside themselves: tables, and figures as SVG in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_COLOURS = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a5fa8", "#c79a2b", "#5b8e9c", "#a3476b", "#6b6b6b")
_MOST_DOTS = 30  # on a curve
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}pre{overflow-x:auto}"
    ".note{color:#666}.charts{display:flex;flex-wrap:wrap;gap:1.2rem}.wide{overflow-x:auto}h1,.note{overflow-wrap:anywhere}"
    "td.text{text-align:left;min-width:14rem}"
)


class Dot(NamedTuple):
    """A value with its range (low = high where there is none), and its row or its place on the x axis."""

    label: str
    value: float
    low: float
    high: float
    x: float = 0.0


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML page of parts that are HTML already."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first column to the left."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def dots(groups: Sequence[tuple[str, Sequence[Dot]]], axis: str) -> str:
    """A row a label, with a dot and its range for each group that has it. `axis` says what values are."""
    labels = list(dict.fromkeys(dot.label for _, group in groups for dot in group))
    low, high = _bounds([end for _, group in groups for dot in group for end in (dot.low, dot.high)])
    left, width, step = 230, 760, 14 * max(len(groups), 1) + 12
    height = step * len(labels) + 40

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 20)

    parts = [
        f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 40}" stroke="#e4e4e4"/>'
        f'<text x="{x(tick):.1f}" y="{height - 24}" text-anchor="middle">{tick:g}</text>'
        for tick in _ticks(low, high)
    ]
    for row, label in enumerate(labels):
        parts.append(f'<text x="{left - 10}" y="{row * step + step / 2 + 4}" text-anchor="end">{escape(label)}</text>')
        for number, (name, group) in enumerate(groups):
            y, colour = row * step + 13 + 14 * number, _COLOURS[number % len(_COLOURS)]
            parts += [
                f'<g stroke="{colour}" fill="{colour}"><title>{escape(name)}: {dot.value:.1f} '
                f"({dot.low:.1f} to {dot.high:.1f})</title>"
                f'<line x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{y}" y2="{y}" stroke-width="2"/>'
                f'<circle cx="{x(dot.value):.1f}" cy="{y}" r="4"/></g>'
                for dot in group
                if dot.label == label
            ]
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{escape(axis)}</text>')
    return _svg(parts, width, height) + _legend([name for name, _ in groups])


def lines(
    groups: Sequence[tuple[str, Sequence[Dot]]], x_axis: str, y_axis: str, *, joined: bool = True, log: bool = False
) -> str:
    """Dots with ranges at their `x`, joined within their group or labelled one by one."""
    every = [dot for _, group in groups for dot in group]

    def place(value: float) -> float:
        return math.log10(max(value, 1e-9)) if log else value

    x_low, x_high = _bounds([place(dot.x) for dot in every])
    y_low, y_high = _bounds([end for dot in every for end in (dot.low, dot.high)])
    width, height, left, bottom = 760, 340, 60, 50

    def x(value: float) -> float:
        return left + (place(value) - x_low) / (x_high - x_low) * (width - left - 120)

    def y(value: float) -> float:
        return 10 + (y_high - value) / (y_high - y_low) * (height - bottom - 10)

    xs = sorted({dot.x for dot in every}) if log else _ticks(x_low, x_high)
    parts = [
        f'<line x1="{left}" x2="{width - 100}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>'
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in _ticks(y_low, y_high)
    ]
    parts += [f'<text x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>' for tick in xs]
    for number, (name, group) in enumerate(groups):
        colour = _COLOURS[number % len(_COLOURS)]
        if joined:
            points = " ".join(f"{x(dot.x):.1f},{y(dot.value):.1f}" for dot in sorted(group, key=lambda dot: dot.x))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for dot in group:
            label = (
                "" if joined else f'<text x="{x(dot.x) + 7:.1f}" y="{y(dot.value) + 4:.1f}">{escape(dot.label)}</text>'
            )
            parts.append(
                f'<g><title>{escape(name)} {escape(dot.label)}: {dot.value:.1f}</title><line x1="{x(dot.x):.1f}" '
                f'x2="{x(dot.x):.1f}" y1="{y(dot.low):.1f}" y2="{y(dot.high):.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{x(dot.x):.1f}" cy="{y(dot.value):.1f}" r="4" fill="{colour}"/>{label}</g>'
            )
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">{escape(x_axis)}</text>')
    parts.append(
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">'
        f"{escape(y_axis)}</text>"
    )
    return _svg(parts, width, height) + (_legend([name for name, _ in groups]) if joined else "")


def curves(title: str, groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], level: float | None = None) -> str:
    """A small chart of (x, y) points joined by lines, in one colour a group; it fits a telephone.

    `level` is a value to compare with, a dashed line.
    """
    points = [point for _, group in groups for point in group]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = _bounds([y for _, y in points] + ([] if level is None else [level]))
    width, height, left, top, bottom = 306, 200, 52, 26, 24

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1) * (width - left - 12)
        return left + across, top + (y_high - y) / (y_high - y_low) * (height - top - bottom)

    parts = [f'<text x="4" y="15" font-weight="600" font-size="13">{escape(title)}</text>']
    for tick in _ticks(y_low, y_high):
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
        colour = _COLOURS[number % len(_COLOURS)]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in group))
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for point in group if len(group) <= _MOST_DOTS else group[-1:]:
            x, y = at(*point)
            said = f"{escape(name)}, step {point[0]:,.0f}: {point[1]:.4g}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{said}</title></circle>')
    return _svg(parts, width, height)


def legend(names: Sequence[str]) -> str:
    """The colours of groups; nothing for a single one."""
    return _legend(names)


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="system-ui,sans-serif" font-size="12" fill="#222" role="img">\n{inside}\n</svg>'
    )


def _legend(names: Sequence[str]) -> str:
    marks = (
        f'<span style="color:{_COLOURS[number % len(_COLOURS)]}">&#9679;</span> {escape(name)}'
        for number, name in enumerate(names)
    )
    return f'<p class="note">{" &nbsp; ".join(marks)}</p>' if len(names) > 1 else ""


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
