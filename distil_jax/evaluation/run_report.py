"""Runs and studies as one HTML page that needs nothing beside itself: models, curves, scores, errors, commands."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distil_jax.charts import curves
from distil_jax.errors import UserError, writing
from distil_jax.evaluation.ablation_report import NUMBERS as ABLATION_FILE
from distil_jax.evaluation.ablation_report import ablation_page
from distil_jax.evaluation.html import Dot, dots, legend, page, scrolled, table
from distil_jax.evaluation.report import COLUMNS, class_table, folder_labels
from distil_jax.evaluation.study_report import REPORT_FILE as TASKS_FILE
from distil_jax.evaluation.study_report import best_runs, read_json, read_report, report_table, scored
from distil_jax.runs import CONFIG_FILE, EVALUATION, OPENING_FILE, read_metrics, read_starts, write_atomically

REPORT_FILE = "report.html"
QUICKSTART_FILE = "results.json"
_RESULT_FILE = "result.json"
_POINTS = 300  # of a curve
_TIMING = {"tokens_per_second": "tokens a second"}
_TITLES = {
    "mlm_loss": "held-out loss (nats)",
    "kl": "KL to teacher (nats)",
    "agreement": "agreement with teacher",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
    "loss": "loss, weighted sum",
    "hidden": "hidden states: error to teacher's",
    "cosine": "last hidden states: cosine distance",
}
_UNSHOWN = ("predictions", "tokens", "skipped_steps")
_LOG = logging.getLogger("distil_jax")
_Curve = list[tuple[float, float]]


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page on runs, studies or a quickstart to `output`, by default report.html in the first folder.

    A study of tasks shows its scores, and the best run of each task; a study of students has a page of its own.

    Raises:
        UserError: a folder that is none of these, or is given twice; a file that cannot be written.
    """
    target = output or folders[0] / REPORT_FILE
    with writing(target, "choose another --output"):
        write_atomically(target, _page(folders))
    return target


def _page(folders: Sequence[Path]) -> str:
    if len(folders) == 1 and (folders[0] / ABLATION_FILE).is_file():
        return ablation_page(read_json(folders[0] / ABLATION_FILE))
    found = _runs(folders)
    labels, runs = [label for label, _ in found], [run for _, run in found]
    title = "distil_jax: " + ", ".join(folder.resolve().name for folder in folders)
    measured = _measured(folders[0])
    parts = [
        *(part for folder in folders for part in _study_scores(folder)),
        *_side_by_side(measured),
        *_opening(labels, runs),
        *_curves(labels, runs, measured),
        *(part for label, run in zip(labels, runs, strict=True) for part in _task(label, run)),
        *_fillings(measured),
        *_commands(labels, runs),
    ]
    return page(title, parts)


def try_report(folder: Path) -> Path | None:
    """The page on a finished run or study, in its folder; a failure to make it is logged and does not fail the run."""
    try:
        return write_report([folder])
    except Exception as error:
        _LOG.warning("%s: not written (%s: %s)", folder / REPORT_FILE, type(error).__name__, error)
        return None


def _runs(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """The runs of the folders, with their labels: those of a quickstart, and the best of each task of a study."""
    found: list[tuple[str, Path]] = []
    for label, folder in zip(folder_labels(folders, "report"), folders, strict=True):
        if (folder / CONFIG_FILE).is_file():
            found.append((label, folder))
        elif (folder / QUICKSTART_FILE).is_file():
            runs = sorted((path.parent for path in folder.glob(f"*/{CONFIG_FILE}")), key=_began)
            found += [(run.name, run) for run in runs]
        elif (folder / TASKS_FILE).is_file():
            runs = best_runs(folder)
            found += [(f"{label}, {run.relative_to(folder).as_posix()}", run) for run in runs]
        else:
            raise UserError(f"{folder}: neither a run nor a study or quickstart (no {CONFIG_FILE}); give a run.output")
    return found


def _began(run: Path) -> tuple[str, str]:
    """When a run was started first, and its name."""
    return next((str(start.get("time", "")) for start in read_starts(run)), ""), run.name


def _study_scores(folder: Path) -> list[str]:
    """Scores of a study of tasks, with their range over seeds; [] where there is none."""
    if not (folder / TASKS_FILE).is_file():
        return []
    report = read_report(folder)
    found = [Dot(row["title"], *(100 * row[name] for name in ("median", "min", "max"))) for row in scored(report)]
    figure = [dots([("", found)], "score x 100: median, and the range over seeds")] if found else []
    return [f"<h2>Scores of {escape(folder.resolve().name)}</h2>", *figure, table(*report_table(report))]


def _measured(folder: Path) -> dict[str, Any]:
    """label -> {"measures", "fill"} of a quickstart; {} where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / QUICKSTART_FILE).read_text(encoding="utf-8"))
    return {}


def _opening(labels: Sequence[str], runs: Sequence[Path]) -> list[str]:
    parts: list[str] = []
    for label, run in zip(labels, runs, strict=True):
        with contextlib.suppress(OSError):
            text = (run / OPENING_FILE).read_text(encoding="utf-8")
            rows = [[line[:12].strip(), line[12:].strip()] for line in text.splitlines()]
            parts += [f"<h3>{escape(label)}</h3>", _texts(rows)]
    return ["<h2>What was trained</h2>", *parts] if parts else []


def _texts(rows: Sequence[Sequence[str]]) -> str:
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>{''.join(f'<td class=text>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return scrolled(f"<table>{body}</table>")


def _side_by_side(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    measures = {label: row["measures"] for label, row in found.items()}
    names = [name for name in COLUMNS if any(name in row for row in measures.values())]
    rows = [
        [COLUMNS[name][0], *(COLUMNS[name][1].format(row[name]) if name in row else "" for row in measures.values())]
        for name in names
    ]
    return ["<h2>Side by side</h2>", table(["", *measures], rows)]


def _curves(labels: Sequence[str], runs: Sequence[Path], found: Mapping[str, Any]) -> list[str]:
    level = next(iter(found.values()))["measures"] if found else {}  # the teacher's, which comes first
    parts = []
    for title, kind, source in (
        ("Held-out measures", EVALUATION, "metrics"),
        ("Training", "train", "metrics"),
        ("Speed", "train", "timing"),
    ):
        drawn = {label: _series(run, kind, source) for label, run in zip(labels, runs, strict=True)}
        names = dict.fromkeys(name for series in drawn.values() for name in series)
        if source == "timing":
            names = {name: None for name in names if name in _TIMING}
        charts = []
        for name in [name for name in names if not _is_repeated(name, names)]:
            groups = [(label, series.get(name, [])) for label, series in drawn.items()]
            if any(len(group) > 1 for _, group in groups):
                shown = level.get(name) if kind == EVALUATION else None
                charts.append(curves(_title(name), groups, shown))
        if charts:
            dashed = '<p class="note">dashed: the teacher</p>' if level and kind == EVALUATION else ""
            parts += [f"<h2>{title}</h2>", legend(labels), f'<div class="charts">{"".join(charts)}</div>', dashed]
    return parts


def _is_repeated(name: str, names: Collection[str]) -> bool:
    """Whether another curve has the same form: a sum of one loss term, a mean of one measure."""
    terms, measures = [one for one in names if one.startswith("loss_")], [one for one in names if one != "score"]
    return len({"loss": terms, "score": measures}.get(name, ())) == 1


def _series(run: Path, kind: str, source: str) -> dict[str, _Curve]:
    """Measure -> its (step, value) points, at most `_POINTS`; values that are not finite are left out."""
    found: dict[str, _Curve] = {}
    for row in read_metrics(run, kind):
        for name, value in row.get(source, {}).items():
            if name not in _UNSHOWN and isinstance(value, int | float):
                found.setdefault(name, []).append((row["step"], value))
    return {name: points[:: -(-len(points) // _POINTS)] for name, points in found.items()}


def _title(name: str) -> str:
    title = _TITLES.get(name) or _TIMING.get(name) or name.replace("_", " ")
    return f"loss term {name.removeprefix('loss_')}" if name.startswith("loss_") else title


def _task(label: str, run: Path) -> list[str]:
    """Scores, classes, confusion matrix and errors of a fine-tuning."""
    try:
        result = json.loads((run / _RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    scores = [[name.replace("_", " "), f"{value:.4f}"] for name, value in result.get("measures", {}).items()]
    parts = [f"<h2>{escape(str(result.get('title', label)))}: scores of {escape(label)}</h2>", table(["", ""], scores)]
    for name, details in result.get("details", {}).items():
        parts += _details(name, details)
    return parts


def _details(name: str, details: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    header, rows = class_table(details, 3)
    if rows:
        parts += [f"<h3>Classes, {escape(name)}</h3>", table(header, rows)]
    if details.get("confusion"):
        parts += [
            f"<h3>Confusion matrix, {escape(name)}</h3>",
            _confusion([row[0] for row in rows], details["confusion"]),
        ]
    if "calibration_error" in details:
        parts.append(f"<p>Calibration error (ECE, 15 bins): {details['calibration_error']:.4f}</p>")
    if errors := details.get("errors"):
        wrong = [[one["text"], f"{one['label']}, not {one['predicted']} ({one['probability']:.2f})"] for one in errors]
        body = table(["text", "right, not predicted (probability)"], wrong)
        parts += [f"<h3>Most confident errors, {escape(name)}</h3>", body]
    return parts


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are right classes, columns predicted ones; the darker, the larger the share of its row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ["right, predicted:", *names])
    body = ""
    for name, row in zip(names, counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(f'<td style="background:rgba(59,111,182,{0.75 * n / total:.2f})">{n:,}</td>' for n in row)
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return scrolled(f"<table><tr>{head}</tr>{body}</table>")


def _fillings(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [label, ", ".join(f"{token} {share:.0%}" for token, share in row["fill"])]
        for label, row in found.items()
        if row.get("fill")
    ]
    return ["<h2>What they say at [MASK]</h2>", _texts(rows)] if rows else []


def _commands(labels: Sequence[str], runs: Sequence[Path]) -> list[str]:
    parts = ["<h2>Commands and environment</h2>"]
    for label, run in zip(labels, runs, strict=True):
        starts = read_starts(run)
        parts.append(f"<h3>{escape(label)}</h3>")
        for one in starts:
            parts.append(f'<p class="note">{escape(str(one.get("time", "")))}, {escape(_where(one))}</p>')
            parts.append(f"<pre>{escape(str(one.get('command', '')))}</pre>")
        if starts:
            versions = ", ".join(f"{name} {version}" for name, version in starts[-1].get("versions", {}).items())
            parts.append(f'<p class="note">{escape(versions)}</p>')
        with contextlib.suppress(OSError):
            config = (run / CONFIG_FILE).read_text(encoding="utf-8")
            parts.append(f"<details><summary>{CONFIG_FILE}</summary><pre>{escape(config)}</pre></details>")
    return parts


def _where(start: Mapping[str, Any]) -> str:
    devices = start.get("devices") or {}
    return f"{devices.get('count', '?')} x {devices.get('kind', '?')} on {start.get('host', '?')}"
