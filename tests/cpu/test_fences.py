"""What the fences are for, read from compiled programs, and that they change nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.cpu import SWITCH, materialize, no_fuse, order_after
from distil_jax.models.attention import attend
from distil_jax.models.layers import softmax
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions, loss_and_dlogits

POSITIONS, WIDTH, VOCAB = 128, 128, 256  # smaller products XLA does not hand to YNNPACK


def computations(function: Callable[..., Any], *arguments: Any) -> dict[str, set[str]]:
    """Operations of each computation of the compiled program but the one that calls them, by the computation's head."""

    def traced_again(*arguments: Any) -> Any:
        return function(*arguments)

    text = jax.jit(traced_again).lower(*arguments).compile().as_text()
    assert text is not None
    parts = [part.strip() for part in text.split("\n\n") if not part.strip().startswith("ENTRY")]
    return {part.splitlines()[0]: set(re.findall(r" = \S+ ([a-z-]+)\(", part)) for part in parts if "{" in part}


def of_shape(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dlogits(hidden: Any, table: Any, bias: Any) -> Any:
    layer, weights = OutputLayer(hidden, table, bias), jnp.ones(POSITIONS)
    positions = Positions({"kl": weights, "mlm": weights}, jnp.zeros(POSITIONS, jnp.int32))
    coefficients = {name: jnp.ones(()) for name in positions.weights}
    return loss_and_dlogits(layer, layer, positions, coefficients, 2.0)


def programs_of_logits() -> dict[str, set[str]]:
    return computations(dlogits, of_shape(POSITIONS, WIDTH), of_shape(VOCAB, WIDTH), of_shape(VOCAB))


def programs_of_softmax() -> dict[str, set[str]]:
    """The backward pass alone."""
    scores = of_shape(2, 4, 128, 128)
    pull = jax.eval_shape(lambda x: jax.vjp(softmax, x)[1], scores)
    return computations(lambda pull, gradient: pull(gradient), pull, scores)


@pytest.mark.parametrize(
    ("programs", "fused"),
    [(programs_of_logits, {"dot", "reduce"}), (programs_of_softmax, {"reduce", "subtract"})],
    ids=["logits", "softmax"],
)
def test_products_and_reductions_stay_separate(
    monkeypatch: pytest.MonkeyPatch, programs: Callable[[], dict[str, set[str]]], fused: set[str]
) -> None:
    assert not any(fused <= found for found in programs().values())
    monkeypatch.setenv(SWITCH, "0")
    if not any(fused <= found for found in programs().values()):
        pytest.skip("this XLA does not fuse them without the fence either")


def test_the_mask_of_packed_rows_is_no_work_in_the_loops_over_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards and backwards; without the fence it is."""
    rows, length, heads, width = 2, 7, 3, 4

    def loss(query: Any, key: Any, value: Any, ids: Any) -> Any:
        return (attend(query, key, value, jnp.cumsum(ids == 3, axis=1)) ** 2).sum()

    def integers_in_loops() -> list[str]:
        arguments = [*[of_shape(rows, length, heads, width)] * 3, np.full((rows, length), 3, np.int32)]
        found = computations(jax.grad(loss, argnums=(0, 1)), *arguments)
        scores = [head for head in found if f"[{rows},{heads},{length},{length}]" in head]
        assert scores
        return [head for head in scores if "s32[" in head]

    assert not integers_in_loops()
    monkeypatch.setenv(SWITCH, "0")
    assert integers_in_loops()


@pytest.mark.parametrize("value", ["1", "0"])
def test_no_number_changes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(SWITCH, value)
    # `partial`, as JAX would not trace the same function again for the other setting.
    special = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 3.4028235e38, 1 / 3], jnp.float32)
    for dtype, bits in ((jnp.float32, jnp.uint32), (jnp.bfloat16, jnp.uint16)):
        x = special.astype(dtype)
        np.testing.assert_array_equal(np.asarray(jax.jit(partial(no_fuse))(x)).view(bits), np.asarray(x).view(bits))
    mask = jnp.asarray([True, False])
    np.testing.assert_array_equal(jax.jit(partial(materialize))(mask), mask)
    for first in (np.nan, np.inf, -np.inf, 0.0):
        found = jax.jit(partial(order_after))(special, jnp.float32(first))
        np.testing.assert_array_equal(found, special)
        assert jax.jit(partial(order_after))(special.astype(jnp.bfloat16), jnp.float32(first)).dtype == jnp.bfloat16
    assert ("reduce_precision" in str(jax.make_jaxpr(partial(no_fuse))(special))) == (value == "1")
