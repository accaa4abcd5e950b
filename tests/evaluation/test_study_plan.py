"""Which runs a study is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import Config, Study, load_config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evaluation.study_plan import for_task, is_study, plan_study

NINE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


def config_of(**changes: Any) -> Config:
    settings = {"run.output": "out", "model.initial": "model"}
    return with_overrides(Config(), {**settings, **{name.replace("__", "."): v for name, v in changes.items()}})


def test_all_means_the_nine_tasks_of_glue() -> None:
    assert [plan.spec.name for plan in plan_study(config_of(task__name="all"))] == NINE
    assert [plan.spec.name for plan in plan_study(config_of(study__tasks=["all"]))] == NINE
    assert [plan.spec.name for plan in plan_study(config_of(study__tasks=["imdb", "all", "cola"]))] == ["imdb", *NINE]


def test_task_name_comes_before_study_tasks() -> None:
    """So that `--config glue --task sst2` makes that one, below the folder of the whole table."""
    config = config_of(task__name="sst2", study__tasks=["all"])
    assert is_study(config)
    (plan,) = plan_study(config)
    assert [run.folder for run in plan.runs] == [Path("out/sst2/seed0")]
    assert [plan.spec.name for plan in plan_study(config_of(task__name="cola, mrpc,cola,"))] == ["cola", "mrpc"]


def test_a_plain_run_is_no_study() -> None:
    assert not is_study(config_of(task__name="cola"))
    for changes in ({"study__seeds": 2}, {"study__epochs": [3]}, {"study__export": True}, {"study__tasks": ["cola"]}):
        assert is_study(config_of(**changes)), changes
    assert is_study(config_of(task__name="cola,rte"))
    assert is_study(config_of(task__name="all"))


def test_every_run_has_its_seed_and_its_point_of_the_sweep() -> None:
    config = config_of(
        task__name="rte", run__seed=7, study__seeds=2, study__learning_rates=[2e-5, 5e-5], study__epochs=[3, 4, 3]
    )
    (plan,) = plan_study(config)
    assert plan.points == ((2e-5, 3), (2e-5, 4), (5e-5, 3), (5e-5, 4))
    assert plan.seeds == (7, 8)
    assert len({run.folder for run in plan.runs}) == len(plan.runs) == 8
    assert plan.runs[-1].folder == Path("out/rte/lr5e-05_epochs4/seed8")
    for run in plan.runs:
        found = run.config
        assert (found.optimizer.learning_rate, found.training.epochs, found.run.seed) == (*run.point, run.seed)
        assert found.run.output == str(run.folder)
        assert found.study == Study()  # a run knows nothing of the study, so that it can be continued alone
    assert [run.seed for run in plan.runs] == [7] * 4 + [8] * 4


def test_learning_rates_that_look_alike_get_folders_of_their_own() -> None:
    (plan,) = plan_study(config_of(task__name="rte", study__learning_rates=[5e-5, 5.0000001e-5]))
    assert len({run.folder for run in plan.runs}) == 2


def test_placeholder_is_the_name_of_the_task() -> None:
    config = config_of(
        study__tasks=["cola", "rte"],
        teacher__path="teachers/{task}/model",
        task__source="data/{task}",
        model__initial="{task}-{task}",
    )
    found = [plan.runs[0].config for plan in plan_study(config)]
    assert [c.teacher.path for c in found] == ["teachers/cola/model", "teachers/rte/model"]
    assert [c.task.source for c in found] == ["data/cola", "data/rte"]
    assert [c.model.initial for c in found] == ["cola-cola", "rte-rte"]
    assert [c.task.name for c in found] == ["cola", "rte"]
    assert for_task(config, "ax").task.source == "data/ax"


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"task\.name"):
        plan_study(config_of())
    with pytest.raises(UserError, match="did you mean 'sst2'"):
        plan_study(config_of(task__name="cola,sst-2"))
    with pytest.raises(UserError, match=r"study\.epochs.*training\.steps = 5"):
        plan_study(config_of(task__name="cola", study__epochs=[3], training__steps=5))
    with pytest.raises(UserError, match=r"run\.seed"):
        plan_study(config_of(task__name="cola", study__seeds=2, run__seed=2**31 - 1))


def test_the_shipped_table() -> None:
    config = load_config("glue")
    plans = plan_study(config)
    assert [plan.spec.name for plan in plans] == NINE
    assert plans[0].folder == Path("runs/glue/cola")
    run = plans[0].runs[0].config
    assert (run.training.epochs, run.optimizer.learning_rate, run.training.batch_size) == (3, 5e-5, 32)
    assert run.optimizer.beta2 == 0.999  # inherited from finetune.toml


def test_planning_imports_no_jax() -> None:
    """It happens before the process is set up for its devices."""
    code = "import sys, distil_jax.evaluation.study_plan; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
