"""The optimizer against PyTorch's, and the schedule against its formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from distil_jax.config import Optimizer
from distil_jax.training.optimizer import decays, learning_rate_schedule, make_optimizer, plain_optimizer

STEPS = 8
SHAPES = {
    "embeddings": {"word": {"embedding": (7, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
    "layer_0": {"query": {"kernel": (4, 4), "bias": (4,)}, "output_norm": {"scale": (4,), "bias": (4,)}},
}


def draw(random: np.random.Generator, scale: float = 1.0) -> Any:
    return jax.tree.map(
        lambda shape: (scale * random.standard_normal(shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradients() -> list[Any]:
    """Of several steps: some above the clipping norm, some below it, one of zeros."""
    random = np.random.default_rng(1)
    return [draw(random, scale) for scale in (3.0, 0.01, 1.0, 0.0, 1e-4, 5.0)]


def by_torch(settings: Optimizer, factor: Any) -> list[list[np.ndarray]]:
    """Parameters after every step of AdamW, clip_grad_norm_ and LambdaLR, in the order of the leaves."""
    start = jax.tree.leaves(draw(np.random.default_rng(0)))
    params = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in start]
    groups = [
        {"params": [p for p in params if p.ndim == 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    after = []
    for gradient in gradients():
        for param, value in zip(params, jax.tree.leaves(gradient), strict=True):
            param.grad = torch.tensor(value)
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(params, settings.clip_norm)
        optimizer.step()
        schedule.step()
        after.append([param.detach().numpy().copy() for param in params])
    return after


@pytest.mark.parametrize("clip_norm", [5.0, 0.0])
def test_it_is_pytorchs_adamw(clip_norm: float) -> None:
    settings = Optimizer(
        learning_rate=1e-2, beta1=0.85, beta2=0.97, weight_decay=0.3, warmup_fraction=0.25, clip_norm=clip_norm
    )
    expected = by_torch(settings, lambda step: min(step / 2, (STEPS - step) / 6))
    optimizer = make_optimizer(settings, STEPS)
    params = draw(np.random.default_rng(0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for number, gradient in enumerate(gradients()):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for actual, reference in zip(jax.tree.leaves(params), expected[number], strict=True):
            np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [5.0, 0.0])
@pytest.mark.parametrize("weight_decay", [0.3, 0.0])
def test_it_is_optaxs_adamw_with_the_same_state(clip_norm: float, weight_decay: float) -> None:
    """Updates and moments to rounding, and a state that checkpoints of either form can hold."""
    settings = Optimizer(learning_rate=1e-2, weight_decay=weight_decay, warmup_fraction=0.25, clip_norm=clip_norm)
    actual, plain = make_optimizer(settings, STEPS), plain_optimizer(settings, STEPS)
    params = draw(np.random.default_rng(0))
    state, expected_state = actual.init(params), plain.init(params)
    for gradient in gradients():
        updates, state = jax.jit(actual.update)(gradient, state, params)
        expected, expected_state = jax.jit(plain.update)(gradient, expected_state, params)
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)
        for left, right in zip(
            jax.tree.leaves((updates, state)), jax.tree.leaves((expected, expected_state)), strict=True
        ):
            assert left.dtype == right.dtype and left.shape == right.shape
            # Where terms cancel, the error is that of the largest.
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6 * float(np.abs(right).max()))
        params = optax.apply_updates(params, updates)
    assert [int(count) for _, count in optax.tree.get_all_with_path(state, "count")] == [len(gradients())] * 2


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_shows(bad: float) -> None:
    """Clipping must not turn it into an update that looks harmless."""
    settings, params, gradient = Optimizer(), draw(np.random.default_rng(0)), draw(np.random.default_rng(1))
    gradient["layer_0"]["query"]["kernel"][1, 2] = bad
    optimizer = make_optimizer(settings, STEPS)
    updates: Any = optimizer.update(gradient, optimizer.init(params), params)[0]
    assert np.isnan(np.asarray(updates["layer_0"]["query"]["kernel"])[1, 2])


def test_an_update_can_leave_the_moments_as_they_are() -> None:
    """Their count too, but not that of the schedule, whose learning rates are those of the step's number."""
    optimizer = make_optimizer(Optimizer(), STEPS)
    params, gradient = draw(np.random.default_rng(0)), draw(np.random.default_rng(1))
    before: Any = optimizer.update(gradient, optimizer.init(params), params)[1]
    bad = jax.tree.map(lambda g: np.full_like(g, np.nan), gradient)
    after: Any = jax.jit(optimizer.update)(bad, before, params, keep_old=np.True_)[1]
    jax.tree.map(np.testing.assert_array_equal, *(_adam(state) for state in (before, after)))
    assert sorted(int(count) for _, count in optax.tree.get_all_with_path(after, "count")) == [1, 2]


def test_a_phase_whose_first_step_is_skipped_still_begins_with_moments_of_its_own() -> None:
    optimizer = make_optimizer(Optimizer(), STEPS, [(1, 1e-3)])
    params, gradient = draw(np.random.default_rng(0)), draw(np.random.default_rng(1))
    before: Any = optimizer.update(gradient, optimizer.init(params), params)[1]
    bad = jax.tree.map(lambda g: np.full_like(g, np.nan), gradient)
    after: Any = jax.jit(optimizer.update)(bad, before, params, keep_old=np.True_)[1]
    jax.tree.map(np.testing.assert_array_equal, _adam(after), _adam(optimizer.init(params)))


def _adam(state: Any) -> Any:
    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    return next(part for part in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(part))


def test_matrices_decay_and_neither_biases_nor_norms() -> None:
    assert decays(draw(np.random.default_rng(0))) == {
        "embeddings": {"word": {"embedding": True}, "norm": {"scale": False, "bias": False}},
        "layer_0": {"query": {"kernel": True, "bias": False}, "output_norm": {"scale": False, "bias": False}},
    }


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: (1 + math.cos(math.pi * share)) / 2),
        ("constant", lambda share: 1.0),
    ],
)
def test_the_schedule_follows_its_formula(name: Any, decay: Any) -> None:
    """Warm-up from 0 to the peak in 5 of 100 steps, then down to 0 at step 100."""
    schedule = learning_rate_schedule(Optimizer(learning_rate=2e-3, schedule=name), 100)
    for step in (0, 1, 4, 5, 6, 50, 99, 100):
        expected = 2e-3 * (step / 5 if step < 5 else decay((step - 5) / 95))
        assert np.asarray(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("fraction", "first", "last"), [(0.0, 1.0, 1 / 3), (1.0, 0.0, 2 / 3)])
def test_schedules_without_warm_up_and_with_nothing_else(fraction: float, first: float, last: float) -> None:
    schedule = learning_rate_schedule(Optimizer(learning_rate=1.0, warmup_fraction=fraction), 3)
    assert np.asarray(schedule(0)) == pytest.approx(first)
    assert np.asarray(schedule(2)) == pytest.approx(last)


def test_a_phase_begins_as_a_run_of_its_own() -> None:
    settings = Optimizer(learning_rate=0.1, warmup_fraction=0.25, weight_decay=0.01)
    whole = make_optimizer(settings, 8, ((3, 0.02),))
    params: Any = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradients = [jax.tree.map(lambda x, n=n: jnp.full_like(x, 0.3 * n - 1), params) for n in range(8)]

    def steps(optimizer: Any, params: Any, gradients: Any) -> Any:
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    first = make_optimizer(dataclasses.replace(settings, learning_rate=0.02), 3)
    alone = steps(make_optimizer(settings, 5), steps(first, params, gradients[:3]), gradients[3:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), steps(whole, params, gradients), alone)
