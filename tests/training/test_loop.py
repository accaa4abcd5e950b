"""The loop: what it writes and when, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config, with_overrides
from distil_jax.data.corpus import open_corpus
from distil_jax.data.corpus.batches import training_batches
from distil_jax.runs import METRICS_FILE, read_metrics
from distil_jax.training import loop
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.distill import distill

STEPS = 12


@pytest.fixture(scope="module")
def stopped(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, interrupted in its seventh step: after the checkpoint of step 6."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    finished, save = loop.StepLogger.finished, Checkpoints.save

    def stop(self: Any, number: int, metrics: Any) -> None:
        finished(self, number, metrics)
        if number == 7:
            raise KeyboardInterrupt

    def save_and_wait(self: Any, *arguments: Any, **settings: Any) -> None:
        save(self, *arguments, **settings)
        self._manager.wait_until_finished()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", stop)
        patch.setattr(Checkpoints, "save", save_and_wait)
        with pytest.raises(KeyboardInterrupt):
            distill(tiny_config(folder))
    return folder


def computed(folder: Path) -> list[tuple[int, str, dict[str, float]]]:
    """The rows of metrics without what a clock measured."""
    return [(row["step"], row["kind"], row["metrics"]) for row in read_metrics(folder)]


def test_rows_of_metrics(whole_run: Any) -> None:
    rows = read_metrics(whole_run.folder, "train")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    train = open_corpus(Path(whole_run.config.corpus.folder) / "train")
    batches = training_batches(train, batch_size=8, seed=0, steps=range(STEPS), part=slice(0, 8))
    names = {"loss", "loss_kl", "loss_mlm", "loss_cosine", "gradient_norm", "learning_rate", "tokens", "skipped_steps"}
    for index, (row, ids) in enumerate(zip(rows, batches, strict=True)):
        values = row["metrics"]
        assert set(values) == names
        total = 5 * values["loss_kl"] + 2 * values["loss_mlm"] + values["loss_cosine"]
        assert values["loss"] == pytest.approx(total, rel=1e-6)
        assert values["tokens"] == np.sum(ids != train.pad_id)
        assert values["gradient_norm"] > 0
        assert values["learning_rate"] == pytest.approx(5e-4 * min(index / 3, (STEPS - index) / 9))
        assert row["timing"]["tokens_per_second"] > 0
        assert row["timing"]["seconds_per_step"] > 0
    timing = rows[0]["timing"]  # compiling takes far longer than a step here
    assert timing["first_step_seconds"] > timing["compile_seconds"] > timing["seconds_per_step"]


def test_evaluations_are_rows_and_belong_to_the_outcome(whole_run: Any) -> None:
    rows = read_metrics(whole_run.folder, "validation")
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    for row in rows:
        assert row["metrics"] == pytest.approx(whole_run.outcome.evaluations[row["step"]])
        assert row["metrics"]["perplexity"] == pytest.approx(np.exp(row["metrics"]["mlm_loss"]))
    checkpoints = Checkpoints(whole_run.folder / "checkpoints", read_only=True)
    assert checkpoints.all_steps() == [2, 4, 6, 8, 10, 12]


def test_the_last_checkpoint_is_the_outcome(whole_run: Any) -> None:
    assert int(whole_run.state.step) == STEPS
    assert whole_run.outcome.resumed_from == 0
    restored = Checkpoints(whole_run.folder / "checkpoints", read_only=True).restore(STEPS, whole_run.outcome.state)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored), whole_run.state)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    whole_run: Any, stopped: Path, tiny_config: Callable[..., Config], tmp_path: Path, mapping: str
) -> None:
    """Bit for bit, and however the rest is mapped over the devices."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    assert [row["step"] for row in read_metrics(folder, "train")] == [1, 2, 3, 4, 5, 6, 7], (
        "the last one is written again"
    )
    outcome = distill(tiny_config(folder, {"parallel.mapping": mapping}))
    assert outcome.resumed_from == 6
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, outcome.state), whole_run.state)
    assert computed(folder) == computed(whole_run.folder)
    assert outcome.evaluations == whole_run.outcome.evaluations


def test_a_finished_run_computes_nothing_more(whole_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("nothing is left to be trained")

    monkeypatch.setattr(loop, "make_train_step", never)
    before = (whole_run.folder / METRICS_FILE).read_bytes()
    outcome = distill(whole_run.config)
    assert (outcome.resumed_from, outcome.step) == (STEPS, STEPS)
    assert (whole_run.folder / METRICS_FILE).read_bytes() == before
    assert outcome.evaluations == whole_run.outcome.evaluations
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, outcome.state), whole_run.state)


def test_a_named_attention_that_dropout_keeps_from_the_student_is_told(
    whole_run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole_run.folder, tmp_path / "run")
    config = with_overrides(whole_run.config, {"run.output": str(tmp_path / "run")})
    distill(config)
    assert "training.attention" not in caplog.text
    distill(with_overrides(config, {"training.attention": "splash"}))
    assert "training.attention = 'splash': the model that learns takes 'xla' in its steps" in caplog.text
