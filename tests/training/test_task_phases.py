"""Phases of a fine-tuning: their steps, rows and rates, the same bits after a stop at any border, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, FineTune
from distil_jax.errors import UserError
from distil_jax.export import export
from distil_jax.runs import read_metrics
from distil_jax.training import loop
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.finetune import finetune
from distil_jax.training.task_phases import Phase, phase_weights

TaskConfig = Callable[..., Config]
PHASES = {
    "finetune.hidden": 1.0,
    "finetune.alone_epochs": 1,
    "finetune.match_steps": 6,
    "finetune.match_learning_rate": 3e-3,
    "training.epochs": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 30,
    "optimizer.warmup_fraction": 0.5,
}


@pytest.fixture(scope="module")
def teacher(task_config: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a fine-tuned classifier."""
    folder = tmp_path_factory.mktemp("teacher")
    finetune(task_config("classification", folder / "run", {"training.epochs": 4}))
    export(folder / "run", folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def whole(task_config: TaskConfig, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a run of 5, 6 and 5 steps, and its last state in NumPy."""
    folder = tmp_path_factory.mktemp("phases") / "run"
    found = finetune(task_config("classification", folder, {**PHASES, "teacher.path": teacher}))
    return folder, jax.tree.map(np.asarray, found.result.state)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [row["metrics"] for row in read_metrics(folder, "train")]


def test_each_phase_has_its_own_terms_and_rates(whole: tuple[Path, Any]) -> None:
    rows = metrics(whole[0])
    assert len(rows) == 16
    alone, match, predict = rows[:5], rows[5:11], rows[11:]
    assert all("loss_kl" not in row for row in alone)
    assert all(row["loss"] == pytest.approx(row["loss_hidden"]) for row in match)
    total = [0.5 * row["loss_task"] + 0.5 * row["loss_kl"] for row in predict]
    np.testing.assert_allclose([row["loss"] for row in predict], total, rtol=1e-5)
    assert [row["learning_rate"] for row in match] == pytest.approx([0, 1e-3, 2e-3, 3e-3, 2e-3, 1e-3])
    assert [rows[first]["learning_rate"] for first in (0, 5, 11)] == [0, 0, 0]
    assert match[-1]["loss_hidden"] < match[0]["loss_hidden"]


@pytest.mark.parametrize("stop", [5, pytest.param(11, marks=pytest.mark.slow)])
def test_a_run_stopped_at_a_border_ends_with_the_same_bits(
    stop: int,
    whole: tuple[Path, Any],
    teacher: str,
    task_config: TaskConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished, save = loop.StepLogger.finished, Checkpoints.save

    def save_and_wait(self: Any, *arguments: Any, **settings: Any) -> None:
        save(self, *arguments, **settings)
        self._manager.wait_until_finished()

    def stop_at(self: Any, number: int, metrics: Any) -> None:
        finished(self, number, metrics)
        if number == stop + 1:
            raise KeyboardInterrupt

    config = task_config("classification", tmp_path / "run", {**PHASES, "teacher.path": teacher})
    with monkeypatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", stop_at)
        patch.setattr(Checkpoints, "save", save_and_wait)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    again = finetune(config)
    assert again.result.resumed_from == stop
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again.result.state), whole[1])
    assert metrics(tmp_path / "run") == metrics(whole[0])


def test_labels_alone_are_learned_before_terms_on_activations_alone() -> None:
    settings = FineTune(task=0.0, kl=0.0, hidden=1.0, alone_steps=2)
    for phase in (Phase("alone", last=False), Phase("predict")):
        assert phase_weights(settings, phase).weights == {"hidden": 1.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finetune.hidden": 0.0}, "no term compares activations"),
        ({"teacher.path": ""}, "needs teacher.path"),
        ({"finetune.task": 0.0, "finetune.kl": 0.0}, "nothing is left to learn"),
    ],
)
def test_phases_with_nothing_to_learn_are_refused(
    changes: dict[str, Any], reason: str, teacher: str, task_config: TaskConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        finetune(task_config("classification", tmp_path / "run", {**PHASES, "teacher.path": teacher, **changes}))
    assert not (tmp_path / "run").exists()
