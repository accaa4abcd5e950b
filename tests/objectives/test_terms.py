"""Every loss term against an independent form: PyTorch, finite differences, and the whole written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from distil_jax.config import Objective
from distil_jax.models import Activations, EncoderConfig
from distil_jax.objectives import (
    PROJECTIONS,
    TERMS,
    Compared,
    activation_terms,
    active_terms,
    capture_of,
    initial_projections,
    needs_all_logits,
    uses_teacher,
    uses_vocabulary,
)
from distil_jax.objectives.compared import layer_pairs

ROWS, LENGTH, WIDTH = 2, 5, 8


def draw(seed: int, layers: int) -> tuple[np.ndarray, ...]:
    noise = np.random.default_rng(seed)
    return tuple(noise.standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32) for _ in range(layers + 1))


def compared(student: tuple[Any, ...], teacher: tuple[Any, ...]) -> Compared:
    """Three real tokens in the first row and five in the second."""
    weights = jnp.asarray(np.arange(LENGTH)[None] < np.array([3, 5])[:, None], jnp.float32)
    first, second = (tuple(jnp.asarray(x) for x in states) for states in (student, teacher))
    mask = (weights > 0).astype(jnp.int32)
    return Compared(Activations(first[-1], first), Activations(second[-1], second), mask, weights, jnp.ones(ROWS))


STUDENT, TEACHER = draw(0, 2), draw(1, 4)
REAL = np.arange(LENGTH)[None] < np.array([3, 5])[:, None]


def by_torch(name: str, student: list[torch.Tensor], pairs: list[tuple[int, int]]) -> torch.Tensor:
    """The mean of a term over the real tokens."""
    teacher = [torch.from_numpy(x) for x in TEACHER]
    real = torch.from_numpy(REAL)
    if name == "cosine":
        return (1 - functional.cosine_similarity(student[-1], teacher[-1], dim=-1))[real].mean()
    if name == "hidden_cosine":
        distances = [1 - functional.cosine_similarity(student[s], teacher[t], dim=-1) for s, t in pairs]
        return torch.stack([distance[real].mean() for distance in distances]).mean()
    pairs = [(0, 0)] if name == "embeddings" else pairs
    errors = [
        functional.mse_loss(student[s], teacher[t], reduction="none").sum(-1) / teacher[t].square().sum(-1)
        for s, t in pairs
    ]
    return torch.stack([error[real].mean() for error in errors]).mean()


CASES = [
    *(("cosine", ()), ("embeddings", ()), ("hidden", ()), ("hidden_cosine", ())),
    *(("hidden", ("0:0", "2:4", "2:4")), ("hidden_cosine", ("1:4",))),
]


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_values_and_gradients_are_those_of_pytorch(name: str, layers: tuple[str, ...]) -> None:
    settings = Objective(hidden_layers=layers)
    pairs = layer_pairs(layers, 2, 4)
    tensors = [torch.from_numpy(x).requires_grad_() for x in STUDENT]
    expected = by_torch(name, tensors, pairs)
    expected.backward()

    def mean(student: Any) -> Any:
        term: Any = TERMS[name].compute
        return term(compared(student, TEACHER), settings).mean

    value, gradient = jax.value_and_grad(mean)(tuple(map(jnp.asarray, STUDENT)))
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    for found, tensor in zip(gradient, tensors, strict=True):
        wanted = np.zeros_like(found) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_gradients_are_finite_differences(name: str, layers: tuple[str, ...]) -> None:
    settings, direction = Objective(hidden_layers=layers), draw(2, 2)

    def mean(step: Any) -> Any:
        term: Any = TERMS[name].compute
        student = tuple(x + step * d for x, d in zip(STUDENT, direction, strict=True))
        return term(compared(student, TEACHER), settings).mean

    difference = (float(mean(1e-2)) - float(mean(-1e-2))) / 2e-2
    assert float(jax.grad(mean)(0.0)) == pytest.approx(difference, rel=1e-2)


def test_padding_counts_nowhere_whatever_it_holds() -> None:
    student = tuple(np.where(REAL[..., None], x, np.nan).astype(np.float32) for x in STUDENT)
    for name in ("cosine", "embeddings", "hidden", "hidden_cosine"):
        term: Any = TERMS[name].compute
        plain, padded = (term(compared(states, TEACHER), Objective()) for states in (STUDENT, student))
        assert (float(plain.sum), float(plain.count)) == (float(padded.sum), float(padded.count))


def test_layers_are_paired_by_relative_depth_or_as_given() -> None:
    assert layer_pairs((), 3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert layer_pairs((), 6, 12) == [(layer, 2 * layer) for layer in range(1, 7)]
    assert layer_pairs((), 5, 12)[-1] == (5, 12)
    assert layer_pairs(("0:0", "3:6"), 3, 6) == [(0, 0), (3, 6)]


def test_a_narrower_student_is_projected_by_a_learned_matrix() -> None:
    wide, narrow = EncoderConfig("bert", 40, WIDTH, 4, 2, 16, 16), EncoderConfig("bert", 40, 6, 2, 2, 16, 16)
    settings = Objective(kl=0, mlm=0, cosine=0, hidden=1, embeddings=1)
    assert initial_projections(settings, wide, wide, 0) == {}
    found = initial_projections(settings, narrow, wide, 0)[PROJECTIONS]
    assert {name: matrix.shape for name, matrix in found.items()} == {"hidden": (6, WIDTH), "embeddings": (6, WIDTH)}
    student = tuple(x[..., :6] for x in STUDENT)

    def loss(matrices: Any) -> Any:
        sums = activation_terms(active_terms(settings), compared(student, TEACHER), settings, matrices)
        return sums["hidden"].mean

    value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, found))
    tensor = torch.from_numpy(found["hidden"]).requires_grad_()
    expected = by_torch("hidden", [torch.from_numpy(x) @ tensor for x in student], layer_pairs((), 2, 4))
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    wanted: Any = tensor.grad
    np.testing.assert_allclose(gradient["hidden"], wanted, rtol=1e-4, atol=1e-6)
    assert not np.any(gradient["embeddings"])


def test_what_an_objective_needs_follows_from_its_terms() -> None:
    hidden = Objective(kl=0, mlm=0, cosine=0, hidden=1)
    assert [*active_terms(hidden)] == ["hidden"] and uses_teacher(hidden)
    assert not uses_vocabulary(hidden) and not needs_all_logits(hidden)
    assert capture_of(active_terms(hidden)) == {"hidden_states"}
    assert capture_of(active_terms(Objective())) == frozenset()
    assert needs_all_logits(Objective()) and not needs_all_logits(Objective(restrict_kl_to_mask=True))
    labels = Objective(kl=0, cosine=0)
    assert uses_vocabulary(labels) and not uses_teacher(labels) and not needs_all_logits(labels)
    assert activation_terms(active_terms(labels), compared(STUDENT, TEACHER), labels) == {}
