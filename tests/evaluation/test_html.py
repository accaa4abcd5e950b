"""Pages and figures: texts are escaped, and values are drawn at their places."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from distil_jax.evaluation.html import Dot, dots, lines, page, table


def circles(svg: str) -> list[tuple[float, float]]:
    """Centres of the dots of a figure, which is well-formed XML."""
    root = ElementTree.fromstring(svg[svg.index("<svg") : svg.index("</svg>") + 6])
    return [(float(one.get("cx", 0)), float(one.get("cy", 0))) for one in root.iter() if one.tag.endswith("circle")]


def test_a_page_shows_texts_as_they_are() -> None:
    found = page("a < b", [table(["<x>"], [["&"]])])
    assert "<h1>a &lt; b</h1>" in found and "<th>&lt;x&gt;</th>" in found and "<td>&amp;</td>" in found
    assert not re.search(r"<(link|script|img)", found)


def test_dots_stand_in_proportion_to_their_values() -> None:
    groups = [("one", [Dot("a", 10, 8, 12), Dot("b", 20, 20, 20)]), ("two <", [Dot("a", 15, 15, 15)])]
    figure = dots(groups, "score")
    found = circles(figure)
    (low, first), (middle, second), (high, third) = sorted(found)
    assert middle - low == pytest.approx(high - middle, abs=0.2)
    assert first < second < third
    assert "two &lt;" in figure


def test_lines_have_a_logarithmic_axis_where_it_is_wanted() -> None:
    group = [Dot("x", value, value - 1, value + 1, x) for value, x in ((50, 1), (60, 4), (70, 16))]
    found = circles(lines([("base", group)], "tokens", "retention", log=True))
    assert found[1][0] - found[0][0] == pytest.approx(found[2][0] - found[1][0], abs=0.2)
    assert found[0][1] - found[1][1] == pytest.approx(found[1][1] - found[2][1], abs=0.2)


def test_one_value_alone_is_drawn() -> None:
    assert len(circles(dots([("", [Dot("a", 0.0, 0.0, 0.0)])], "score"))) == 1
    assert len(circles(lines([("m", [Dot("a", 5, 5, 5, 3)])], "x", "y", joined=False))) == 1
