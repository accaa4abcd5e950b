"""Every loss against PyTorch's own, value and gradient, with positions that do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from distil_jax.objectives.losses import (
    SumCount,
    cosine_distance,
    cross_entropy,
    distillation_kl,
    logit_mse,
    top1_matches,
)

N, V = 7, 11
NOISE = np.random.default_rng(0)
STUDENT: Any
TEACHER: Any
STUDENT, TEACHER = (3 * NOISE.standard_normal((N, V)).astype(np.float32) for _ in range(2))
TARGETS: Any = NOISE.integers(0, V, N).astype(np.int32)
WEIGHTS: Any = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
USED = WEIGHTS > 0

Loss = Callable[[Any, Any], Any]


def kl_of_torch(temperature: float) -> Loss:
    def loss(student: Any, teacher: Any) -> Any:
        both = [torch.log_softmax(x[USED] / temperature, -1) for x in (student, teacher)]
        return torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(*both) * temperature**2

    return loss


def cross_entropy_of_torch(student: Any, _: Any) -> Any:
    labels = torch.tensor(np.where(USED, TARGETS, -100), dtype=torch.long)
    return torch.nn.CrossEntropyLoss(ignore_index=-100)(student, labels)


def mse_of_torch(student: Any, teacher: Any) -> Any:
    return torch.nn.MSELoss(reduction="sum")(student[USED], teacher[USED]) / USED.sum()


def cosine_of_torch(student: Any, teacher: Any) -> Any:
    return torch.nn.CosineEmbeddingLoss()(student[USED], teacher[USED], torch.ones(int(USED.sum())))


CASES: dict[str, tuple[Callable[..., SumCount], Loss]] = {
    "kl, temperature 1": (lambda s, t, w: distillation_kl(s, t, w, 1.0), kl_of_torch(1.0)),
    "kl, temperature 2": (lambda s, t, w: distillation_kl(s, t, w, 2.0), kl_of_torch(2.0)),
    "cross entropy": (lambda s, t, w: cross_entropy(s, jnp.asarray(TARGETS), w), cross_entropy_of_torch),
    "mse": (logit_mse, mse_of_torch),
    "cosine": (cosine_distance, cosine_of_torch),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_torch(name: str) -> None:
    actual, reference = CASES[name]
    student: Any = torch.tensor(STUDENT, requires_grad=True)
    expected = reference(student, torch.tensor(TEACHER))
    expected.backward()
    value, gradient = jax.value_and_grad(lambda s: actual(s, TEACHER, WEIGHTS).mean)(STUDENT)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, student.grad, atol=1e-6)
    np.testing.assert_array_equal(gradient[~USED], 0)


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_count_may_be_anything(name: str) -> None:
    actual, _ = CASES[name]
    spoilt = [np.where(USED[:, None], x, bad).astype(np.float32) for x, bad in ((STUDENT, np.nan), (TEACHER, np.inf))]
    clean, found = actual(STUDENT, TEACHER, WEIGHTS), actual(*spoilt, WEIGHTS)
    assert float(found.sum) == float(clean.sum)
    assert float(found.count) == float(clean.count) == USED.sum()


@pytest.mark.parametrize("name", CASES)
def test_fractional_weights_weigh(name: str) -> None:
    actual, _ = CASES[name]
    weights = np.linspace(0.0, 1.5, N, dtype=np.float32)
    each = (
        [float(actual(STUDENT[i : i + 1], TEACHER[i : i + 1], np.ones(1, np.float32)).sum) for i in range(N)]
        if (name != "cross entropy")
        else [-float(jax.nn.log_softmax(STUDENT[i])[TARGETS[i]]) for i in range(N)]
    )
    found = actual(STUDENT, TEACHER, weights)
    assert float(found.sum) == pytest.approx(float(np.dot(each, weights)), rel=1e-5)
    assert float(found.count) == pytest.approx(weights.sum())
    assert float(found.mean) == pytest.approx(np.dot(each, weights) / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_nothing_counts(name: str) -> None:
    found = CASES[name][0](STUDENT, TEACHER, np.zeros(N, np.float32))
    assert (float(found.sum), float(found.count), float(found.mean)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_inputs_are_computed_in_float32(name: str) -> None:
    """As the same numbers in float32: nothing is rounded but the inputs."""
    actual, _ = CASES[name]
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TEACHER)]
    found = actual(*rounded, WEIGHTS)
    assert found.sum.dtype == jnp.float32
    expected = actual(*(x.astype(jnp.float32) for x in rounded), WEIGHTS)
    assert float(found.sum) == float(expected.sum)


def test_extreme_logits_stay_finite() -> None:
    extreme: Any = np.zeros((2, V), np.float32)
    extreme[0, 0], extreme[1, 3] = 1e4, -1e4
    weights: Any = np.ones(2, np.float32)
    found = distillation_kl(extreme[::-1].copy(), extreme, weights, 1.0)
    assert np.isfinite(float(found.sum)) and float(found.sum) > 0
    assert float(distillation_kl(extreme, extreme, weights, 2.0).sum) == 0.0
    targets: Any = np.array([1, 3], np.int32)
    surprise = cross_entropy(extreme, targets, weights)
    assert float(surprise.sum) == pytest.approx(2e4 + np.log(V - 1), rel=1e-5)


def test_the_cosine_of_zero_vectors_is_that_of_torch() -> None:
    zero: Any = np.zeros((2, V), np.float32)
    weights: Any = np.ones(2, np.float32)
    expected = torch.nn.CosineEmbeddingLoss(reduction="sum")(
        torch.tensor(zero), torch.tensor(TEACHER[:2]), torch.ones(2)
    )
    assert float(cosine_distance(zero, TEACHER[:2], weights).sum) == pytest.approx(expected.item())
    gradient = jax.grad(lambda s: cosine_distance(s, TEACHER[:2], weights).sum)(zero)
    assert np.isfinite(gradient).all()


def test_top1_matches_counts_equal_choices() -> None:
    targets = STUDENT.argmax(1)
    targets[[0, 3]] = (targets[[0, 3]] + 1) % V
    found = top1_matches(jnp.asarray(STUDENT), jnp.asarray(targets), jnp.asarray(WEIGHTS))
    assert (float(found.sum), float(found.count)) == (3.0, 5.0)
