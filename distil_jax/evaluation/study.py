"""A study: every run of a plan, one after the other, with a report that is rewritten after each task.

A failed run does not end it. Run again, it makes the missing runs and keeps the finished ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from distil_jax.config import Config, config_to_toml
from distil_jax.errors import UserError, writing
from distil_jax.evaluation.server_files import FOLDER, wants_server_files, write_server_files
from distil_jax.evaluation.study_inputs import TaskInputs
from distil_jax.evaluation.study_plan import PlannedRun, TaskPlan, for_task, plan_study, plan_task
from distil_jax.evaluation.study_report import (
    REPORT_FILE,
    RunResult,
    StudyReport,
    TaskRow,
    best_run,
    failure_lines,
    macro_average,
    read_json,
    read_report,
    read_result,
    report_markdown,
    task_row,
    write_report,
)
from distil_jax.export import export
from distil_jax.runs import (
    CONFIG_FILE,
    STUDY_FILE,
    check_run_folder,
    first_process_in,
    lock_folder,
    processor_name,
    read_starts,
    record_start,
    versions,
    write_atomically,
)
from distil_jax.tasks import TaskData, load_task, task_spec
from distil_jax.training.finetune import RESULT_FILE, finetune, wants_tests

MODEL = "model"
WRITTEN_FILE = "written.json"
DIAGNOSTIC = "ax"
CHECKPOINTS = "checkpoints"
_RESUME = "distil-jax resume "
_UNWRITTEN = (
    "several processes write neither models (study.export) nor files for the GLUE server; the same command in one "
    "process does"
)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class StudyOutcome:
    """A finished study: its report, the same as Markdown, and a line for each failure."""

    report: StudyReport
    text: str
    failures: tuple[str, ...]
    is_main: bool
    user_error: bool = False  # no run succeeded, and every failure is the user's mistake


def run_study(config: Config, *, command: str = "", say: Say = lambda _: None) -> StudyOutcome:
    """Make all runs that `plan_study` lists and report on them in run.output.

    A run that fails is noted with its reason, and the others follow. With several processes, which could wait for each
    other, it ends the study.

    Args:
        config: with run.output, model.initial and the section [study].
        command: what the user typed, for the report.
        say: takes a line of progress.

    Raises:
        UserError: the settings are no plan, or run.output is another run's folder, or in use.
    """
    plans, folder = plan_study(config), Path(config.run.output)
    report = _open_report(folder)
    with first_process_in(partial(_own, folder, config, command)):
        return _run_plans(config, plans, report, command, say)


@contextlib.contextmanager
def _own(folder: Path, config: Config, command: str) -> Iterator[None]:
    """Lock `folder` and record this study in it for `distil-jax resume`."""
    with lock_folder(folder):
        write_atomically(folder / STUDY_FILE, config_to_toml(config))
        record_start(folder, config, {}, "study", command=command)
        yield


def _run_plans(config: Config, plans: list[TaskPlan], report: StudyReport, command: str, say: Say) -> StudyOutcome:
    main, folder = jax.process_index() == 0, Path(config.run.output)
    command = _reproducing(folder, command)
    made: dict[str, TaskRow] = {}
    errors: list[Exception] = []
    wanted = config.study.export or any(plan.spec.server_file for plan in plans)
    text, notes = "", {"note": _UNWRITTEN} if wanted and jax.process_count() > 1 else {}
    if main and notes:
        say(f"note: {notes['note']}")
    for number, asked in enumerate(plans, 1):
        plan = _with_finished(config, asked)
        say(f"{plan.spec.title} ({number} of {len(plans)} tasks): {len(plan.runs)} runs")
        row, trained = _run_task(config, plan, errors, say)
        if not main:
            continue
        before = {} if trained else report["tasks"].get(plan.spec.name, {})
        origin = {name: before.get(name, now) for name, now in _origin(config, command).items()}
        made[plan.spec.name] = {**row, **origin, **notes}
        # Tasks of earlier commands stay in the report; those of this one come in its order.
        rows = {**{name: row for name, row in report["tasks"].items() if name not in made}, **made}
        report = {"format": 1, "tasks": rows, "macro": macro_average(rows)}
        text = write_report(folder, report)
    nothing = not any("best_run" in row for row in made.values())
    user_error = nothing and bool(errors) and all(isinstance(error, UserError) for error in errors)
    return StudyOutcome(report, text, tuple(failure_lines(made)), main, user_error)


def _with_finished(config: Config, plan: TaskPlan) -> TaskPlan:
    """The plan with the runs of other seeds that earlier commands finished, so that fewer seeds lose none."""
    places = {run.folder.parent for run in plan.runs}
    names = {found.parent.name.removeprefix("seed") for place in places for found in place.glob(f"seed*/{RESULT_FILE}")}
    more = plan_task(config, plan.spec.name, {int(name) for name in names if name.isdecimal()})
    runs = tuple(run for run in more.runs if run.seed in plan.seeds or _is_finished(run))
    kept = tuple(seed for seed in more.seeds if any(run.seed == seed for run in runs))
    return dataclasses.replace(more, runs=runs, seeds=kept)


def _is_finished(run: PlannedRun) -> bool:
    """Whether its folder holds a result of this configuration, damaged or not."""
    with contextlib.suppress(UserError):
        check_run_folder(run.folder, run.config, {})
        return (run.folder / RESULT_FILE).is_file()
    return False


def _reproducing(folder: Path, command: str) -> str:
    """The command that makes the rows again: for a resumed study, the one that last started it."""
    given = [str(start.get("command", "")) for start in read_starts(folder) if start.get("stage") == "study"]
    started = [one for one in given if one and not one.startswith(_RESUME)]
    return started[-1] if started and command.startswith(_RESUME) else command


def _origin(config: Config, command: str) -> dict[str, str]:
    """The origin of a row of the report. A row keeps it where nothing was trained again."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    models = {"model": config.model.initial, "teacher": config.teacher.path}
    return {**models, "command": command, "machine": machine(), "versions": packages}


def _open_report(folder: Path) -> StudyReport:
    """The report of earlier commands in this folder, else an empty one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output = {folder}: is a file; give a folder")
    if (folder / RESULT_FILE).is_file() or (folder / CONFIG_FILE).is_file():
        raise UserError(f"run.output = {folder}: holds a single run; choose another folder for a study")
    if (folder / REPORT_FILE).is_file():
        return _read_whole_report(folder)
    with writing(f"run.output = {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return {"tasks": {}}


def _read_whole_report(folder: Path) -> StudyReport:
    """A report with all its rows, which are written again with those of this command."""
    report = read_report(folder)
    try:
        report_markdown({**report, "macro": macro_average(report["tasks"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / REPORT_FILE}: damaged ({type(error).__name__}: {error}); delete it, the runs are still there"
        ) from None
    return report


def _run_task(config: Config, plan: TaskPlan, errors: list[Exception], say: Say) -> tuple[TaskRow, bool]:
    """Make a task's runs; the task's row of the report, and whether anything was trained.

    The exception of a failed run is added to `errors`.
    """
    results: dict[Path, RunResult] = {}
    failures: dict[Path, str] = {}
    trained = False
    inputs = TaskInputs(plan.runs[0].config, say)
    for number, run in enumerate(plan.runs, 1):
        where = f"{plan.spec.title}, run {number} of {len(plan.runs)}"
        try:
            found = finished(run, inputs)
            # A run without its checkpoint is not trained again for its test sets.
            if found is None or (wants_tests(run.folder) and (run.folder / CHECKPOINTS).is_dir()):
                say(f"{where}: {run.folder}")
                for note in finetune(run.config, inputs.data(run.seed)).notes:
                    say(f"note: {note}")
                trained = True
                found = finished(run)
            if found is not None:
                results[run.folder] = found
        except Exception as error:
            if jax.process_count() > 1:
                raise
            errors.append(error)
            failures[run.folder] = _reason(error)
            say(f"{where}: failed: {failures[run.folder]}")
    if jax.process_index():
        return {}, trained
    row = task_row(plan, results, failures)
    if "best_run" in row and jax.process_count() == 1:  # a checkpoint is read by one process
        _write_best(config, plan, row, inputs, say)
        if not failures and config.study.checkpoints == "best":
            _drop_checkpoints(plan, results)
    return row, trained


def finished(run: PlannedRun, inputs: TaskInputs | None = None) -> RunResult | None:
    """The result of a finished run; None where it has to be made or continued.

    Args:
        run: the run.
        inputs: what it would read now, compared with its record; None: not compared.

    Raises:
        UserError: its folder holds another run, or one of other data or models, or a damaged result.
    """
    check_run_folder(run.folder, run.config, {})
    if not (run.folder / RESULT_FILE).is_file():
        return None
    if inputs is not None:
        check_run_folder(run.folder, run.config, inputs.hashes(run))
    return read_result(run.folder)


def _reason(error: Exception) -> str:
    """One line, with the class of the exception unless it is a `UserError`."""
    line = " ".join(str(error).split())[:500]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _write_best(config: Config, plan: TaskPlan, row: TaskRow, inputs: TaskInputs, say: Say) -> None:
    """Write the model and the server's files of the best run unless they exist; failures are noted in `row`."""
    run = next(run for run in plan.runs if str(run.folder) == row["best_run"])
    origin = {"run": str(run.folder.relative_to(plan.folder)), "step": row["best_step"]}
    note, model = plan.folder / WRITTEN_FILE, plan.folder / MODEL
    done = _written(note, origin)
    server = plan.folder.parent / FOLDER

    def step() -> int:
        """Of the run's checkpoint. It may be gone: dropped when another run, now damaged, was the best."""
        if not (run.folder / CHECKPOINTS / str(origin["step"])).is_dir():
            say(f"{plan.spec.title}: {run.folder} is trained again, as its checkpoints were dropped")
            finetune(run.config, inputs.data(run.seed))
        return read_result(run.folder)["step"]

    def write_model() -> None:
        if config.study.export and not (done.get(MODEL) and model.is_dir()):
            name = f"{plan.folder.parent.name}-{plan.folder.name}"  # every folder is called model
            export(run.folder, model, step=step(), overwrite=True, name=name)
            done[MODEL] = True

    def write_predictions() -> None:
        if FOLDER not in done or not all((server / name).is_file() for name in done[FOLDER]):
            sets = _server_sets(config, run, inputs, say)
            files, notes = write_server_files(run.folder, step(), run.config, sets, server) if sets else ([], [])
            for line in notes:
                say(f"note: {line}")
            done.update({FOLDER: [file.name for file in files], "notes": notes})

    for name, act in ((MODEL, write_model), (FOLDER, write_predictions)):
        try:
            act()
        except Exception as error:
            row["failures"][str(plan.folder / name)] = f"{name} of {run.folder}: {_reason(error)}"
            say(f"{plan.spec.title}: {name} failed: {_reason(error)}")
    note.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    row["model_folder"] = str(model) if done.get(MODEL) else None
    row["server_files"] = [str(server / name) for name in done.get(FOLDER, ())]


def _written(note: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What was written of this checkpoint, as the file `note` says."""
    with contextlib.suppress(UserError):  # absent, or damaged
        done = read_json(note)
        if all(done.get(name) == value for name, value in origin.items()):
            return done
    return dict(origin)


def _server_sets(config: Config, run: PlannedRun, inputs: TaskInputs, say: Say) -> list[TaskData]:
    """The test sets that the GLUE server takes from this run: its own, and for MNLI the diagnostic set too."""
    if not task_spec(run.config.task.name).server_file:
        return []
    own = inputs.data(run.seed)
    if not wants_server_files(own):
        return []
    if own.spec.name != "mnli":
        return [own]
    try:
        return [own, load_task(for_task(config, DIAGNOSTIC).task, run.seed)]
    except UserError as error:
        say(f"note: {DIAGNOSTIC}: not predicted: {error}")
        return [own]


def _drop_checkpoints(plan: TaskPlan, results: Mapping[Path, RunResult]) -> None:
    """Remove all checkpoints but those of the best run at each point of the sweep, which more seeds may make best."""
    kept = {best_run(plan, point, results) for point in plan.points}
    for run in plan.runs:
        if run not in kept:
            shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)


def machine() -> str:
    """The devices in use: "8 x NVIDIA H100", "cpu (Intel Xeon, 2 cores)"."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"cpu ({processor_name()}, {os.cpu_count()} cores)"
