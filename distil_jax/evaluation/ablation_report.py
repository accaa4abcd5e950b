"""The report of a study of students: its numbers as JSON, and a page with tables and figures.

Retention is the mean over tasks of student / teacher, each a median over seeds, without WNLI, whose classes nothing
learns. A difference counts as found where the ranges over seeds do not overlap.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.evaluation.ablation_plan import BASE
from distil_jax.evaluation.html import Dot, dots, escape, lines, page, table
from distil_jax.evaluation.study_report import ABSENT, duration, percent
from distil_jax.runs import write_atomically

NUMBERS, REPORT_FILE = "ablation.json", "report.html"
_LEFT_OUT = "wnli"
Row = Mapping[str, Any]  # of one student, as `ablation` makes it
# Change in the mean GLUE score of DistilBERT where one part is left out (Sanh et al. 2019, table 4), in points.
PAPER = {
    ("objective.kl", "0"): -2.96,
    ("objective.cosine", "0"): -1.46,
    ("objective.mlm", "0"): -0.31,
    ("student.init", "random"): -3.69,
}


def write_ablation(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ablation.json and report.html, each whole or not at all."""
    write_atomically(folder / NUMBERS, json.dumps(report, indent=2) + "\n")
    write_atomically(folder / REPORT_FILE, ablation_page(report))


def retention(row: Row, teacher: Row) -> Dot | None:
    """Mean over tasks of student / teacher in percent: of medians, and its range over seeds; None without any task.

    The mean of one seed is over the tasks that have this seed; a task of one value, such as embeddings, goes into all.
    """
    return _mean(row, {task: 100 / _median(scores) for task, scores in teacher["scores"].items() if _median(scores)})


def _mean(row: Row, factors: Mapping[str, float]) -> Dot | None:
    """Mean over tasks of factor x score. `factors` name the tasks."""
    tasks = [task for task in row.get("scores", {}) if task in factors and task != _LEFT_OUT]
    if not tasks:
        return None
    seeds = sorted({seed for task in tasks for seed in row["scores"][task]})
    of_seed = [
        statistics.fmean(factors[task] * row["scores"][task].get(seed, _median(row["scores"][task])) for task in tasks)
        for seed in seeds
    ]
    middle = statistics.fmean(factors[task] * _median(row["scores"][task]) for task in tasks)
    return Dot(row["name"], middle, min(of_seed), max(of_seed), row["tokens"])


def _median(scores: Mapping[str, float]) -> float:
    return statistics.median(scores.values())


def verdict(dot: Dot, base: Dot, seeds: int) -> str:
    """What a difference from the base is worth."""
    if dot.label == base.label:
        return ""
    if seeds < 2:
        return "one seed: its spread is not known"
    if dot.low <= base.high and base.low <= dot.high:
        return "noise: within the seeds' range"
    return "above the base" if dot.value > base.value else "below the base"


def base_dot(rows: Sequence[Row], teacher: Row) -> Dot | None:
    """The base's retention, its range over seeds of fine-tuning and over those of the distillation."""
    found = [dot for row in rows if row["axis"] in ("base", "seed") and (dot := retention(row, teacher))]
    if not found or found[0].label != BASE:
        return None
    return found[0]._replace(low=min(dot.low for dot in found), high=max(dot.high for dot in found))


def ablation_page(report: Mapping[str, Any]) -> str:
    """The page, which needs nothing beside itself."""
    rows, teacher = report["students"], report["teacher_numbers"]
    done = [row for row in rows if row["state"] == "finished"]
    base = base_dot(done, teacher)
    parts = [_introduction(report), _overview(done, teacher, base, report["seeds"])]
    if done:
        parts += [_by_task(done, teacher), _by_tokens(done, teacher), _by_cost(done, teacher)]
    parts += [_paper(done, report["seeds"]), _missing(rows), _origin(report)]
    return page("What students keep of their teacher", [part for part in parts if part])


def _introduction(report: Mapping[str, Any]) -> str:
    distilled = sum(row["axis"] in ("base", "seed") and row["state"] == "finished" for row in report["students"])
    return (
        f"<p>Teacher: {escape(report['teacher'])}. Retention is the mean over tasks of student / teacher, of medians "
        f"over {report['seeds']} seeds of fine-tuning, without WNLI. Lines show the range over these seeds. Each "
        f"student is distilled once; the base was distilled with {distilled} seeds, and its range covers them all. "
        "A difference is called noise where the ranges overlap. With three seeds each, two equal students have "
        "ranges apart in one of ten comparisons.</p>"
    )


def _overview(rows: Sequence[Row], teacher: Row, base: Dot | None, seeds: int) -> str:
    found = [(row, dot) for row in rows if (dot := retention(row, teacher))]
    if not found:
        return ""
    cells = [
        [
            row["name"],
            row["axis"],
            f"{row['tokens']:g}",
            f"{dot.value:.1f}",
            f"{dot.low:.1f} to {dot.high:.1f}",
            ABSENT if base is None else f"{dot.value - base.value:+.1f}",
            ABSENT if base is None else verdict(dot, base, seeds),
        ]
        for row, dot in found
    ]
    header = ["student", "differs in", "M tokens", "retention, %", "range", "against base", "which is"]
    return "<h2>Retention</h2>" + dots([("", [dot for _, dot in found])], "retention, %") + table(header, cells)


def _by_task(rows: Sequence[Row], teacher: Row) -> str:
    shown = [row for row in rows if row["axis"] in ("base", "objective")]
    tasks = [task for task, scores in teacher["scores"].items() if _median(scores)]
    groups = [(row["name"], [dot for task in tasks if (dot := _of_task(row, teacher, task))]) for row in shown]
    cells = [
        [row["name"], *(_score_cell(row["scores"].get(task, {})) for task in tasks)]
        for row in [{"name": "teacher", **teacher}, *rows]
    ]
    return (
        "<h2>By task and objective</h2>"
        + dots(groups, "student / teacher, %")
        + "<p>Scores x 100: median, and the range over seeds.</p>"
        + table(["", *tasks], cells)
    )


def _of_task(row: Row, teacher: Row, task: str) -> Dot | None:
    scores, whole = row["scores"].get(task, {}), _median(teacher["scores"][task])
    if not scores:
        return None
    values = [100 * score / whole for score in scores.values()]
    return Dot(task, statistics.median(values), min(values), max(values))


def _score_cell(scores: Mapping[str, float]) -> str:
    if not scores:
        return ABSENT
    spread = f" ({percent(min(scores.values()))} to {percent(max(scores.values()))})" if len(scores) > 1 else ""
    return percent(_median(scores)) + spread


def _by_tokens(rows: Sequence[Row], teacher: Row) -> str:
    chosen = [row for row in rows if row["axis"] in ("base", "tokens")]
    found = [dot for row in chosen if (dot := retention(row, teacher))]
    trained = [dot for dot in found if dot.x > 0]
    if len(found) < 2 or not trained:
        return ""
    untrained = "".join(f"<p>Without distillation: {dot.value:.1f} %.</p>" for dot in found if dot.x == 0)
    curve = lines([("base", trained)], "million tokens", "retention, %", log=True)
    return "<h2>Retention against tokens</h2>" + curve + untrained


def _by_cost(rows: Sequence[Row], teacher: Row) -> str:
    full = retention({"name": "teacher", "tokens": 0, **teacher}, teacher)
    models = [(full, teacher), *((retention(row, teacher), row) for row in rows)]
    best: dict[int, Dot] = {}  # by size: students of one size have one latency, up to what measuring it varies
    for dot, row in models:
        if dot and (row["parameters"] not in best or dot.value > best[row["parameters"]].value):
            best[row["parameters"]] = dot._replace(x=row["milliseconds"])
    groups = [("model", [*best.values()])]
    cells = [
        [dot.label, f"{row['parameters'] / 1e6:.1f}", f"{row['milliseconds']:.2f}", f"{dot.value:.1f}"]
        for dot, row in models
        if dot
    ]
    return (
        "<h2>Size and latency</h2><p>Of each size the best student is drawn.</p>"
        + lines(groups, "milliseconds a sentence of 64 tokens", "retention, %", joined=False)
        + table(["model", "M parameters of the encoder", "ms a sentence", "retention, %"], cells)
    )


def _paper(rows: Sequence[Row], seeds: int) -> str:
    """Changes of the mean score beside those of DistilBERT's ablation."""
    base = next((row for row in rows if row["axis"] == "base"), None)
    if base is None:
        return ""
    factors = dict.fromkeys(base["scores"], 100.0)
    same = [dot for row in rows if row["axis"] in ("base", "seed") and (dot := _mean(row, factors))]
    cells = []
    for row in rows:
        known = [PAPER.get((name, value.removesuffix(".0"))) for name, value in row["changes"].items()]
        dot = _mean(row, factors)
        if len(known) == 1 and known[0] is not None and dot and same:
            whole = same[0]._replace(low=min(one.low for one in same), high=max(one.high for one in same))
            cells.append(
                [row["name"], f"{dot.value - whole.value:+.2f}", f"{known[0]:+.2f}", verdict(dot, whole, seeds)]
            )
    if not cells:
        return ""
    return (
        "<h2>Beside DistilBERT's ablation</h2><p>Change of the mean score in points when one part is left out. The "
        "paper's are of BERT base on GLUE (Sanh et al. 2019, table 4), so that sizes differ; the order is what can "
        "be compared.</p>" + table(["left out", "here", "paper", "which is"], cells)
    )


def _missing(rows: Sequence[Row]) -> str:
    items = []
    for row in rows:
        if row["state"] == "failed":
            items.append(f"{row['name']}: failed: {row['reason']}")
        if row["state"] == "not afforded":
            items.append(f"{row['name']} ({row['tokens']:g} M tokens): not afforded, about {duration(row['estimate'])}")
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h2>Not made</h2><ul>{listed}</ul>" if items else ""


def _origin(report: Mapping[str, Any]) -> str:
    seconds = sum(row.get("seconds", 0.0) for row in report["students"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = {
        "command": report["command"],
        "machine": report["machine"],
        "versions": versions,
        "time": duration(seconds),
    }
    return table(["made by", ""], [[name, text] for name, text in facts.items() if text])
