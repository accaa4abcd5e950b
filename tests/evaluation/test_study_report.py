"""A study's numbers, against results whose medians are plain to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import Config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evaluation.study_plan import TaskPlan, plan_study
from distil_jax.evaluation.study_report import (
    best_point,
    best_run,
    duration,
    macro_average,
    measure_title,
    read_report,
    read_result,
    report_markdown,
    task_row,
)


def plan_of(task: str, **study: Any) -> TaskPlan:
    changes = {"run.output": "out", "model.initial": "m", "task.name": task}
    return plan_study(with_overrides(Config(), {**changes, **{f"study.{name}": v for name, v in study.items()}}))[0]


def result(score: float, seconds: float = 60.0, resumed: int = 0, **measures: float) -> dict[str, Any]:
    measures = {"score": score, **(measures or {"matthews": score})}
    made = {"score": score, "measures": measures, "examples": 1200, "step": 30, "steps": 40}
    return {**made, "seconds": seconds, "resumed_from": resumed}


def results_of(plan: TaskPlan, scores: list[float], **more: Any) -> dict[Path, dict[str, Any]]:
    return {run.folder: result(score, **more) for run, score in zip(plan.runs, scores, strict=False)}


def test_median_min_and_max_over_seeds() -> None:
    plan = plan_of("cola", seeds=5)
    row = task_row(plan, results_of(plan, [0.5, 0.1, 0.4, 0.3, 0.9]), {})
    assert (row["median"], row["min"], row["max"], row["seeds"]) == (0.4, 0.1, 0.9, 5)
    assert row["scores"] == {"0": 0.5, "1": 0.1, "2": 0.4, "3": 0.3, "4": 0.9}
    assert row["best_run"] == "out/cola/seed4"
    assert (row["measure"], row["examples"], row["best_step"]) == ("Matthews", 1200, 30)


def test_a_score_is_named_after_what_was_measured() -> None:
    plan = plan_of("tagging")
    assert task_row(plan, results_of(plan, [0.5], entity_f1=0.5, tag_accuracy=0.9), {})["measure"] == "entity F1"
    assert task_row(plan, results_of(plan, [0.9], tag_accuracy=0.9), {})["measure"] == "tag accuracy"


def test_median_of_two_is_their_mean() -> None:
    plan = plan_of("cola", seeds=2)
    assert task_row(plan, results_of(plan, [0.25, 0.75]), {})["median"] == 0.5


def test_every_measure_has_a_median_of_its_own() -> None:
    plan = plan_of("mrpc", seeds=3)
    values = [(0.7, 0.8), (0.9, 0.6), (0.8, 0.7)]
    found = {
        run.folder: result((accuracy + f1) / 2, accuracy=accuracy, f1=f1)
        for run, (accuracy, f1) in zip(plan.runs, values, strict=True)
    }
    row = task_row(plan, found, {})
    assert row["measures"] == {"accuracy": 0.8, "f1": 0.7}
    assert row["measure"] == "accuracy and F1"


def test_time_is_that_of_runs_that_were_not_interrupted() -> None:
    plan = plan_of("cola", seeds=3)
    found = results_of(plan, [0.1, 0.2, 0.3])
    found[plan.runs[0].folder] |= {"seconds": 1.0, "resumed_from": 20}
    found[plan.runs[1].folder] |= {"seconds": 80.0}
    assert task_row(plan, found, {})["seconds"] == 70.0
    assert task_row(plan, {plan.runs[0].folder: found[plan.runs[0].folder]}, {})["seconds"] is None


def test_the_sweep_is_decided_by_medians_not_by_the_luckiest_run() -> None:
    plan = plan_of("cola", seeds=3, learning_rates=[1e-5, 2e-5, 3e-5])
    scores = {1e-5: [0.5, 0.95, 0.1], 2e-5: [0.6, 0.61, 0.62], 3e-5: [0.61, 0.61, 0.0]}
    found = {run.folder: result(scores[run.learning_rate][run.seed]) for run in plan.runs}
    assert best_point(plan, found) == (2e-5, 3)  # of the equal medians of the last two, the first
    row = task_row(plan, found, {})
    assert (row["median"], row["learning_rate"], row["epochs"]) == (0.61, 2e-5, 3)
    assert [point["median"] for point in row["sweep"]] == [0.5, 0.61, 0.61]
    assert row["best_run"] == "out/cola/lr2e-05_epochs3/seed2"
    best = best_run(plan, (1e-5, 3), found)
    assert best is not None and best.seed == 1


def test_a_point_with_all_its_seeds_comes_before_a_better_one_without() -> None:
    plan = plan_of("cola", seeds=2, epochs=[2, 3])
    found = {run.folder: result(0.9 if run.epochs == 2 else 0.5) for run in plan.runs}
    del found[next(run.folder for run in plan.runs if run.epochs == 2)]
    assert best_point(plan, found) == (plan.points[0][0], 3)
    assert best_point(plan, {}) is None


def test_macro_average_says_over_which_tasks() -> None:
    rows = {"cola": {"median": 0.5}, "qnli": {"title": "QNLI"}, "rte": {"median": 0.7}}
    assert macro_average(rows) == {"median": pytest.approx(0.6), "tasks": ["cola", "rte"], "missing": ["qnli"]}
    assert macro_average({"qnli": {}})["median"] is None


def make_report() -> dict[str, Any]:
    cola, mrpc, qnli = plan_of("cola", seeds=3), plan_of("mrpc", seeds=3), plan_of("qnli", seeds=3)
    rows = {
        "cola": task_row(cola, results_of(cola, [0.5, 0.123, 0.4567]), {}),
        "mrpc": task_row(mrpc, results_of(mrpc, [0.8], accuracy=0.75, f1=0.85), {mrpc.runs[1].folder: "too hot"}),
        "qnli": task_row(qnli, {}, {run.folder: "no training data" for run in qnli.runs}),
    }
    origin = {"model": "some/model", "teacher": "", "command": "distil-jax finetune", "machine": "a toaster"}
    rows = {task: {**row, **origin} for task, row in rows.items()}
    return {"tasks": rows, "macro": macro_average(rows)}


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_for_people() -> None:
    text = report_markdown(make_report())
    assert cells(text, "CoLA") == ["CoLA", "Matthews", "45.7", "12.3", "50.0", "3", "-", "1,200", "60 s", "0.0005", "3"]
    assert cells(text, "MRPC")[2:7] == ["80.0", "80.0", "80.0", "1 of 3", "accuracy 75.0, F1 85.0"]
    assert cells(text, "QNLI") == ["QNLI", "accuracy", *["-"] * 9]
    assert cells(text, "macro")[:3] == ["macro-average of 2 of 3", "", "62.8"]  # (45.67 + 80) / 2
    assert "- QNLI (3 times): no training data" in text
    assert "- MRPC: too hot" in text
    assert "- seeds: 0, 1, 2" in text and "- machine: a toaster" in text and "teacher:" not in text


def test_the_table_shows_the_sweep() -> None:
    plan = plan_of("cola", learning_rates=[1e-5, 2e-5])
    rows = {"cola": task_row(plan, results_of(plan, [0.1, 0.2]), {})}
    text = report_markdown({"tasks": rows, "macro": macro_average(rows)})
    table = text[text.index("Medians of the sweep") :]
    assert cells(table, "task") == ["task", "1e-05, 3 epochs", "2e-05, 3 epochs"]
    assert cells(table, "CoLA") == ["CoLA", "10.0", "20.0"]


def test_durations() -> None:
    assert [duration(s) for s in (None, 4.4, 99, 150, 5400, 7200)] == ["-", "4 s", "99 s", "2 min", "90 min", "2.0 h"]


def test_names_of_measures() -> None:
    assert measure_title("matthews") == "Matthews"
    assert measure_title("mismatched_accuracy") == "mismatched accuracy"
    assert measure_title("mismatched_f1") == "mismatched F1"


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report\.json"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UserError, match=r"report\.json: not a JSON object \(but list\)"):
        read_report(tmp_path)


@pytest.mark.parametrize("damage", [{"tasks": {"imdb": []}}, {"tasks": {"imdb": {"title": "IMDb", "measure": 3}}}])
def test_damaged_reports_are_said_in_one_line(tmp_path: Path, damage: Any) -> None:
    (tmp_path / "report.json").write_text(json.dumps(damage))
    with pytest.raises(UserError, match=r"report\.json: '(title|measure)' is missing or of another type; delete"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "high"}, "'score' is missing"),
        ({"measures": [0.5]}, "'measures' is missing"),
        ({"measures": {"score": 0.5, "accuracy": "x"}}, "'accuracy' is missing"),
        ({"step": None}, "'step' is missing"),
        ({"score": None}, "measured on no validation data"),
    ],
)
def test_damaged_results_are_said_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result(0.5)))
    assert read_result(tmp_path) == result(0.5)
    (tmp_path / "result.json").write_text(json.dumps({**result(0.5), **change}))
    with pytest.raises(UserError, match=message):
        read_result(tmp_path)
    (tmp_path / "result.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match=r"result\.json: not a JSON object"):
        read_result(tmp_path)


def test_measures_that_only_some_seeds_have_are_left_out() -> None:
    plan = plan_of("question", seeds=2)
    first, second = plan.runs
    results = {
        first.folder: result(0.5, exact_match=0.4, has_answer_f1=0.6),
        second.folder: result(0.7, exact_match=0.6),
    }
    assert task_row(plan, results, {})["measures"] == pytest.approx({"exact_match": 0.5})


def test_a_single_run_is_a_study_of_one(tmp_path: Path) -> None:
    made = {"task": "imdb", "title": "IMDb", "seed": 3, "score": 0.875}
    (tmp_path / "result.json").write_text(json.dumps(made))
    row = read_report(tmp_path)["tasks"]["imdb"]
    assert (row["median"], row["scores"]) == (0.875, {"3": 0.875})
