"""The report of a study: numbers, and a Markdown table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError
from distil_jax.evaluation.study_plan import PlannedRun, TaskPlan
from distil_jax.runs import write_atomically
from distil_jax.tables import markdown
from distil_jax.tasks import SCORE, TaskSpec
from distil_jax.training.finetune import RESULT_FILE

REPORT_FILE, TABLE_FILE = "report.json", "report.md"
ABSENT = "-"
RunResult = Mapping[str, Any]  # of one run, as `finetune` writes it
TaskRow = dict[str, Any]  # of one task
StudyReport = dict[str, Any]

_REMEDY = "delete it and run the study again"
_NUMBER = int | float
_RESULT_FIELDS = {"score": _NUMBER, "measures": dict, "step": int, "steps": int, "examples": int, "seconds": _NUMBER}
_MEASURES = {
    "matthews": "Matthews",
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "EM",
    "squad_f1": "F1",
    "entity_f1": "entity F1",
    "entity_precision": "precision",
    "entity_recall": "recall",
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a run or study has written; `UserError` where it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"but {type(values).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); {_REMEDY}") from None
    return values


def read_result(folder: Path) -> RunResult:
    """The result of a finished run.

    Raises:
        UserError: the file is damaged, or the run was measured on nothing.
    """
    path = folder / RESULT_FILE
    result = read_json(path)
    if result.get("score", 0) is None:
        raise UserError(f"{path}: the run was measured on no validation data; give task.validation")
    _check_fields(path, result, _RESULT_FIELDS)
    _check_fields(path, result["measures"], dict.fromkeys(result["measures"], _NUMBER))
    return result


def _check_fields(path: Path, values: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind):
            raise UserError(f"{path}: {name!r} is missing or of another type; {_REMEDY}")


def best_point(plan: TaskPlan, results: Mapping[Path, RunResult]) -> tuple[float, int] | None:
    """The point of the sweep with the best median score, the first of equals. Complete points precede others."""
    scores = {point: _scores(plan, point, results) for point in plan.points}
    found = [point for point in plan.points if scores[point]]
    ranked = {p: (len(scores[p]) == len(plan.seeds), statistics.median(scores[p].values())) for p in found}
    return max(found, key=lambda point: ranked[point]) if found else None


def best_run(plan: TaskPlan, point: tuple[float, int], results: Mapping[Path, RunResult]) -> PlannedRun | None:
    """The run with the best score at a point of the sweep, the first of equals; None where none is finished."""
    runs = [run for run in plan.runs if run.point == point and run.folder in results]
    return max(runs, key=lambda run: results[run.folder]["score"]) if runs else None


def _scores(plan: TaskPlan, point: tuple[float, int], results: Mapping[Path, RunResult]) -> dict[int, float]:
    runs = (run for run in plan.runs if run.point == point and run.folder in results)
    return {run.seed: results[run.folder]["score"] for run in runs}


def task_row(plan: TaskPlan, results: Mapping[Path, RunResult], failures: Mapping[Path, str]) -> TaskRow:
    """Numbers of one task over its seeds at the best point of the sweep; scores as shares, times in seconds.

    Args:
        plan: its runs.
        results: of the finished ones, by folder.
        failures: reasons of the others.
    """
    spec, point = plan.spec, best_point(plan, results)
    row: TaskRow = {"title": spec.title, "measure": score_name(spec), "seeds_planned": list(plan.seeds)}
    if point is not None:
        scores = _scores(plan, point, results)
        chosen = [results[run.folder] for run in plan.runs if run.point == point and run.folder in results]
        best = best_run(plan, point, results)
        assert best is not None
        # The time of a run that was interrupted is that of its last part only.
        seconds = [result["seconds"] for result in chosen if not result.get("resumed_from")]
        # Some measures of questions exist only where a set has questions without answer.
        everywhere = set.intersection(*(set(result["measures"]) for result in chosen)) - {SCORE}
        names = [name for name in chosen[0]["measures"] if name in everywhere]
        row |= {
            "measure": score_name(spec, names),
            **_spread(scores),
            "measures": {name: statistics.median(result["measures"][name] for result in chosen) for name in names},
            "examples": chosen[0]["examples"],
            "seconds": statistics.median(seconds) if seconds else None,
            "learning_rate": point[0],
            # training.steps overrides epochs.
            "epochs": None if plan.runs[0].config.training.steps else point[1],
            "steps": results[best.folder]["steps"],
            "sweep": [
                {"learning_rate": rate, "epochs": epochs, **_spread(_scores(plan, (rate, epochs), results))}
                for rate, epochs in plan.points
            ],
            "best_run": str(best.folder),
            "best_step": results[best.folder]["step"],
        }
    return {**row, "failures": {str(folder): reason for folder, reason in failures.items()}}


def _spread(scores: Mapping[int, float]) -> TaskRow:
    values = list(scores.values())
    return {
        "median": statistics.median(values) if values else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "seeds": len(values),
        "scores": {str(seed): score for seed, score in scores.items()},
    }


def score_name(spec: TaskSpec, measured: Sequence[str] = ()) -> str:
    """The name of a task's score: "Matthews", "accuracy and F1".

    `measured` are the names that were measured: tags that mark no entities have other measures.
    """
    names = spec.headline or spec.metrics[:1]
    if measured and not {*names} <= {*measured}:
        names = measured[:1]
    return " and ".join(measure_title(name) for name in names)


def measure_title(name: str) -> str:
    """A measure's name in tables. Measures of a further set (MNLI's) begin with its name."""
    if name in _MEASURES:
        return _MEASURES[name]
    prefix, _, rest = name.partition("_")
    return f"{prefix} {_MEASURES[rest]}" if rest in _MEASURES else name.replace("_", " ")


def macro_average(rows: Mapping[str, TaskRow]) -> TaskRow:
    """Mean of the tasks' medians, over which tasks, and which are missing."""
    there = [task for task, row in rows.items() if row.get("median") is not None]
    median = statistics.fmean(rows[task]["median"] for task in there) if there else None
    return {"median": median, "tasks": there, "missing": [task for task in rows if task not in there]}


def read_report(folder: Path) -> StudyReport:
    """The report of a study; of a single run, a report with its task alone.

    Raises:
        UserError: `folder` holds neither.
    """
    path = folder / REPORT_FILE
    if path.is_file():
        report = read_json(path)
        if not isinstance(report.get("tasks"), dict):
            raise UserError(f"{path}: not the report of a study; give the run.output of one")
        for row in report["tasks"].values():
            row = row if isinstance(row, dict) else {}
            _check_fields(path, row, {"title": str, "measure": str})
            _check_fields(path, {"median": 0.0, **row}, {"median": _NUMBER | None})
        return report
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no study and no finished fine-tuning here; give the run.output of one")
    result = read_json(path)
    _check_fields(path, result, {"task": str, "title": str, "seed": int, "score": _NUMBER | None})
    row = {"title": result["title"], "measure": SCORE, **_spread({result["seed"]: result["score"]})}
    return {"tasks": {result["task"]: row}}


def write_report(folder: Path, report: StudyReport) -> str:
    """Write report.json and report.md, each whole or not at all; returns the Markdown."""
    text = report_markdown(report)
    for name, content in ((REPORT_FILE, json.dumps(report, indent=2)), (TABLE_FILE, text)):
        write_atomically(folder / name, content + "\n")
    return text


def report_markdown(report: StudyReport) -> str:
    """A report as Markdown: the table, the sweep where there was one, what failed, and how it was made."""
    rows: Mapping[str, TaskRow] = report["tasks"]
    header, table = report_table(report)
    failed = "\n".join(f"- {line}" for line in failure_lines(rows))
    parts = [markdown(header, table), *_sweep_tables(rows), *([f"Failed:\n\n{failed}"] if failed else [])]
    return "\n\n".join([*parts, _footer(report)])


def report_table(report: StudyReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a report's table: a row a task, and the macro-average of several."""
    rows: Mapping[str, TaskRow] = report["tasks"]
    header = ["task", "measure", "median", "min", "max", "seeds", "other measures (medians)"]
    header += ["examples", "time a run", "learning rate", "epochs"]
    table = [_table_row(row) for row in rows.values()]
    macro = report["macro"]
    if len(rows) > 1:
        share = f"macro-average of {len(macro['tasks'])}" + (f" of {len(rows)}" if macro["missing"] else " tasks")
        table.append([share, "", percent(macro["median"]), *[""] * (len(header) - 3)])
    return header, table


def scored(report: StudyReport) -> list[TaskRow]:
    """The rows of the tasks that have a score."""
    return [row for row in report["tasks"].values() if row.get("median") is not None]


def best_runs(folder: Path) -> list[Path]:
    """The folders of the best run of each task of the study in `folder`, which may have been moved since."""
    found = []
    for task, row in read_report(folder)["tasks"].items():
        parts = Path(row.get("best_run", "")).parts
        if task in parts:
            last = len(parts) - parts[::-1].index(task)
            found.append(folder.joinpath(task, *parts[last:]))
    return [run for run in found if (run / RESULT_FILE).is_file()]


def percent(value: float | None) -> str:
    """A share x 100 with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def _table_row(row: TaskRow) -> list[str]:
    if row.get("median") is None:
        return [row["title"], row["measure"], *[ABSENT] * 9]
    # A threshold is a difference of logits, no share.
    others = {name: value for name, value in row["measures"].items() if not name.endswith("threshold")}
    others = others if len(others) > 1 else {}
    seeds, planned = row["seeds"], len(row["seeds_planned"])
    return [
        row["title"],
        row["measure"],
        *(percent(row[name]) for name in ("median", "min", "max")),
        str(seeds) if seeds == planned else f"{seeds} of {planned}",
        ", ".join(f"{measure_title(name)} {percent(value)}" for name, value in others.items()) or ABSENT,
        f"{row['examples']:,}",
        duration(row["seconds"]),
        f"{row['learning_rate']:g}",
        f"{row['steps']:,} steps" if row["epochs"] is None else str(row["epochs"]),
    ]


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit: "45 s", "12 min", "1.5 h"."""
    if seconds is None:
        return ABSENT
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _sweep_tables(rows: Mapping[str, TaskRow]) -> list[str]:
    swept = {task: row for task, row in rows.items() if len(row.get("sweep", ())) > 1}
    if not swept:
        return []
    points = list(dict.fromkeys((p["learning_rate"], p["epochs"]) for row in swept.values() for p in row["sweep"]))
    table = []
    for row in swept.values():
        found = {(point["learning_rate"], point["epochs"]): point["median"] for point in row["sweep"]}
        table.append([row["title"], *(percent(found.get(point)) for point in points)])
    return ["Medians of the sweep:\n\n" + markdown(["task", *(f"{r:g}, {e} epochs" for r, e in points)], table)]


def failure_lines(rows: Mapping[str, TaskRow]) -> list[str]:
    """A line for each reason for which runs of a task failed, with how many did."""
    lines = []
    for row in rows.values():
        reasons = list(row["failures"].values())
        for reason in dict.fromkeys(reasons):
            count = reasons.count(reason)
            lines.append(f"{row['title']}{f' ({count} times)' if count > 1 else ''}: {reason}")
    return lines


def _footer(report: StudyReport) -> str:
    """How the rows were made, each fact once, since rows may come from several commands."""
    rows: Sequence[TaskRow] = list(report["tasks"].values())

    def distinct(name: str) -> str:
        return "; ".join(dict.fromkeys(str(row[name]) for row in rows if row.get(name)))

    seeds = sorted({seed for row in rows for seed in row["seeds_planned"]})
    lines = {
        "scores": "x 100, on the validation data, of the best checkpoint of every run; median, min and max over seeds",
        "seeds": ", ".join(map(str, seeds)),
        "model": distinct("model"),
        "teacher": distinct("teacher"),
        "command": distinct("command"),
        "machine": distinct("machine"),
        "versions": distinct("versions"),
        "note": distinct("note"),
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)
