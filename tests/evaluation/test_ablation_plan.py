"""The students of a study: one thing changed each, each once, cheapest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import Config, load_config
from distil_jax.errors import UserError
from distil_jax.evaluation.ablation_plan import plan_students, task_config, task_names

ROW = 100.0  # tokens


def study(changes: dict[str, Any]) -> Config:
    return load_config("study_minilm_l3", {"run.output": "runs/study", "training.batch_size": 32, **changes})


def test_the_shipped_study_has_a_base_and_one_change_each() -> None:
    students = plan_students(study({}), ROW)
    assert students[0].name == "base"
    names = [student.name for student in students]
    assert len(names) == len(set(names)) == 1 + 8 + 2 + 4 + 2  # layers 0, 2, 5 and 4 M tokens are the base
    assert [student.tokens for student in students[1:]] == sorted(student.tokens for student in students[1:])
    by_name = {student.name: student for student in students}
    assert by_name["base"].config.training.steps == round(4e6 / 3200)
    assert by_name["16 M tokens"].config.training.steps == 5000
    assert by_name["layers 1, 3, 5"].config.student.layers == (1, 3, 5)
    hidden = by_name["hidden"].config.objective
    assert hidden.weights == {"hidden": 1.0}
    assert by_name["seed 2"].config.run.seed == 2
    assert by_name["without KL"].folder == Path("runs/study/students/without_kl")


def test_a_name_stands_for_one_student() -> None:
    given = {"study.objectives": ["a b: objective.kl=0", "a_b: objective.mlm=0"]}
    with pytest.raises(UserError, match="a_b"):
        plan_students(study(given), ROW)


def test_a_wrong_setting_names_its_student() -> None:
    with pytest.raises(UserError, match="bad.*objective.kl"):
        plan_students(study({"study.objectives": ["bad: objective.kl=-1"]}), ROW)


def test_tasks_are_fine_tuned_as_their_configuration_says() -> None:
    config = study({"task.source": "data/tasks", "run.seed": 3, "study.seeds": 5})
    assert "stsb_embedding" not in task_names(config)
    tasks = task_config(config, "models/student", Path("out"))
    assert (tasks.optimizer.learning_rate, tasks.training.epochs) == (1e-4, 2)
    assert (tasks.task.source, tasks.model.initial, tasks.run.seed) == ("data/tasks", "models/student", 3)
    assert (tasks.study.tasks, tasks.study.seeds) == (task_names(config), 5)
