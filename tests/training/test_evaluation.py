"""The evaluator against the same measures taken one sequence at a time, without batches, packing or devices."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Objective
from distil_jax.data.corpus import Corpus, open_corpus
from distil_jax.data.corpus.masking import MaskingRule, mask_rows, masking_log_weights
from distil_jax.hf import read_pretrained
from distil_jax.models import MaskedLM
from distil_jax.objectives import student_config, student_params
from distil_jax.training.evaluation import make_evaluator
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import FrozenInputs
from distil_jax.training.text_step import TextModels

ROWS, SMOOTHING = 13, 0.7


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    found = open_corpus(tiny_world / "corpus" / "validation")
    assert found.num_rows > ROWS
    return found


@pytest.fixture(scope="module")
def models(tiny_world: Path, corpus: Corpus) -> tuple[TextModels, Any, Any]:
    """The task of a distillation, student and teacher parameters."""
    teacher, params, *_ = read_pretrained(tiny_world / "teacher")
    student = student_config(teacher, [1])
    task = TextModels(
        student=MaskedLM(student),
        teacher=MaskedLM(teacher),
        objective=Objective(cosine=0),
        rule=MaskingRule(corpus.mask_id, corpus.vocab_size, 0.15, 0.8, 0.1),
        cls_id=corpus.cls_id,
        pad_id=corpus.pad_id,
    )
    return task, student_params(params, teacher, student, [1]), params


def evaluate(corpus: Corpus, models: tuple[TextModels, Any, Any], devices: int, batch_size: int, **changes: Any) -> Any:
    task, student, teacher = models
    placed = make_devices("shard_map", devices)
    settings = {"smoothing": SMOOTHING, "rows": ROWS, "seed": 3, **changes}
    evaluator = make_evaluator(placed, task, corpus, batch_size=batch_size, **settings)
    frozen = FrozenInputs(99, placed.replicate(teacher))  # the seed of training does not matter here
    return evaluator(placed.replicate(student), frozen)


def predictions(corpus: Corpus, task: TextModels) -> tuple[np.ndarray, np.ndarray]:
    """Masked ids and labels (-1: none), a sequence of the first rows a row [S, L]."""
    log_weights = jnp.asarray(masking_log_weights(corpus.token_counts, corpus.special_ids, SMOOTHING))
    inputs, labels = [], []
    for number in range(ROWS):
        row = corpus.row_range(number, number + 1)[0].astype(np.int32)
        real = row != corpus.pad_id
        quota = min(math.ceil(real.sum() * 15 / 100), int((~np.isin(row, corpus.special_ids)).sum()))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), number), 0)
        masked = mask_rows(jnp.asarray(row)[None], key[None], jnp.asarray([quota]), log_weights, task.rule)
        wanted = np.full_like(row, -1)
        chosen = np.asarray(masked.positions[0])[:quota]
        wanted[chosen] = row[chosen]
        starts = np.flatnonzero(row == corpus.cls_id)[1:]
        inputs += np.split(np.asarray(masked.ids[0])[real], starts)
        labels += np.split(wanted[real], starts)
    shape = (len(inputs), corpus.sequence_length)
    ids, targets = np.full(shape, corpus.pad_id, np.int32), np.full(shape, -1)
    for index, (one, wanted) in enumerate(zip(inputs, labels, strict=True)):
        ids[index, : len(one)], targets[index, : len(wanted)] = one, wanted
    return ids, targets


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def test_measures_are_those_of_each_sequence_alone(corpus: Corpus, models: tuple[TextModels, Any, Any]) -> None:
    task, student, teacher = models
    ids, targets = predictions(corpus, task)
    chosen = targets >= 0
    mask = (ids != corpus.pad_id).astype(np.int32)
    assert task.teacher is not None
    found = []
    for module, params in ((task.student, student), (task.teacher, teacher)):
        logits = jax.jit(module.apply)({"params": params}, ids, mask)
        found.append(log_softmax(np.asarray(logits)[chosen]))
    actual, reference = found
    labels = targets[chosen]
    loss = -np.mean(actual[np.arange(len(labels)), labels])
    expected = {
        "mlm_loss": loss,
        "perplexity": math.exp(loss),
        "accuracy": np.mean(actual.argmax(-1) == labels),
        "kl": np.mean(np.sum(np.exp(reference) * (reference - actual), -1)),
        "agreement": np.mean(actual.argmax(-1) == reference.argmax(-1)),
        "predictions": len(labels),
    }
    # Four batches of 4 rows, the last of them with 3 rows of padding.
    assert evaluate(corpus, models, 1, 4) == pytest.approx(expected, rel=1e-5)


def test_neither_batches_nor_devices_matter(corpus: Corpus, models: tuple[TextModels, Any, Any]) -> None:
    """13 rows as 4 + 4 + 4 + 1 on one device, as 6 + 6 + 1 on two (asked for 5), and 16 at once on eight."""
    one, *others = (evaluate(corpus, models, devices, size) for devices, size in ((1, 4), (2, 5), (8, 16)))
    for other in others:
        assert other == pytest.approx(one, rel=1e-5)


def test_rows_and_seed(corpus: Corpus, models: tuple[TextModels, Any, Any]) -> None:
    """Rows beyond those asked for do not count, 0 and too many mean all, and another seed asks other questions."""
    first = evaluate(corpus, models, 1, 4)
    whole = evaluate(corpus, models, 1, 4, rows=0)
    assert whole["predictions"] > first["predictions"]
    assert whole == evaluate(corpus, models, 1, 4, rows=10**6)
    again = evaluate(corpus, models, 1, 4, seed=4)
    assert again["predictions"] == first["predictions"]
    assert again["mlm_loss"] != first["mlm_loss"]


def test_a_model_agrees_with_itself(corpus: Corpus, models: tuple[TextModels, Any, Any]) -> None:
    """And without a teacher there is nothing to agree with."""
    task, _, teacher = models
    devices, settings = make_devices("shard_map", 1), {"smoothing": SMOOTHING, "rows": 4, "seed": 3, "batch_size": 4}
    assert task.teacher is not None
    task = dataclasses.replace(task, student=task.teacher)
    placed = devices.replicate(teacher)
    itself = make_evaluator(devices, task, corpus, **settings)
    found = itself(placed, FrozenInputs(0, placed))
    assert found["agreement"] == 1.0
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    alone = itself(placed, FrozenInputs(0))
    assert set(alone) == {"mlm_loss", "perplexity", "accuracy", "predictions"}
    assert alone["mlm_loss"] == pytest.approx(found["mlm_loss"], rel=1e-6)
