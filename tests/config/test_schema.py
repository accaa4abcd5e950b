"""Every setting: its type, its bounds, its default, and settings that must agree with each other."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from distil_jax.config import (
    SECTIONS,
    Config,
    Optimizer,
    fields_of,
    load_config,
    require,
    with_overrides,
)
from distil_jax.errors import UserError

FIELDS = {f"{section}.{key}": field for section, kind in SECTIONS.items() for key, field in fields_of(kind).items()}

# name -> (values that are refused, values that are taken); every number is in here, see test_no_number_is_unbounded
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "run.seed": ([-1, 2**31], [0, 2**31 - 1]),
    "corpus.sequence_length": ([0, 7, 65537, -512], [12, 65536]),
    "corpus.min_tokens": ([-1, 513], [0, 512]),
    "corpus.max_unk_fraction": ([-0.1, 1.1], [0.0, 1.0, 1]),
    "corpus.block_bytes": ([0, -1], [1]),
    "corpus.workers": ([-1], [0, 64]),
    "corpus.max_documents": ([-1], [0, 10]),
    "model.num_layers": ([0, -1], [1, 24]),
    "model.hidden_size": ([0, -12, 770], [12]),
    "model.num_heads": ([0, -1, 7], [1, 16]),
    "model.intermediate_size": ([0, -1], [1]),
    "model.max_position_embeddings": ([0, -1], [1]),
    "model.hidden_dropout": ([-0.1, 1.0], [0.0, 0.99]),
    "model.attention_dropout": ([-0.1, 1.0], [0.0, 0.99]),
    "model.initializer_range": ([0.0, -0.02], [1e-9]),
    "task.validation_fraction": ([0.0, 1.0], [0.2]),
    "task.max_examples": ([-1], [0, 10]),
    "task.max_length": ([-1, 7, 65537], [0, 8, 512]),
    "task.doc_stride": ([0, -1], [1, 128]),
    "task.max_question_length": ([0, -1], [1]),
    "task.max_answer_length": ([0, -1], [1]),
    "task.n_best": ([0, -1], [1]),
    "task.null_threshold": ([-1001.0, 1001.0], [-5.0, 0.0]),
    "task.word_masking": ([-0.1, 1.1], [0.0, 1.0]),
    "task.word_shuffling": ([-0.1, 1.1], [0.0, 1.0]),
    "finetune.temperature": ([0.0, -2.0], [0.5]),
    "study.base_tokens": ([0.0, -1.0], [0.5, 64.0]),
    "study.distillations": ([0], [1, 3]),
    "study.hours": ([-1.0], [0.0, 12.0]),
    "augment.copies": ([0], [1, 20]),
    "augment.probability": ([-0.1, 1.1], [0.0, 0.4, 1.0]),
    "augment.candidates": ([0], [1, 15]),
    "finetune.alone_epochs": ([-1], [0, 3]),
    "finetune.alone_steps": ([-1], [0, 3]),
    "finetune.alone_learning_rate": ([-1.0], [0.0, 1e-3]),
    "finetune.match_epochs": ([-1], [0, 3]),
    "finetune.match_steps": ([-1], [0, 3]),
    "finetune.match_learning_rate": ([-1.0], [0.0, 1e-3]),
    "finetune.patience": ([-1], [0, 3]),
    "finetune.evaluations_per_epoch": ([0, -1], [1, 4]),
    "study.seeds": ([0, -1, 10_001], [1, 5]),
    "masking.probability": ([1.0, -0.15, 1e-4], [0.0, 0.01, 0.99]),
    "masking.mask": ([-0.8, 1.1, 0.7], [0.8]),
    "masking.random": ([-0.1, 1.1, 0.2], [0.1]),
    "masking.keep": ([-0.1, 1.1, 0.0], [0.1]),
    "masking.smoothing": ([-0.7], [0.0, 1.0]),
    "objective.temperature": ([0.0, -2.0], [0.5]),
    "optimizer.learning_rate": ([0.0, -1e-4], [1e-9, 1]),
    "optimizer.beta1": ([1.0, -0.1], [0.0]),
    "optimizer.beta2": ([1.0, -0.1], [0.0]),
    "optimizer.epsilon": ([0.0, -1e-6], [1e-12]),
    "optimizer.weight_decay": ([-0.01], [0.0, 0.01]),
    "optimizer.warmup_fraction": ([-0.05, 1.05], [0.0, 1.0]),
    "optimizer.clip_norm": ([-5.0], [0.0]),
    "pruning.heads": ([0, 1.1], [0.5, 1]),
    "pruning.feed_forward": ([0.0, 1.1], [0.5, 1.0]),
    "pruning.examples": ([-1], [0]),
    "pruning.sparsity": ([-0.1, 1.0], [0.0, 0.9]),
    "pruning.begin": ([-0.1, 1.1], [0.0, 1.0]),
    "pruning.end": ([-0.1, 1.1], [0.0, 1.0]),
    "pruning.every_steps": ([0], [1]),
    "training.steps": ([-1], [0, 10]),
    "training.epochs": ([-1, 0], [1]),
    "training.batch_size": ([0, -256], [16, 24]),
    "training.micro_batch_size": ([-1, -16], [0, 1, 24, 256]),
    "objective.chunk": ([-1], [0, 256]),
    "training.max_skipped_steps": ([0, -1], [1, 100]),
    "parallel.devices": ([-1, 3], [0, 8]),
    "parallel.num_processes": ([-1, 2], [0]),
    "parallel.process_id": ([-2, 0], [-1]),
    "parallel.stall_minutes": ([-1.0], [0.0, 0.5]),
    "checkpoint.every_steps": ([-1], [0]),
    "checkpoint.every_minutes": ([-1.0], [0.0, 2.5]),
    "checkpoint.keep": ([0, -1], [1]),
    "evaluation.every_steps": ([-1], [0]),
    "evaluation.batch_size": ([0, -64], [1]),
    "evaluation.rows": ([-1], [0]),
    "evaluation.seed": ([-1, 2**31], [0]),
    "logging.every_steps": ([0, -50], [1]),
    "student.num_layers": ([-1], [0, 3]),
    "student.hidden_size": ([-1], [0, 256]),
    "student.embedding_size": ([-1], [0, 128]),
    "student.num_heads": ([-1], [0, 4]),
    "student.intermediate_size": ([-1], [0, 1024]),
    "student.hidden_dropout": ([-0.5, 1.0], [-1.0, 0.0, 0.1]),
    "student.attention_dropout": ([-0.5, 1.0], [-1.0, 0.0, 0.1]),
    "teacher.top_k": ([0, -1], [1, 64]),
    **{f"{section}.relation_heads": ([-1], [0, 48]) for section in ("objective", "finetune")},
    **{f"{section}.similarity_temperature": ([0.0, -2.0], [0.05]) for section in ("objective", "finetune")},
    **{name: ([-0.5], [0.0, 1.0]) for name, field in FIELDS.items() if field.loss_weight},
}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | str, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def toml(value: Any) -> str:
    return json.dumps(value)  # the two notations agree on the values used here


def wrong_values(annotation: Any) -> list[Any]:
    """Values of other types than the annotated one."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return ["no-such-choice", 1, True, ["any"], ""]
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        other = {str: [[1], [1.5]], int: [["a"], [1.5]], float: [["a"]]}[item]
        # A text is a list of one text.
        return [3, True, [True], [["a"]], *other, *(["text"] if item is not str else [])]
    return {
        bool: [1, 0, "true", [], 0.0],
        int: [1.0, "1", True, [1], 10**12],
        float: ["1", True, [1.0]],
        str: [1, True, 1.5, ["text"]],
    }[annotation]


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_type_names_file_key_value_and_what_is_allowed(name: str, tmp_path: Path) -> None:
    section, key = name.split(".")
    for value in wrong_values(FIELDS[name].annotation):
        path = write(tmp_path, "bad.toml", f"[{section}]\n{key} = {toml(value)}\n")
        message = refusal(path)
        assert str(path) in message and name in message and FIELDS[name].allowed in message
        assert "must be" in message
        with pytest.raises(UserError, match=name):  # the same check where no file is involved
            SECTIONS[section](**{key: value})


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str, tmp_path: Path) -> None:
    section, key = name.split(".")
    refused, taken = BOUNDS[name]
    for value in refused:
        path = write(tmp_path, "bad.toml", f"[{section}]\n{key} = {toml(value)}\n")
        message = refusal(path) if name != "training.epochs" or value else refusal(path, **{"training.steps": 0})
        assert str(path) in message and name in message
    for value in taken:
        path = write(tmp_path, "good.toml", f"[{section}]\n{key} = {toml(value)}\n")
        assert getattr(getattr(load_config(path), section), key) == value


def test_no_number_is_unbounded() -> None:
    numbers = [name for name, field in FIELDS.items() if field.annotation in (int, float)]
    assert sorted(numbers) == sorted(BOUNDS)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(value: str, tmp_path: Path) -> None:
    assert "optimizer.learning_rate" in refusal(write(tmp_path, "x.toml", f"[optimizer]\nlearning_rate = {value}"))
    with pytest.raises(UserError, match="optimizer.epsilon"):
        Optimizer(epsilon=float(value))


def test_lists_and_texts_are_checked() -> None:
    for name, value in [
        ("student.layers", [0, -1]),
        ("study.tasks", ["cola", ""]),
        ("objective.hidden_layers", ["3"]),
        ("finetune.hidden_layers", ["1:2", "a:b"]),
        ("study.learning_rates", [2e-5, 0.0]),
        ("study.epochs", [3, 0]),
        ("corpus.train", ["a", ""]),
        ("corpus.validation", [""]),
        ("corpus.text_column", ""),
        ("student.init", ""),
        ("run.output", "lone surrogate \ud800"),
    ]:
        with pytest.raises(UserError, match=name):
            with_overrides(Config(), {name: value})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"masking.mask": 0.5}, ["masking.mask", "masking.random", "masking.keep", "0.7", "must be 1"]),
        ({"parallel.devices": 48}, ["batch_size = 256", "parallel.devices = 48"]),
        ({"training.steps": 0, "training.epochs": 0}, ["training.steps", "training.epochs"]),
        ({"model.hidden_size": 100}, ["hidden_size = 100", "num_heads = 12"]),
        ({"model.freeze_encoder": True}, ["freeze_encoder", "model.initial"]),
        ({f"objective.{term}": 0 for term in ("kl", "mlm", "cosine")}, ["objective", "weight"]),
        ({"corpus.sequence_length": 8}, ["min_tokens = 12", "sequence_length = 8"]),
        ({"finetune.keep": "last", "finetune.patience": 2}, ["finetune.patience = 2", "finetune.keep = last"]),
        ({"parallel.coordinator": "host"}, ["parallel.coordinator", "host:port"]),
        ({"parallel.coordinator": "host:0"}, ["parallel.coordinator", "a port from 1 to 65535"]),
        ({"parallel.coordinator": "host:65536"}, ["parallel.coordinator", "a port from 1 to 65535"]),
        ({"parallel.coordinator": "host:1"}, ["coordinator", "num_processes", "process_id"]),
        (
            {"parallel.coordinator": "host:1", "parallel.num_processes": 2, "parallel.process_id": 2},
            ["process_id = 2", "num_processes = 2"],
        ),
    ],
)
def test_settings_that_contradict_each_other(overrides: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(Config(), overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    section = next(iter(overrides)).split(".")[0]
    rows = "".join(f"{name.split('.')[1]} = {toml(value)}\n" for name, value in overrides.items())
    path = write(tmp_path, "x.toml", f"[{section}]\n{rows}")
    assert refusal(path).startswith(str(path))


def test_settings_that_agree_with_each_other() -> None:
    config = with_overrides(
        Config(),
        {
            "masking.mask": 1 / 3,
            "masking.random": 1 / 3,
            "masking.keep": 1 / 3,
            "objective.hidden": 1,
            "objective.mlm": 0,
            "parallel.coordinator": "host:1234",
            "parallel.num_processes": 2,
            "parallel.process_id": 1,
            "parallel.devices": 16,
            "model.freeze_encoder": True,
            "model.initial": "somewhere",
            "student.layers": [0, 2],
        },
    )
    assert config.parallel.process_id == 1
    assert config.student.layers == (0, 2)
    assert config.objective.hidden == 1.0 and isinstance(config.objective.hidden, float)


def test_defaults_are_those_of_the_original() -> None:
    config = Config()
    assert config.objective.weights == {"kl": 5, "mlm": 2, "cosine": 1}
    assert config.finetune.weights == {"task": 0.5, "kl": 0.5}
    assert config.objective.temperature == config.finetune.temperature == 2
    assert config.objective.vocabulary == "fused" and not config.objective.restrict_kl_to_mask
    assert dataclasses.astuple(config.masking) == (0.15, 0.8, 0.1, 0.1, 0.7)
    assert dataclasses.astuple(config.optimizer) == (5e-4, 0.9, 0.98, 1e-6, 0, 0.05, "linear", 5)


def test_require_names_setting_and_flag() -> None:
    require(Config(), "run.seed", "training.steps")
    with pytest.raises(UserError, match=r"teacher\.path.*--teacher\.path"):
        require(Config(), "teacher.path")
    with pytest.raises(UserError, match=r"--corpus\.train"):
        require(Config(), "corpus.train")


def test_importing_the_schema_imports_no_heavy_library() -> None:
    code = "import sys, distil_jax.config; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"jax", "flax", "numpy", "tyro", "rich", "transformers", "datasets", "orbax", "grain", "optax"}
    assert heavy.isdisjoint(modules)
