"""The page on a run: every measure that was logged is drawn, errors and commands are there, nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distil_jax.charts import curves
from distil_jax.cli import main
from distil_jax.errors import UserError
from distil_jax.evaluation import try_report, write_report


class Page(HTMLParser):
    """Text, tags and addresses of a page, whose tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "circle", "polyline", "br"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def test_a_distillation(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert main(["report", str(tiny_run), "--output", str(output)]) == 0
    page = Page(output)
    assert page.open == [] and page.addresses == [] and "script" not in page.tags
    for fact in ("layers", "loss term kl", "held-out loss (nats)", "learning rate", "gradient norm"):
        assert fact in page.text
    rows = (tiny_run / "metrics.jsonl").read_text().splitlines()
    names = {name for row in map(json.loads, rows) if row["kind"] == "train" for name in row["metrics"]}
    drawn = set(re.findall(r"loss term (\w+)", page.text))
    assert drawn == {name.removeprefix("loss_") for name in names if name.startswith("loss_")}


def test_a_fine_tuning_with_its_errors(task_run: Path, tmp_path: Path) -> None:
    page = Page(write_report([task_run], tmp_path / "page.html"))
    details = json.loads((task_run / "result.json").read_text())["details"]["validation"]
    assert "Confusion matrix" in page.text and f"{details['calibration_error']:.4f}" in page.text
    for error in details["errors"]:
        assert error["text"] in page.text


def test_text_is_no_markup(task_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(task_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    result = json.loads((copy / "result.json").read_text())
    error = {"id": "1", "text": "<script>alert(1)</script> & more", "label": "<b>", "predicted": "x", "probability": 1}
    result["details"]["validation"]["errors"] = [error]
    (copy / "result.json").write_text(json.dumps(result))
    page = Page(write_report([copy]))
    assert "script" not in page.tags and "<script>alert(1)</script> & more" in page.text


def test_types_of_entities_are_counted_as_such(task_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(task_run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    result = json.loads((copy / "result.json").read_text())
    types = {"PER": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "entities": 1234}}
    (copy / "result.json").write_text(json.dumps({**result, "details": {"validation": {"classes": types}}}))
    text = Page(write_report([copy])).text.split()
    assert {"PER", "entities", "1,234", "0.333"} <= {*text}


def test_what_is_no_run_is_refused_and_never_fails_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        write_report([tmp_path])
    assert try_report(tmp_path) is None


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 1e-9], [-5.0, 1e6]])
def test_curves_of_any_range(values: list[float]) -> None:
    picture = curves("x", [("a", [(float(step), value) for step, value in enumerate(values)])], level=0.5)
    numbers: Callable[[str], list[str]] = re.compile(r"[xy\d]+=\"(-?[\d.]+)\"").findall
    assert numbers(picture) and "nan" not in picture and "inf" not in picture
