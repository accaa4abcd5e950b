"""Studies side by side: each model's score on each task, and the share of the first one's that it retains."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError, writing
from distil_jax.evaluation.report import folder_labels
from distil_jax.evaluation.study_report import ABSENT, percent, read_report
from distil_jax.tables import markdown


def compare_studies(folders: Sequence[Path]) -> dict[str, Any]:
    """Medians of studies, and retention: their ratio to those of the first (the teacher).

    Retention is None where a score is missing or the first one's is not above 0. The macro-averages are over the tasks
    that all studies have, so that their ratio, the macro retention, compares like with like (Sanh et al. 2019 give 97 %
    for DistilBERT this way: 77.0 of 79.5).

    Args:
        folders: run.output of studies, or of single runs; the first is what the others are compared with.

    Returns:
        {"studies": labels, "tasks": {task: {"title", "measure", "medians": {label: share or None}, "retention": ...}},
        "macro": {"tasks": those of all, "medians", "retention"}}.

    Raises:
        UserError: fewer than two folders, one twice, or one without a report.
    """
    if len(folders) < 2:
        raise UserError("compare: give at least two folders, the teacher's first")
    labels = folder_labels(folders, "compare")
    reports = dict(zip(labels, map(read_report, folders), strict=True))
    titles = {task: row for report in reversed(reports.values()) for task, row in report["tasks"].items()}
    order = dict.fromkeys(task for report in reports.values() for task in report["tasks"])
    tasks = {}
    for task in order:
        medians = {label: report["tasks"].get(task, {}).get("median") for label, report in reports.items()}
        measure = titles[task]["measure"]
        tasks[task] = {"title": titles[task]["title"], "measure": measure, **_with_retention(medians)}
    shared = [task for task in tasks if None not in tasks[task]["medians"].values()]
    means = {
        label: statistics.fmean(tasks[task]["medians"][label] for task in shared) if shared else None
        for label in labels
    }
    return {"studies": labels, "tasks": tasks, "macro": {"tasks": shared, **_with_retention(means)}}


def _with_retention(medians: Mapping[str, float | None]) -> dict[str, Any]:
    first, *others = medians
    base = medians[first]
    retention: dict[str, float | None] = {}
    for label in others:
        value = medians[label]
        retention[label] = None if base is None or value is None or base <= 0 else value / base
    return {"medians": dict(medians), "retention": retention}


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """A comparison as a Markdown table: scores x 100, and the retention of every study but the first in %."""
    first, *others = found["studies"]
    header = ["task", "measure", first, *(text for label in others for text in (label, "retained"))]
    rows = [_row(row["title"], row["measure"], row, first, others) for row in found["tasks"].values()]
    macro = found["macro"]
    if len(rows) > 1:
        count = f"{len(macro['tasks'])}" + (f" of {len(rows)}" if len(macro["tasks"]) < len(rows) else "")
        rows.append(_row(f"macro-average of {count} tasks", "", macro, first, others))
    return markdown(header, rows)


def _row(title: str, measure: str, row: Mapping[str, Any], first: str, others: Sequence[str]) -> list[str]:
    cells = [title, measure, percent(row["medians"][first])]
    for label in others:
        retained = row["retention"][label]
        cells += [percent(row["medians"][label]), ABSENT if retained is None else f"{percent(retained)} %"]
    return cells


def write_comparison(path: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write the table to `path` and the numbers to the file of the same name ending in .json."""
    contents = {path: comparison_markdown(found), path.with_suffix(".json"): json.dumps(found, indent=2)}
    if len(contents) < 2:
        raise UserError(f"--output {path}: is where the table goes (FILE.md); the numbers go to FILE.json beside it")
    for place, text in contents.items():
        with writing(f"--output {place}", "choose another place"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n", encoding="utf-8")
    return list(contents)
