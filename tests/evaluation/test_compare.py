"""Studies side by side, with retention worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from distil_jax.cli import main
from distil_jax.errors import UserError
from distil_jax.evaluation import compare_studies

# Sanh et al. 2019, table 1: median of five seeds on the GLUE development sets
TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
PAPER = {
    "bert": (56.3, 84.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5),
    "distilbert": (51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3),
}


def study(folder: Path, medians: Mapping[str, float | None]) -> Path:
    folder.mkdir(parents=True)
    rows = {
        task: {"title": task.upper(), "measure": "score", **({} if median is None else {"median": median})}
        for task, median in medians.items()
    }
    (folder / "report.json").write_text(json.dumps({"tasks": rows}))
    return folder


def test_retention_of_the_paper(tmp_path: Path) -> None:
    scores = {name: {task: v / 100 for task, v in zip(TASKS, row, strict=True)} for name, row in PAPER.items()}
    found = compare_studies([study(tmp_path / name, medians) for name, medians in scores.items()])
    assert found["macro"]["medians"] == pytest.approx({"bert": 0.795, "distilbert": 0.770}, abs=5e-4)
    assert found["macro"]["retention"]["distilbert"] == pytest.approx(0.97, abs=5e-3)
    assert found["tasks"]["rte"]["retention"] == {"distilbert": pytest.approx(59.9 / 69.3)}


def test_only_tasks_of_all_count_for_the_average(tmp_path: Path) -> None:
    teacher = study(tmp_path / "teacher", {"cola": 0.5, "rte": 0.8, "imdb": 0.9})
    student = study(tmp_path / "student", {"cola": 0.4, "rte": None, "imdb": 0.9})
    other = study(tmp_path / "other", {"imdb": 0.6, "cola": 0.3, "codah": 0.5})
    found = compare_studies([teacher, student, other])
    assert list(found["tasks"]) == ["cola", "rte", "imdb", "codah"]
    assert found["tasks"]["cola"]["retention"] == {"student": pytest.approx(0.8), "other": pytest.approx(0.6)}
    assert found["tasks"]["rte"]["medians"] == {"teacher": 0.8, "student": None, "other": None}
    assert found["tasks"]["rte"]["retention"] == {"student": None, "other": None}
    assert found["tasks"]["codah"]["retention"] == {"student": None, "other": None}
    assert found["macro"]["tasks"] == ["cola", "imdb"]
    assert found["macro"]["medians"] == pytest.approx({"teacher": 0.7, "student": 0.65, "other": 0.45})
    assert found["macro"]["retention"] == pytest.approx({"student": 0.65 / 0.7, "other": 0.45 / 0.7})


def test_nothing_can_be_retained_of_nothing(tmp_path: Path) -> None:
    found = compare_studies([study(tmp_path / "a", {"cola": 0.0}), study(tmp_path / "b", {"cola": 0.1})])
    assert found["tasks"]["cola"]["retention"] == {"b": None}


def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = study(tmp_path / "teacher", {"cola": 0.5, "rte": 0.8, "qnli": None})
    student = study(tmp_path / "student", {"cola": 0.45, "rte": 0.6, "qnli": None})
    output = tmp_path / "new" / "retention.md"
    assert main(["compare", str(teacher), str(student), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["task", "measure", "teacher", "student", "retained"]
    assert rows[2:] == [
        ["COLA", "score", "50.0", "45.0", "90.0 %"],
        ["RTE", "score", "80.0", "60.0", "75.0 %"],
        ["QNLI", "score", "-", "-", "-"],
        ["macro-average of 2 of 3 tasks", "", "65.0", "52.5", "80.8 %"],
    ]
    assert output.read_text() == text
    assert json.loads(output.with_suffix(".json").read_text()) == compare_studies([teacher, student])


def test_studies_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [study(tmp_path / name / "glue", {"cola": 0.5}) for name in ("small", "large")]
    assert compare_studies(folders)["studies"] == [str(folder) for folder in folders]


def test_refusals(tmp_path: Path) -> None:
    one = study(tmp_path / "one", {"cola": 0.5})
    with pytest.raises(UserError, match="at least two"):
        compare_studies([one])
    with pytest.raises(UserError, match="given twice"):
        compare_studies([one, tmp_path / "x" / ".." / "one"])
    with pytest.raises(UserError, match="no study"):
        compare_studies([one, tmp_path])
    assert main(["compare", str(one), str(one)]) == 2
