"""Sums and gradients of a chunk against automatic differentiation of the plain losses."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.objectives.losses import cross_entropy, distillation_kl, logit_mse
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions, logits_of, loss_and_dlogits, loss_sums

POSITIONS, VOCAB = 6, 11
NOISE = np.random.default_rng(0)
LOGITS: Any = NOISE.standard_normal((2, POSITIONS, VOCAB)).astype(np.float32) * 3
TARGETS: Any = NOISE.integers(0, VOCAB, POSITIONS).astype(np.int32)
WEIGHTS = {
    "kl": jnp.asarray([1.0, 1, 0, 1, 1, 0.5]),
    "mlm": jnp.asarray([1.0, 0, 0, 1, 0, 1]),
    "logit_mse": jnp.asarray([0.0, 1, 1, 1, 0, 1]),
}
COEFFICIENTS = {"kl": 0.7, "mlm": 0.3, "logit_mse": 0.01}
SUBSETS = [names for size in (1, 2, 3) for names in itertools.combinations(WEIGHTS, size)]


def layer(logits: Any) -> OutputLayer:
    """An output layer with these logits: the table is the identity."""
    return OutputLayer(jnp.asarray(logits), jnp.eye(VOCAB), jnp.zeros(VOCAB))


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0])
def test_sums_and_gradients_are_those_of_the_plain_losses(terms: tuple[str, ...], temperature: float) -> None:
    positions = Positions({name: WEIGHTS[name] for name in terms}, TARGETS if "mlm" in terms else None)
    coefficients = {name: jnp.float32(COEFFICIENTS[name]) for name in terms}
    teacher = None if terms == ("mlm",) else layer(LOGITS[1])
    plain = {
        "kl": lambda logits: distillation_kl(logits, LOGITS[1], WEIGHTS["kl"], temperature).sum,
        "mlm": lambda logits: cross_entropy(logits, TARGETS, WEIGHTS["mlm"]).sum,
        "logit_mse": lambda logits: logit_mse(logits, LOGITS[1], WEIGHTS["logit_mse"]).sum,
    }
    gradient = jax.grad(lambda logits: sum(coefficients[name] * plain[name](logits) for name in terms))(LOGITS[0])
    sums, dlogits = jax.jit(loss_and_dlogits, static_argnums=4)(
        layer(LOGITS[0]), teacher, positions, coefficients, temperature
    )
    np.testing.assert_allclose(dlogits, gradient, rtol=1e-4, atol=1e-6)
    expected = {name: float(plain[name](LOGITS[0])) for name in terms}
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-5)
    alone = loss_sums(layer(LOGITS[0]), teacher, positions, temperature)
    assert {name: float(value) for name, value in alone.items()} == pytest.approx(expected, rel=1e-5)


def test_gradients_have_the_dtype_of_the_hidden_states() -> None:
    half = layer(LOGITS[0])._replace(hidden=jnp.asarray(LOGITS[0], jnp.bfloat16))
    positions = Positions({"mlm": WEIGHTS["mlm"]}, TARGETS)
    sums, dlogits = loss_and_dlogits(half, None, positions, {"mlm": jnp.ones(())}, 1.0)
    assert dlogits.dtype == jnp.bfloat16 and sums["mlm"].dtype == logits_of(half).dtype == jnp.float32
