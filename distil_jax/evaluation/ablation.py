"""A study of students, from a teacher to a report, student by student; what is finished is not made again.

Each student is distilled, fine-tuned on every task with several seeds, and measured. Its numbers are written when all
of it is done; what a kill interrupts continues from its last checkpoint.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.config import Config, config_to_toml, differences, load_config, require, run_identity, with_overrides
from distil_jax.data.corpus import open_corpus, prepare_splits
from distil_jax.errors import UserError
from distil_jax.evaluation.ablation_plan import (
    EMBEDDING_TASK,
    Student,
    plan_students,
    task_config,
    task_names,
    tokens_a_row,
)
from distil_jax.evaluation.ablation_report import REPORT_FILE, write_ablation
from distil_jax.evaluation.similarity import similarity_score
from distil_jax.evaluation.study import machine, run_study
from distil_jax.evaluation.study_report import REPORT_FILE as TASKS_FILE
from distil_jax.evaluation.study_report import read_json
from distil_jax.export import encoder_latency, export
from distil_jax.hf import load_tokenizer, read_pretrained, save_pretrained
from distil_jax.objectives import uses_vocabulary
from distil_jax.runs import (
    CONFIG_FILE,
    STUDY_FILE,
    json_sha256,
    lock_folder,
    read_config,
    record_start,
    versions,
    write_atomically,
)
from distil_jax.tasks import load_task
from distil_jax.training.distill import distill, initial_student
from distil_jax.training.pretrain import pretrain

STAGE = "ablation"
NUMBERS_FILE = "numbers.json"  # of a finished student
IDENTITY_FILE = "settings.json"  # of a student that was begun
MODEL = "model"
Say = Callable[[str], None]
Numbers = dict[str, Any]


def run_ablation(config: Config, *, command: str = "", say: Say = lambda _: None) -> dict[str, Any]:
    """Make the students that `plan_students` lists and report on them in run.output; the report.

    A student that fails is noted with its reason, and the others follow. After `study.hours` of work, counted over all
    starts, the rest is noted as not afforded.

    Args:
        config: of the base's distillation, with [study].
        command: what the user typed, for the report.
        say: takes a line of progress.

    Raises:
        UserError: the settings are no study, the teacher lacks what an objective reads, or run.output is in use or
            holds students of other settings.
    """
    tasks = task_names(config)
    if jax.process_count() > 1:
        raise UserError("study: several processes; start it with one, which may have several devices")
    folder = Path(config.run.output)
    if any((folder / name).exists() for name in (CONFIG_FILE, TASKS_FILE)):
        raise UserError(f"run.output = {folder}: holds a run, or a study of tasks; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        write_atomically(folder / STUDY_FILE, config_to_toml(config))
        record_start(folder, config, {}, STAGE, command=command)
        _prepare(config, say)
        students = plan_students(config, tokens_a_row(open_corpus(Path(config.corpus.folder) / "train")))
        for student in students:
            _refuse_other(student)
        mlm_teacher = _mlm_teacher(config, students, say)
        report: dict[str, Any] = {
            "command": command,
            "machine": machine(),
            "versions": versions(),
            "teacher": config.teacher.path,
            "seeds": config.study.seeds,
            "hours": config.study.hours,
        }
        say(f"teacher: {config.teacher.path} on {', '.join((*tasks, *_embedding(config)))}")
        report["teacher_numbers"] = _teacher_numbers(config, say)
        rows: list[Numbers] = []
        for number, student in enumerate(students, 1):
            rows.append(_row(config, student, mlm_teacher, rows, f"student {number} of {len(students)}", say))
            write_ablation(folder, {**report, "students": rows})
    say(f"{folder / REPORT_FILE}")
    return {**report, "students": rows}


def _prepare(config: Config, say: Say) -> None:
    if not (Path(config.corpus.folder) / "train").is_dir():
        require(config, "corpus.train")
        say(f"corpus: {config.corpus.folder}")
        prepare_splits(config.corpus, load_tokenizer(config.corpus.tokenizer or config.teacher.path))


def _identity(student: Student) -> dict[str, Any]:
    return {**run_identity(student.config), "tokens": student.tokens}


def _refuse_other(student: Student) -> None:
    """Raises UserError where the student's folder holds one of other settings, whose model would be taken for it."""
    path = student.folder / IDENTITY_FILE
    before = read_json(path) if path.is_file() else {}
    now = _identity(student)
    # Settings that are newer than the folder were not there to differ.
    if changed := differences(before, {name: now[name] for name in before if name in now}):
        raise UserError(
            f"{student.folder}: holds a student of other settings ({'; '.join(changed)}); delete it, give the student "
            "another name, or choose another run.output"
        )


def _mlm_teacher(config: Config, students: Sequence[Student], say: Say) -> str:
    """The teacher of objectives over the vocabulary: the teacher itself, or with a head that is trained here."""
    own = config.teacher.path
    if not any(uses_vocabulary(student.config.objective) for student in students):
        return own
    if "mlm_head" in read_pretrained(own).params:
        return own
    if not config.study.pretrain:
        raise UserError(
            f"teacher.path = {own}: has no masked-language-model head, which an objective reads; name the "
            "configuration of a pre-training that gives it one in study.pretrain"
        )
    folder = Path(config.run.output) / "mlm_teacher"
    places = {"run.output": str(folder / "run"), "model.initial": own, "corpus.folder": config.corpus.folder}
    settings = load_config(config.study.pretrain, places)
    if (folder / MODEL).is_dir():
        if changed := differences(run_identity(read_config(folder / "run")), run_identity(settings)):
            raise UserError(
                f"{folder}: holds a teacher of other settings ({'; '.join(changed)}); delete it, or choose another "
                "run.output"
            )
    else:
        say(f"teacher: a masked-language-model head, as {config.study.pretrain} has it")
        pretrain(settings)
        export(folder / "run", folder / MODEL)
    return str(folder / MODEL)


def _teacher_numbers(config: Config, say: Say) -> Numbers:
    """Those of the teacher, measured once."""
    path = Path(config.run.output) / "teacher.json"
    kept = read_json(path) if path.is_file() else {}
    origin = json_sha256([config.teacher.path, run_identity(task_config(config, "", Path()))])
    if kept.get("origin") == origin and _has_all(config, kept):
        return kept
    numbers = _measured(config, config.teacher.path, Path(config.run.output) / "teacher", say)
    numbers["origin"] = origin
    write_atomically(path, json.dumps(numbers, indent=2) + "\n")
    return numbers


def _row(
    config: Config, student: Student, mlm_teacher: str, before: Sequence[Numbers], where: str, say: Say
) -> Numbers:
    """The numbers of a student, with how it came to them: "finished", "failed" or "not afforded"."""
    taught = mlm_teacher if uses_vocabulary(student.config.objective) else config.teacher.path
    made = with_overrides(student.config, {"teacher.path": taught} if "teacher.path" not in student.changes else {})
    origin = json_sha256([run_identity(made), student.tokens, run_identity(task_config(config, "", Path()))])
    row: Numbers = {
        "name": student.name,
        "axis": student.axis,
        "changes": {name: str(value) for name, value in student.changes.items()},
        "tokens": student.tokens,
        "origin": origin,
    }
    path = student.folder / NUMBERS_FILE
    kept = read_json(path) if path.is_file() else {}
    if kept.get("origin") == origin and _has_all(config, kept):
        return {**row, **kept, "name": student.name, "axis": student.axis}
    estimate, spent = _estimate(student, before), sum(one.get("seconds", 0.0) for one in before)
    if config.study.hours and spent + estimate > 3600 * config.study.hours:
        say(f"{where}: {student.name}: not afforded, about {(spent + estimate) / 3600:.1f} hours in all")
        return {**row, "state": "not afforded", "estimate": estimate}
    say(f"{where}: {student.name}")
    started = time.monotonic()
    student.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(student.folder / IDENTITY_FILE, json.dumps(_identity(student), indent=2) + "\n")
    try:
        model = _distilled(made, student)
        distilled = time.monotonic() - started
        numbers = _measured(config, str(model), student.folder / "tasks", say)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        say(f"{where}: {student.name}: failed: {reason}")
        seconds = time.monotonic() - started  # which count for study.hours, too
        return {**row, "state": "failed", "reason": " ".join(reason.split())[:500], "seconds": seconds}
    seconds = time.monotonic() - started + kept.get("seconds", 0.0)
    row |= {**numbers, "state": "finished", "seconds": seconds, "distillation_seconds": distilled}
    write_atomically(path, json.dumps(row, indent=2) + "\n")
    return row


def _has_all(config: Config, kept: Mapping[str, Any]) -> bool:
    """Whether a finished student has scores of every task and seed that is asked for."""
    seeds = {str(config.run.seed + number) for number in range(config.study.seeds)}
    scores = kept.get("scores", {})
    return all(seeds <= {*scores.get(task, ())} for task in task_names(config)) and {*_embedding(config)} <= {*scores}


def _estimate(student: Student, before: Sequence[Numbers]) -> float:
    """Seconds that a student takes, by those before it: distillation by its tokens, tasks as they took; 0: unknown."""
    known = [one for one in before if one.get("state") == "finished" and one.get("tokens")]
    if not known:
        return 0.0
    a_million = statistics.median(one["distillation_seconds"] / one["tokens"] for one in known)
    tasks = statistics.median(one["seconds"] - one["distillation_seconds"] for one in known)
    return a_million * student.tokens + tasks


def _distilled(config: Config, student: Student) -> Path:
    """The student as a model folder; one of 0 tokens is as it starts."""
    model = student.folder / MODEL
    if student.tokens and not model.is_dir():
        distill(config)
        export(Path(config.run.output), model)
    elif not model.is_dir():
        save_pretrained(model, *initial_student(config), tokenizer=load_tokenizer(config.teacher.path))
    return model


def _measured(config: Config, model: str, output: Path, say: Say) -> Numbers:
    """Scores by task and seed, number of parameters, and milliseconds of a sentence.

    Raises:
        UserError: a run of a task failed.
    """
    scores: dict[str, dict[str, float]] = {}
    if task_names(config):
        found = run_study(task_config(config, model, output), say=say)
        if found.failures:
            raise UserError(found.failures[0])
        scores = {task: dict(row["scores"]) for task, row in found.report["tasks"].items()}
    for task in _embedding(config):
        scores[task] = {str(config.run.seed): embedding_score(config, model)}
    encoder, params, *_ = read_pretrained(model, "none")
    body = {"encoder": {name: part for name, part in params["encoder"].items() if name != "pooler"}}
    return {
        "scores": scores,
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(body)),
        "milliseconds": encoder_latency(encoder, params),
    }


def _embedding(config: Config) -> tuple[str, ...]:
    return (EMBEDDING_TASK,) * (EMBEDDING_TASK in config.study.tasks)


def embedding_score(config: Config, model: str) -> float:
    """Spearman's correlation of STS-B's scores with the cosines of mean-pooled vectors, on its validation set."""
    settings = task_config(config, model, Path())
    data = load_task(with_overrides(settings, {"task.name": "stsb"}).task, config.run.seed)
    examples: Any = next(iter(data.validation.values()))
    first, second, scores = zip(*((one.text, one.pair, one.label) for one in examples), strict=True)
    return similarity_score(model, first, second, scores)
