"""The runs of a study: tasks x learning rates x epochs x seeds, each an ordinary fine-tuning."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from pathlib import Path

from distil_jax.config import Config, Study, with_overrides
from distil_jax.errors import UserError
from distil_jax.tasks import TaskSpec, glue_tasks, task_spec

ALL = "all"
PLACEHOLDER = "{task}"
_FILLED = (
    *("model.initial", "teacher.path", "task.source", "task.train", "task.validation", "task.test"),
    *("task.unlabelled", "augment.model"),
)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run: its point of the sweep, its seed, and its whole configuration, whose run.output is `folder`."""

    learning_rate: float
    epochs: int
    seed: int
    folder: Path
    config: Config

    @property
    def point(self) -> tuple[float, int]:
        """Its point of the sweep."""
        return self.learning_rate, self.epochs


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """All runs of one task. Those of one seed are adjacent, so that data which depend on it are read once."""

    spec: TaskSpec
    folder: Path
    points: tuple[tuple[float, int], ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]


def is_study(config: Config) -> bool:
    """Whether the settings ask for more than one plain run in run.output itself."""
    return len(_task_names(config)) > 1 or config.study != Study()


def for_task(config: Config, task: str) -> Config:
    """The configuration of a plain run of `task`: "{task}" stands for its name in models and data."""
    filled: dict[str, object] = {}
    for name in _FILLED:
        section, _, key = name.partition(".")
        filled[name] = getattr(getattr(config, section), key).replace(PLACEHOLDER, task)
    filled["finetune.teachers"] = tuple(path.replace(PLACEHOLDER, task) for path in config.finetune.teachers)
    return dataclasses.replace(with_overrides(config, {**filled, "task.name": task}), study=Study())


def plan_study(config: Config) -> list[TaskPlan]:
    """The runs of every task, in order; nothing is read or written.

    Below run.output they are in <task>/seed<n>, with a sweep in <task>/lr<learning rate>_epochs<n>/seed<n>.

    Raises:
        UserError: no or unknown tasks, settings that do not go together.
    """
    names = _task_names(config)
    if not names:
        raise UserError("task.name is not set; set it in the configuration or with --task (--task all: GLUE)")
    if config.study.epochs and config.training.steps:
        raise UserError(
            f"study.epochs has no effect next to training.steps = {config.training.steps}; set training.steps to 0"
        )
    return [plan_task(config, name) for name in names]


def _task_names(config: Config) -> list[str]:
    """The tasks asked for, each once; task.name ("sst2", "cola,mrpc", "all") comes before study.tasks."""
    given = [name.strip() for name in config.task.name.split(",") if name.strip()] or config.study.tasks
    names = itertools.chain.from_iterable(glue_tasks() if name == ALL else [name] for name in given)
    return list(dict.fromkeys(names))


def plan_task(config: Config, task: str, further: Collection[int] = ()) -> TaskPlan:
    """The runs of one task, of the study's seeds and of `further` ones, all in the order of seeds."""
    spec, study, base = task_spec(task), config.study, for_task(config, task)
    folder = Path(config.run.output) / task
    rates = dict.fromkeys(study.learning_rates or (config.optimizer.learning_rate,))
    epochs = dict.fromkeys(study.epochs or (config.training.epochs,))
    points = tuple(itertools.product(rates, epochs))
    seeds = tuple(sorted({*range(config.run.seed, config.run.seed + study.seeds), *further}))
    sweep = bool(study.learning_rates or study.epochs)
    runs = []
    for seed, (rate, number) in itertools.product(seeds, points):
        place = (folder / f"lr{rate!r}_epochs{number}" if sweep else folder) / f"seed{seed}"
        changes = {
            "run.output": str(place),
            "run.seed": seed,
            "optimizer.learning_rate": rate,
            "training.epochs": number,
        }
        runs.append(PlannedRun(rate, number, seed, place, with_overrides(base, changes)))
    return TaskPlan(spec, folder, points, seeds, tuple(runs))
