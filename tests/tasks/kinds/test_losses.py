"""The losses of fine-tuning against PyTorch's, and second distillation against its definition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from distil_jax.models import TaskHead
from distil_jax.tasks.batches import TaskBatch, collate
from distil_jax.tasks.encoded import Encoded
from distil_jax.tasks.kinds import kind_of
from distil_jax.tasks.kinds.sequence import CLASS_SETS

CLASSES = TaskHead("sequence", num_outputs=4, problem="single_label_classification")
SETS = TaskHead("sequence", num_outputs=4, problem="multi_label_classification")
SCORES = TaskHead("sequence", num_outputs=1, problem="regression")
TAGS = TaskHead("token", num_outputs=4)
SPANS = TaskHead("question", num_outputs=2)
CHOICES = TaskHead("choice", num_outputs=1)


def batch_of(labels: Any, weights: Any) -> TaskBatch:
    """A batch as far as losses look at it: labels and weights, every place real."""
    nothing: Any = None
    return TaskBatch(nothing, labels, weights, weights, np.ones((len(weights), 1), np.float32))


def task_loss(head: TaskHead, logits: Any, labels: Any, weights: Any) -> Any:
    return kind_of(head).loss(jnp.asarray(logits), batch_of(labels, weights))


def distillation_loss(head: TaskHead, student: Any, teacher: Any, shares: Any, temperature: float) -> Any:
    return kind_of(head).distillation_loss(
        jnp.asarray(student), jnp.asarray(teacher), batch_of(None, shares), temperature
    )


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 3


def even(*shape: int) -> np.ndarray:
    return np.full(shape, 1 / np.prod(shape), np.float32)


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def test_classes_with_class_weights_are_weighted_as_in_torch() -> None:
    logits, labels, per_class = draw(6, 4), np.array([0, 3, 1, 1, 2, 0], np.int32), np.array([0.5, 2, 1, 3], np.float32)
    expected = functional.cross_entropy(tensor(logits), tensor(labels).long(), weight=tensor(per_class))
    weights = per_class[labels] / per_class[labels].sum()
    np.testing.assert_allclose(task_loss(CLASSES, jnp.array(logits), jnp.array(labels), weights), expected, rtol=1e-5)


def test_class_sets() -> None:
    logits, labels = draw(6, 4), (draw(6, 4, seed=1) > 0).astype(np.float32)
    expected = functional.binary_cross_entropy_with_logits(tensor(logits), tensor(labels))
    np.testing.assert_allclose(task_loss(SETS, logits, labels, even(6)), expected, rtol=1e-5)


def test_class_sets_with_class_weights_are_weighted_as_in_torch() -> None:
    """Loss and gradient, with the weights that `collate` makes of three rows in a batch of four."""
    labels = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 0]], np.float32)
    per_class = np.array([2, 1, 0, 2.5], np.float32)
    ids = [np.arange(2, dtype=np.int32)] * 3
    encoded = Encoded(ids, ids, [*labels], np.full(3, 2, np.int32), 0, ())
    batch = collate(encoded, CLASS_SETS, np.arange(3), 2, 4, per_class)
    np.testing.assert_allclose(batch.shares, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)
    logits = draw(4, 4)
    given = tensor(logits[:3]).requires_grad_()
    expected = functional.binary_cross_entropy_with_logits(given, tensor(labels), pos_weight=tensor(per_class))
    expected.backward()
    found, gradient = jax.value_and_grad(lambda x: task_loss(SETS, x, batch.labels, batch.weights))(logits)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5)
    assert given.grad is not None
    np.testing.assert_allclose(gradient[:3], given.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert not np.any(gradient[3])


def test_scores() -> None:
    logits, labels = draw(6, 1), draw(6, seed=1)
    expected = functional.mse_loss(tensor(logits)[:, 0], tensor(labels))
    np.testing.assert_allclose(task_loss(SCORES, logits, labels, even(6)), expected, rtol=1e-5)


def test_tags_without_the_ignored_ones() -> None:
    logits, labels = draw(2, 5, 4), np.array([[-100, 1, 2, -100, 0], [-100, 3, -100, -100, -100]])
    expected = functional.cross_entropy(tensor(logits).reshape(-1, 4), tensor(labels).reshape(-1))
    weights = ((labels >= 0) / (labels >= 0).sum()).astype(np.float32)
    found = task_loss(TAGS, logits, np.maximum(labels, 0).astype(np.int32), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_spans() -> None:
    logits, labels = draw(3, 7, 2), np.array([[1, 2], [0, 0], [3, 6]], np.int32)
    one, two = (functional.cross_entropy(tensor(logits)[..., end], tensor(labels)[:, end].long()) for end in range(2))
    np.testing.assert_allclose(task_loss(SPANS, logits, labels, even(3)), (one + two) / 2, rtol=1e-5)


def test_choices() -> None:
    logits, labels = draw(3, 4), np.array([1, 0, 3], np.int32)
    expected = functional.cross_entropy(tensor(logits), tensor(labels).long())
    np.testing.assert_allclose(task_loss(CHOICES, logits, labels, even(3)), expected, rtol=1e-5)


def torch_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    log_probabilities = functional.log_softmax(student / temperature, dim=-1)
    probabilities = functional.softmax(teacher / temperature, dim=-1)
    return functional.kl_div(log_probabilities, probabilities, reduction="batchmean") * temperature**2


@pytest.mark.parametrize("head", [CLASSES, CHOICES])
def test_a_teacher_of_classes(head: TaskHead) -> None:
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    expected = torch_kl(tensor(student), tensor(teacher), 3.0)
    np.testing.assert_allclose(distillation_loss(head, student, teacher, even(5), 3.0), expected, rtol=1e-5)


def test_a_teacher_of_spans() -> None:
    student, teacher = draw(3, 7, 2), draw(3, 7, 2, seed=1)
    expected = sum(torch_kl(tensor(student)[..., end], tensor(teacher)[..., end], 2.0) for end in range(2)) / 2
    np.testing.assert_allclose(distillation_loss(SPANS, student, teacher, even(3), 2.0), expected, rtol=1e-5)


def test_a_teacher_of_tags_counts_where_there_are_tags() -> None:
    student, teacher = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    shares = np.array([[0, 0.5, 0], [0.5, 0, 0]], np.float32)
    rows = [(0, 1), (1, 0)]
    pairs = [np.stack([logits[row] for row in rows]) for logits in (student, teacher)]
    expected = torch_kl(tensor(pairs[0]), tensor(pairs[1]), 2.0)
    np.testing.assert_allclose(distillation_loss(TAGS, student, teacher, shares, 2.0), expected, rtol=1e-5)


def test_a_teacher_of_class_sets_is_one_yes_or_no_a_class() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    yes, wanted = torch.sigmoid(tensor(student) / 2), torch.sigmoid(tensor(teacher) / 2)
    cross = functional.binary_cross_entropy(yes, wanted) - functional.binary_cross_entropy(wanted, wanted)
    np.testing.assert_allclose(distillation_loss(SETS, student, teacher, even(3), 2.0), 4 * cross, rtol=1e-4)


def test_a_teacher_of_scores() -> None:
    student, teacher = draw(3, 1), draw(3, 1, seed=1)
    expected = functional.mse_loss(tensor(student), tensor(teacher))
    np.testing.assert_allclose(distillation_loss(SCORES, student, teacher, even(3), 2.0), expected, rtol=1e-5)
