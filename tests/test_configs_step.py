"""Every shipped configuration of training on text, made small, takes a step (fine-tuning: tests/tasks)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import load_config
from distil_jax.runs import read_metrics
from distil_jax.training.distill import distill
from distil_jax.training.pretrain import pretrain

FINE_TUNING = {"finetune", "glue", "minilm_tasks", "minilm_task_stage", "tinybert_task"}
SHIPPED = {path.stem for path in (Path(__file__).resolve().parents[1] / "configs").glob("*.toml")}
TEACHER_LAYERS = {"distilbert_base_uncased": 12, "minilm_l3": 6, "quickstart": 4, "study_minilm_l3": 6}
# alike but for the terms
OBJECTIVES = {"embedding": 6, "hidden": 12, "minilm_hidden": 6, "minilmv2": 12, "tinybert": 12}
NAMES = [
    *sorted(SHIPPED - FINE_TUNING - OBJECTIVES.keys()),
    *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(OBJECTIVES)),
]


def small(name: str, world: Path, model_folder: Callable[..., str]) -> dict[str, Any]:
    """What shrinks model, batch and corpus; everything else stays as it is shipped."""
    changes: dict[str, Any] = {
        "corpus.folder": str(world / "corpus"),
        "corpus.tokenizer": str(world / "tokenizer"),
        "corpus.sequence_length": 24,  # as that corpus was prepared with
        "training.steps": 1,
        "training.batch_size": 4,
        "training.micro_batch_size": 2,
        "parallel.devices": 1,
        "evaluation.rows": 4,
        "evaluation.batch_size": 4,
        "logging.tensorboard": False,
        "logging.progress": "none",
    }
    config = load_config(name)
    if config.student.hidden_size:
        changes |= {"student.hidden_size": 8, "student.num_heads": 2, "student.intermediate_size": 12}
    if config.objective.relation_heads:
        changes["objective.relation_heads"] = 4
    if config.teacher.path:
        layers = (TEACHER_LAYERS | OBJECTIVES)[name]
        teacher = model_folder(num_layers=layers, pooler=True, attention_output_dropout=0.1)
        return {**changes, "teacher.path": teacher}
    if config.model.initial:
        return {**changes, "model.initial": model_folder(num_layers=1, head=False, pooler=True)}
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
    return {**changes, **{f"model.{key}": value for key, value in sizes.items()}}


@pytest.mark.usefixtures("program_cache")
@pytest.mark.parametrize("name", NAMES)
def test_takes_a_step(name: str, tiny_world: Path, model_folder: Callable[..., str], tmp_path: Path) -> None:
    changes = {**small(name, tiny_world, model_folder), "run.output": str(tmp_path / "run")}
    config = load_config(name, changes)
    outcome = distill(config) if config.teacher.path else pretrain(config)
    (row,) = read_metrics(tmp_path / "run", "train")
    assert np.isfinite(list(row["metrics"].values())).all()
    terms = config.objective.weights.keys() if config.teacher.path else {"mlm"}
    assert {key for key in row["metrics"] if key.startswith("loss_")} == {f"loss_{name}" for name in terms}
    assert set(outcome.evaluations) == {0, 1}
    layers = [key for key in outcome.state.params["encoder"] if key.startswith("layer_")]
    student, halved = config.student, (TEACHER_LAYERS | OBJECTIVES).get(name, 2) // 2
    assert len(layers) == ((student.num_layers or len(student.layers) or halved) if config.teacher.path else 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, outcome.state.params)))
