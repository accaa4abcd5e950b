"""The students that a study compares: a base and what differs from it in one thing each, cheapest first."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distil_jax.config import Config, Study, load_config, require, run_identity, settings_in, with_overrides
from distil_jax.data.corpus import Corpus
from distil_jax.errors import UserError
from distil_jax.tasks import task_spec

BASE = "base"
EMBEDDING_TASK = "stsb_embedding"  # STS-B by the cosine of mean-pooled vectors, without training
_LENGTH = "training.steps"


@dataclasses.dataclass(frozen=True)
class Student:
    """One student of a study.

    Attributes:
        name: what figures call it.
        axis: what it differs in: "base", "seed", "objective", "start" or "tokens".
        changes: its settings by "section.key" against the base.
        tokens: millions that it learns from; 0: it stays as it starts.
        config: of its distillation.
    """

    name: str
    axis: str
    changes: Mapping[str, Any]
    tokens: float
    config: Config

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return Path(self.config.run.output).parent


def plan_students(config: Config, tokens_a_row: float) -> list[Student]:
    """All students of a study, the base first, then by the tokens they learn from; each once.

    Args:
        config: with run.output and [study].
        tokens_a_row: real tokens of a row of the corpus.

    Raises:
        UserError: a setting that there is not, or two students of one name.
    """
    study = config.study
    asked: list[tuple[str, str, dict[str, Any], float]] = [(BASE, "base", {}, study.base_tokens)]
    for axis, texts in (("objective", study.objectives), ("start", study.starts)):
        for text in texts:
            name, _, settings = text.partition(":")
            asked.append((name.strip(), axis, settings_in(settings.strip()), study.base_tokens))
    asked += [(f"{tokens:g} M tokens", "tokens", {}, tokens) for tokens in study.tokens]
    seeds = range(config.run.seed + 1, config.run.seed + study.distillations)
    asked += [(f"seed {seed}", "seed", {"run.seed": seed}, study.base_tokens) for seed in seeds]
    found: dict[str, Student] = {}
    names: set[str] = set()
    for name, axis, changes, tokens in asked:
        student = _student(config, name, axis, changes, tokens, tokens_a_row)
        key = repr((run_identity(student.config), tokens > 0))
        if key in found:
            continue
        if (slug := student.folder.name) in names:
            raise UserError(f"study: two students are called {name!r} ({slug}); give each a name of its own")
        names.add(slug)
        found[key] = student
    return sorted(found.values(), key=lambda student: (student.axis != "base", student.tokens))


def _student(
    config: Config, name: str, axis: str, changes: Mapping[str, Any], tokens: float, tokens_a_row: float
) -> Student:
    slug = re.sub(r"[^\w.-]+", "_", name.strip()).strip("_").lower()
    steps = max(1, round(tokens * 1e6 / (config.training.batch_size * tokens_a_row)))
    settings = {
        "run.output": str(Path(config.run.output) / "students" / slug / "run"),
        _LENGTH: steps,
        **changes,
    }
    try:
        made = with_overrides(dataclasses.replace(config, study=Study()), settings)
    except UserError as error:
        raise UserError(f"study: the student {name!r}: {error}") from None
    return Student(name, axis, dict(changes), tokens, made)


def tokens_a_row(corpus: Corpus) -> float:
    """Real tokens of a row on average."""
    return corpus.num_tokens / corpus.num_rows


def task_names(config: Config) -> tuple[str, ...]:
    """The tasks that students are fine-tuned on; `EMBEDDING_TASK` needs no training.

    Raises:
        UserError: there are none, or one is not known.
    """
    require(config, "run.output", "corpus.folder", "teacher.path", "study.tasks")
    names = tuple(name for name in config.study.tasks if name != EMBEDDING_TASK)
    for name in names:
        task_spec(name)
    return names


def task_config(config: Config, model: str, output: Path) -> Config:
    """The configuration of fine-tuning `model` on the study's tasks, as `study.finetune` has it.

    Data are in task.source where the study names one.
    """
    base = load_config(config.study.finetune)
    study = Study(tasks=task_names(config), seeds=config.study.seeds)
    chosen = dataclasses.replace(base, study=study, parallel=config.parallel, logging=config.logging)
    places = {"model.initial": model, "run.output": str(output), "run.seed": config.run.seed, "task.name": ""}
    source = {"task.source": config.task.source} if config.task.source else {}
    return with_overrides(chosen, {**places, **source})
