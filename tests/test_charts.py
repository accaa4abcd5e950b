"""Pictures of curves: every point is drawn at its place, each chart in its own part."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from distil_jax.charts import curves, picture

_SVG = "{http://www.w3.org/2000/svg}"


def test_a_picture_has_a_chart_for_each_title() -> None:
    series = {f"measure {n} <": [(0, 1.0), (10, 2.0 + n)] for n in range(4)}
    root = ElementTree.fromstring(picture(series))
    charts = root.findall(f"{_SVG}svg")
    assert [one.findall(f"{_SVG}text")[0].text for one in charts] == [*series]
    assert len({(one.get("x"), one.get("y")) for one in charts}) == 4
    ends = [(float(one.get("x", 0)) + float(one.get("width", 0)), float(one.get("y", 0))) for one in charts]
    assert max(x for x, _ in ends) <= float(root.get("width", 0))
    assert all(float(one.get("y", 0)) + float(one.get("height", 0)) <= float(root.get("height", 0)) for one in charts)
    assert picture({}) == ""


def test_points_stand_in_proportion_to_their_values() -> None:
    root = ElementTree.fromstring(curves("loss", [("run", [(0, 3.0), (10, 2.0), (20, 1.0)])], level=2.5))
    found = [(float(one.get("cx", 0)), float(one.get("cy", 0))) for one in root.iter(f"{_SVG}circle")]
    (x1, y1), (x2, y2), (x3, y3) = found
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y2 - y1 == pytest.approx(y3 - y2, abs=0.2)
    assert x1 < x2 < x3 and y1 < y2 < y3
    dashed = next(one for one in root.iter(f"{_SVG}line") if one.get("stroke-dasharray"))
    assert float(dashed.get("y1", 0)) == pytest.approx((y1 + (y2 - y1) / 2), abs=0.2)
