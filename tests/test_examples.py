"""The scripts and notebooks of examples/ run as they stand, on tiny models and data."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import distil_jax
from distil_jax.data.rows import ReadOptions, read_table

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def model(model_folder: Callable[..., str]) -> str:
    return model_folder(head="none", max_position_embeddings=512)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """(script, *arguments) -> what it prints, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def script(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_every_example_is_tested() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in source] == []


def test_sentiment(run: Callable[..., str], model: str, task_files: Mapping[str, Mapping[str, Any]]) -> None:
    rows = task_files["classification"]["task.train"]
    printed = run("sentiment_from_csv.py", rows, "--model", model, "--epochs", "1", "--output", "out")
    assert "'accuracy'" in printed
    assert distil_jax.from_pretrained("out/export")[0].head.labels == ("bad", "good")


def test_a_messy_export(run: Callable[..., str], tmp_path: Path) -> None:
    """The file has what its docstring promises, and what it has is found."""
    for name, count in (("train.tsv", 3000), ("dev.tsv", 400)):
        rows = [f"a film of {n} words , and some more\t{n % 2}\n" for n in range(count)]
        (tmp_path / name).write_text("sentence\tlabel\n" + "".join(rows))
    run("messy_reviews.py", str(tmp_path))
    read = read_table(str(tmp_path / "reviews.csv"), ReadOptions(wanted=("review",)))
    assert len(read.rows) == 3000
    assert any("byte order mark" in note for note in read.notes) and any("';'" in note for note in read.notes)
    cells = [row.values for row in read.rows]
    assert {row["thumb"] for row in cells} == {"0", "0.0", "1", "1.0", ""}
    assert {row["mood"] for row in cells} == {"negative", "Negative", "positive", "Positive", ""}
    for part in ('"', ";", "\U0001f600"):
        assert any(part in row["review"] for row in cells)
    assert any(not row["review"] for row in cells)


@pytest.mark.slow
def test_entities(run: Callable[..., str], model: str, tmp_path: Path) -> None:
    (tmp_path / "tags.conll").write_text("the O\ncat B-X\n\nriver B-Y\ntree O\n\n" * 20)
    printed = run("named_entities.py", "tags.conll", "--model", model, "--epochs", "1", "--output", "out")
    assert "'entity_f1'" in printed
    assert [word.partition("/")[0] for word in printed.splitlines()[-1].split()][:2] == ["Ada", "Lovelace"]


@pytest.mark.slow
def test_questions(run: Callable[..., str], model: str, tmp_path: Path) -> None:
    question = {"id": "1", "question": "the cat", "answers": [{"text": "tree", "answer_start": 4}]}
    articles = [
        {"title": "a", "paragraphs": [{"context": "the tree ran", "qas": [{**question, "id": str(n)}]}]}
        for n in range(40)
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    printed = run("question_answering.py", "squad.json", "--model", model, "--epochs", "1", "--output", "out")
    assert "'squad_f1'" in printed


@pytest.mark.slow
def test_distillation(run: Callable[..., str], tiny_world: Path, model: str) -> None:
    text = str(tiny_world / "text" / "train.txt")
    run("distil_your_bert.py", model, text, "--steps", "2", "--batch-size", "4", "--output", "out")
    student = distil_jax.from_pretrained("out/export", head="none")[0]
    assert student.config.num_layers == distil_jax.from_pretrained(model, head="none")[0].config.num_layers // 2


def test_custom_loss(run: Callable[..., str], tiny_world: Path, model: str) -> None:
    text = str(tiny_world / "text" / "train.txt")
    printed = run("custom_loss.py", model, text, "--steps", "30", "--batch-size", "8", "--output", "out")
    first, last = (float(line.split()[1]) for line in printed.splitlines())
    assert last < first
    assert distil_jax.from_pretrained("out", head="none")[0].config.family == "distilbert"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentiment.ipynb", "distil_in_memory.ipynb"])
def test_notebook(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(model)
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert cell["outputs"], "the notebook is kept with its outputs"
        exec("".join(cell["source"]), names)
