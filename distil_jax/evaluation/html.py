"""Pages that need nothing beside themselves: tables, and figures as SVG in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from distil_jax.charts import COLOURS, bounds, svg, ticks

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}pre{white-space:pre-wrap;overflow-wrap:anywhere}"
    ".note{color:#666}.charts{display:flex;flex-wrap:wrap;gap:1.2rem}.wide{overflow-x:auto}"
    ".wide svg{max-width:none}h1,.note{overflow-wrap:anywhere}"
    "td.text{text-align:left}td:first-child{overflow-wrap:break-word}"
    "@media(max-width:500px){td,th{padding:.25rem .3rem;font-size:14px}}"
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
    """A table of texts, the first column to the left, which a telephone scrolls."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return scrolled(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def dots(groups: Sequence[tuple[str, Sequence[Dot]]], axis: str) -> str:
    """A row a label, with a dot and its range for each group that has it. `axis` says what values are."""
    labels = list(dict.fromkeys(dot.label for _, group in groups for dot in group))
    low, high = bounds([end for _, group in groups for dot in group for end in (dot.low, dot.high)])
    left, width, step = 230, 760, 14 * max(len(groups), 1) + 12
    height = step * len(labels) + 40

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 20)

    parts = [
        f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 40}" stroke="#e4e4e4"/>'
        f'<text x="{x(tick):.1f}" y="{height - 24}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(low, high)
    ]
    for row, label in enumerate(labels):
        parts.append(f'<text x="{left - 10}" y="{row * step + step / 2 + 4}" text-anchor="end">{escape(label)}</text>')
        for number, (name, group) in enumerate(groups):
            y, colour = row * step + 13 + 14 * number, COLOURS[number % len(COLOURS)]
            parts += [
                f'<g stroke="{colour}" fill="{colour}"><title>{escape(name)}: {dot.value:.1f} '
                f"({dot.low:.1f} to {dot.high:.1f})</title>"
                f'<line x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{y}" y2="{y}" stroke-width="2"/>'
                f'<circle cx="{x(dot.value):.1f}" cy="{y}" r="4"/></g>'
                for dot in group
                if dot.label == label
            ]
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{escape(axis)}</text>')
    return scrolled(svg(parts, width, height)) + legend([name for name, _ in groups])


def lines(
    groups: Sequence[tuple[str, Sequence[Dot]]], x_axis: str, y_axis: str, *, joined: bool = True, log: bool = False
) -> str:
    """Dots with ranges at their `x`, joined within their group or labelled one by one."""
    every = [dot for _, group in groups for dot in group]

    def place(value: float) -> float:
        return math.log10(max(value, 1e-9)) if log else value

    x_low, x_high = bounds([place(dot.x) for dot in every])
    y_low, y_high = bounds([end for dot in every for end in (dot.low, dot.high)])
    width, height, left, bottom = 760, 340, 60, 50

    def x(value: float) -> float:
        return left + (place(value) - x_low) / (x_high - x_low) * (width - left - 120)

    def y(value: float) -> float:
        return 10 + (y_high - value) / (y_high - y_low) * (height - bottom - 10)

    xs = sorted({dot.x for dot in every}) if log else ticks(x_low, x_high)
    parts = [
        f'<line x1="{left}" x2="{width - 100}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>'
        f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks(y_low, y_high)
    ]
    parts += [f'<text x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>' for tick in xs]
    for number, (name, group) in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
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
    return scrolled(svg(parts, width, height)) + (legend([name for name, _ in groups]) if joined else "")


def scrolled(figure: str) -> str:
    """A figure or table in its own size, which a telephone scrolls, so that its text can be read."""
    return f'<div class="wide">{figure}</div>'


def legend(names: Sequence[str]) -> str:
    """The colours of groups; nothing for a single one."""
    marks = (
        f'<span style="color:{COLOURS[number % len(COLOURS)]}">&#9679;</span> {escape(name)}'
        for number, name in enumerate(names)
    )
    return f'<p class="note">{" &nbsp; ".join(marks)}</p>' if len(names) > 1 else ""
