"""Fine-tuning of every kind: it learns, resumes, keeps the best, takes a teacher, refuses nonsense."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Config, load_config
from distil_jax.errors import PreemptedError, UserError
from distil_jax.export import load_predictor, open_onnx, predict, read_source
from distil_jax.export.check_rows import check_rows
from distil_jax.export.onnx_model import onnx_model
from distil_jax.hf import load_tokenizer, read_pretrained, save_pretrained
from distil_jax.models import TaskModel
from distil_jax.runs import read_metrics, read_model_file
from distil_jax.tasks import collate_inputs
from distil_jax.training import loop
from distil_jax.training.checkpoint import Checkpoints
from distil_jax.training.finetune import RESULT_FILE, finetune

TaskConfig = Callable[..., Config]
KINDS = ["classification", "regression", "multilabel", "tagging", "question", "choice"]


def losses(folder: Path) -> list[float]:
    return [row["metrics"]["loss"] for row in read_metrics(folder, "train")]


@pytest.fixture(scope="module")
def trained(task_config: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder of a finished classification run of six epochs, what it returned, and its last state in NumPy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    changes = {"training.epochs": 6, "checkpoint.keep": 10, "checkpoint.every_steps": 7}
    found = finetune(task_config("classification", folder, changes))
    return folder, found, jax.tree.map(np.asarray, found.result.state)


def test_it_learns_and_says_how_well(trained: tuple[Path, Any, Any]) -> None:
    folder, found, _ = trained
    assert losses(folder)[-1] < 0.5 * losses(folder)[0]
    assert found.measures["score"] == found.measures["accuracy"] >= 0.75
    result = json.loads((folder / RESULT_FILE).read_text())
    assert result["score"] == found.measures["score"]
    assert result["measures"] == found.measures
    assert (result["task"], result["step"], result["steps"]) == ("classification", found.result.best_step, 30)


def test_the_chosen_step_is_the_best_and_is_still_there(trained: tuple[Path, Any, Any]) -> None:
    folder, found, _ = trained
    scores = {step: measures["score"] for step, measures in found.result.evaluations.items()}
    assert sorted(scores) == [5, 10, 15, 20, 25, 30]
    assert found.result.best_step == min(step for step in scores if scores[step] == max(scores.values()))
    assert found.result.best_step in Checkpoints(folder / "checkpoints", read_only=True).all_steps()


def test_a_stopped_run_ends_with_the_same_bits(
    trained: tuple[Path, Any, Any], task_config: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found, state = trained
    finished, save = loop.StepLogger.finished, Checkpoints.save

    def save_and_wait(self: Any, *arguments: Any, **settings: Any) -> None:
        save(self, *arguments, **settings)
        self._manager.wait_until_finished()

    def stop(self: Any, number: int, metrics: Any) -> None:
        finished(self, number, metrics)
        if number == 17:
            raise KeyboardInterrupt

    changes = {"training.epochs": 6, "checkpoint.keep": 10, "checkpoint.every_steps": 7}
    config = task_config("classification", tmp_path / "run", changes)
    with monkeypatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", stop)
        patch.setattr(Checkpoints, "save", save_and_wait)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    again = finetune(config)
    assert 0 < again.result.resumed_from < 17
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again.result.state), state)
    assert losses(tmp_path / "run") == losses(folder)
    assert again.result.evaluations == found.result.evaluations


@pytest.mark.fault("SIGTERM, one process")
@pytest.mark.parametrize(
    "stop_at", [17, 15, 30], ids=["while training", "while measuring", "while measuring in the end"]
)
def test_a_preempted_run_ends_with_the_same_bits(
    stop_at: int,
    trained: tuple[Path, Any, Any],
    task_config: TaskConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, found, state = trained
    finished = loop.StepLogger.finished

    def tell(self: Any, number: int, metrics: Any) -> None:
        finished(self, number, metrics)
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.run.watch.preemption.noticed:
                time.sleep(0.01)

    changes = {"training.epochs": 6, "checkpoint.keep": 10, "checkpoint.every_steps": 7}
    config = task_config("classification", tmp_path / "run", changes)
    with monkeypatch.context() as patch:
        patch.setattr(loop.StepLogger, "finished", tell)
        with pytest.raises(PreemptedError):
            finetune(config)
    again = finetune(config)
    assert stop_at <= again.result.resumed_from <= min(stop_at + 2, 30)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, again.result.state), state)
    rows = [
        [(row["step"], row["kind"], row["metrics"]) for row in read_metrics(run)] for run in (tmp_path / "run", folder)
    ]
    assert rows[0] == rows[1]
    assert again.result.evaluations == found.result.evaluations
    assert again.result.resumed_from in Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).all_steps()


def test_a_small_task_is_measured_every_epoch_whatever_suits_long_runs(task_config: TaskConfig, tmp_path: Path) -> None:
    long = finetune(task_config("classification", tmp_path / "long", {"evaluation.every_steps": 1000}))
    assert sorted(long.result.evaluations) == [5, 10]
    given = finetune(task_config("classification", tmp_path / "given", {"evaluation.every_steps": 4}))
    assert sorted(given.result.evaluations) == [4, 8, 10]


def test_patience_ends_a_run_that_gets_no_better(task_config: TaskConfig, tmp_path: Path) -> None:
    changes = {"training.epochs": 50, "finetune.patience": 2, "optimizer.learning_rate": 1e-12}
    changes |= {"logging.every_steps": 4}
    config = task_config("classification", tmp_path / "run", changes)
    found = finetune(config)
    assert (found.result.step, found.result.best_step) == (15, 5)
    # The last step has a row of metrics, wherever the run may end.
    assert [row["step"] for row in read_metrics(tmp_path / "run", "train")] == [4, 5, 8, 10, 12, 15]
    assert finetune(config).result.resumed_from == 15, "a run that stopped early is finished"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_from_labels_and_from_a_teacher(task_config: TaskConfig, tmp_path: Path, kind: str) -> None:
    first = finetune(task_config(kind, tmp_path / "teacher", {"training.epochs": 3}))
    assert losses(tmp_path / "teacher")[-1] < losses(tmp_path / "teacher")[0]
    assert first.measures["score"] == max(row["score"] for row in first.result.evaluations.values())
    export(tmp_path / "teacher", first.result.state.params)
    changes = {"teacher.path": str(tmp_path / "teacher" / "hf"), "finetune.cosine": 0.1, "training.epochs": 1}
    finetune(task_config(kind, tmp_path / "student", changes))
    rows = [row["metrics"] for row in read_metrics(tmp_path / "student", "train")]
    assert all(row["loss_kl"] > 0 and row["loss_cosine"] > 0 for row in rows)
    total = [0.5 * row["loss_task"] + 0.5 * row["loss_kl"] + 0.1 * row["loss_cosine"] for row in rows]
    np.testing.assert_allclose([row["loss"] for row in rows], total, rtol=1e-5)


def export(run: Path, params: Any) -> None:
    """A run's last state as a model folder."""
    from distil_jax.models import EncoderConfig, TaskHead

    contents = read_model_file(run)
    head, config = TaskHead(**contents["head"]), EncoderConfig(**contents["model"])
    values = jax.tree.map(np.asarray, params)
    save_pretrained(run / "hf", config, values, head=head, tokenizer=load_tokenizer(run / "tokenizer"))


def test_more_devices_change_nothing(task_config: TaskConfig, tmp_path: Path) -> None:
    scores = []
    for devices, mapping in ((1, "shard_map"), (4, "pmap"), (8, "shard_map")):
        output = tmp_path / f"{devices}"
        changes = {"parallel.devices": devices, "parallel.mapping": mapping, "training.micro_batch_size": 1}
        found = finetune(task_config("classification", output, {**changes, "training.epochs": 1}))
        scores.append((losses(output), found.measures["accuracy"]))
    for values, accuracy in scores[1:]:
        np.testing.assert_allclose(values, scores[0][0], rtol=1e-4)
        assert accuracy == scores[0][1]


def test_augmentation_changes_what_is_seen(task_config: TaskConfig, tmp_path: Path) -> None:
    plain = finetune(task_config("classification", tmp_path / "plain", {"training.epochs": 1}))
    changes = {"training.epochs": 1, "task.word_masking": 0.3, "task.word_shuffling": 0.3}
    finetune(task_config("classification", tmp_path / "one", changes))
    finetune(task_config("classification", tmp_path / "two", changes))
    assert losses(tmp_path / "one") == losses(tmp_path / "two") != losses(tmp_path / "plain")
    assert plain.result.step == 5


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("classification", {"task.max_length": 64}, "task.max_length = 64: model.initial has 32 positions"),
        ("classification", {"finetune.metric": "bleu"}, "finetune.metric = 'bleu'.*accuracy"),
        ("regression", {"task.class_weights": "balanced"}, "class_weights"),
        ("tagging", {"task.word_shuffling": 0.1}, "word_shuffling"),
        ("question", {"task.doc_stride": 12}, "task.doc_stride = 12.*9 tokens"),
        ("classification", {"training.batch_size": 9, "parallel.devices": 2}, "multiple"),
        ("classification", {"task.train": "/nowhere.csv"}, "/nowhere.csv"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    task_config: TaskConfig, tmp_path: Path, task: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        finetune(task_config(task, tmp_path / "run", changes))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_teacher_of_something_else_is_refused(
    task_config: TaskConfig, tmp_path: Path, model_folder: Callable[..., str]
) -> None:
    with pytest.raises(UserError, match="teacher.path.*no head for classification"):
        finetune(task_config("classification", tmp_path / "run", {"teacher.path": model_folder()}))


def test_another_run_in_the_folder_is_refused(trained: tuple[Path, Any, Any], task_config: TaskConfig) -> None:
    with pytest.raises(UserError, match=r"optimizer.learning_rate: was 0.01, is 0.1"):
        finetune(task_config("classification", trained[0], {"training.epochs": 6, "optimizer.learning_rate": 0.1}))


@pytest.mark.parametrize("name", ["glue", "minilm_tasks"])
def test_the_shipped_configurations_train(
    name: str, task_files: dict[str, dict[str, Any]], learner: str, tmp_path: Path
) -> None:
    changes = {
        **task_files["classification"],
        "task.max_length": 24,
        "model.initial": learner,
        "run.output": str(tmp_path / "run"),
        "training.steps": 2,
        "training.batch_size": 8,
        "training.micro_batch_size": 8,
        "parallel.devices": 1,
        "logging.every_steps": 1,
        "logging.progress": "none",
    }
    found = finetune(load_config(name, changes))
    assert found.result.step == 2
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.fault("loss or gradient not finite")
def test_a_step_that_is_not_finite_is_skipped(
    task_config: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loop.make_train_step

    def breaking(*arguments: Any) -> Any:
        step = make(*arguments)

        def train_step(state: Any, frozen: Any, batch: Any) -> Any:
            factor = jnp.where(state.step == 2, jnp.nan, 1.0)
            return step(state, frozen, batch._replace(weights=batch.weights * factor))

        return train_step

    monkeypatch.setattr(loop, "make_train_step", breaking)
    found = finetune(task_config("classification", tmp_path / "run", {"training.epochs": 1}))
    assert found.result.skipped_steps == 1
    rows = read_metrics(tmp_path / "run", "train")
    assert [row["metrics"]["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1]


def test_a_run_for_int8_learns_and_its_file_computes_what_it_learned(
    task_config: TaskConfig, learner: str, tmp_path: Path
) -> None:
    """Against a run without: logits of the int8 file are nearer to those of the network that was trained."""
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    read = read_pretrained(Path(learner))
    for part in (read.params["encoder"]["layer_0"][name] for name in ("query", "value", "ffn_in", "ffn_out")):
        part["kernel"] = np.where(np.arange(len(part["kernel"])) == 0, 2.0, part["kernel"].T).T.astype(np.float32)
    coarse = tmp_path / "coarse"  # outliers leave the kernels' other numbers few steps
    save_pretrained(coarse, read.config, read.params, tokenizer=load_tokenizer(learner))

    def error(quantize: str) -> float:
        folder = tmp_path / quantize
        changes = {"training.epochs": 4, "finetune.quantize": quantize, "model.initial": str(coarse)}
        config = task_config("tagging", folder, changes)
        finetune(config)
        assert losses(folder)[-1] < 0.7 * losses(folder)[0]
        source = read_source(folder)
        model, _ = onnx_model(source, "int8", frozenset({"word", "position"}))  # tables are not rounded in training
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        assert source.head is not None
        trained: Any = TaskModel(source.encoder, source.head, product="int8" if quantize == "int8" else "plain")
        encoded, file, errors = check_rows(source, "", None, 0).encoded, open_onnx(tmp_path / "model.onnx"), []
        for row in range(len(encoded)):  # alone, as a text is served
            inputs = collate_inputs(encoded, np.array([row]), int(encoded.lengths[row]), 1)[0]
            errors.append(np.square(file(inputs) - trained.apply({"params": source.params}, inputs)).mean())
        return float(np.sqrt(np.mean(errors)))

    assert error("int8") < 0.5 * error("none")


def test_choices_with_other_numbers_of_endings_learn_and_predict(task_config: TaskConfig, tmp_path: Path) -> None:
    """Rows of 2 to 4 endings, one of them blank; a prediction alone is that among the others."""
    words = ("the tree", "a river runs", "", "the old house")
    rows = [{"text": f"the cat {n}", "endings": [*words[: 2 + n % 3]], "label": n % 2} for n in range(24)]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {"task.train": str(path), "task.validation": str(path), "task.endings": [], "training.epochs": 1}
    found = finetune(task_config("choice", tmp_path / "run", changes))
    assert np.isfinite(losses(tmp_path / "run")).all() and 0 <= found.measures["accuracy"] <= 1
    predictor = load_predictor(tmp_path / "run")
    together = list(predict(predictor, rows[:6]))
    assert [len(one["scores"]) for one in together] == [2, 3, 4, 2, 3, 4]
    for row, one in zip(rows[:3], together, strict=False):
        (alone,) = predict(predictor, [row])
        np.testing.assert_allclose(alone["scores"], one["scores"], atol=1e-5)
