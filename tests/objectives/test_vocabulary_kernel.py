"""The kernel of the losses over the vocabulary in interpret mode against XLA's form, and lowered for a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.models.flash_attention import Device
from distil_jax.objectives import vocabulary_kernel, vocabulary_terms
from distil_jax.objectives.vocabulary import fused_vocabulary_loss
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions

TOKENS, VOCAB = 6, 2 * 2048 + 37  # two blocks and a part of one
COEFFICIENTS = {"kl": 0.7, "mlm": 0.3, "logit_mse": 0.001}
interpreted: Any = partial(vocabulary_kernel.loss_and_dlogits, interpret=True)


def make_layer(seed: int, width: int, dtype: Any = jnp.float32, vocabulary: int = VOCAB) -> OutputLayer:
    noise = np.random.default_rng(seed)
    hidden, table, bias = (
        noise.standard_normal(shape) for shape in ((TOKENS, width), (vocabulary, width), (vocabulary,))
    )
    return OutputLayer(jnp.asarray(hidden, dtype), jnp.asarray(table, jnp.float32), jnp.asarray(bias, jnp.float32))


def make_case(terms: Any = tuple(COEFFICIENTS), dtype: Any = jnp.float32, vocabulary: int = VOCAB) -> tuple[Any, ...]:
    """Student, teacher, positions, one of them of weight 0, and coefficients."""
    weights = jnp.asarray([1, 1, 0, 0.5, 1, 1], jnp.float32)
    targets = jnp.asarray([0, vocabulary - 1, 5, 2047, 2048, 7], jnp.int32) % vocabulary
    layers = make_layer(1, 8, dtype, vocabulary), make_layer(2, 12, dtype, vocabulary)
    coefficients = {name: jnp.float32({**COEFFICIENTS, "clm": 0.3}[name]) for name in terms}
    return *layers, Positions(dict.fromkeys(terms, weights), targets), coefficients


def check(case: tuple[Any, ...], temperature: float = 2.0) -> None:
    (sums, slopes), (expected, expected_slopes) = (
        jax.jit(lambda *case, form=form: form(*case, temperature))(*case)
        for form in (interpreted, vocabulary_terms.loss_and_dlogits)
    )
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=2e-6
    )
    assert slopes.dtype == expected_slopes.dtype and slopes.shape == expected_slopes.shape
    found, wanted = (np.asarray(each, np.float64) for each in (slopes, expected_slopes))
    tolerance = 1e-5 if slopes.dtype == jnp.float32 else 1e-2
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    "terms",
    [("kl",), ("mlm",), ("logit_mse",), ("kl", "mlm"), ("kl", "logit_mse"), ("kl", "mlm", "logit_mse"), ("clm",)],
    ids="+".join,
)
def test_every_loss_and_their_sums(terms: tuple[str, ...]) -> None:
    check(make_case(terms))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperatures(temperature: float) -> None:
    check(make_case(("kl", "mlm")), temperature)


@pytest.mark.parametrize("vocabulary", [16, 2048, 2049])
def test_vocabularies_shorter_than_a_block_and_of_whole_blocks(vocabulary: int) -> None:
    check(make_case(vocabulary=vocabulary))


def test_bfloat16() -> None:
    check(make_case(("kl", "mlm"), jnp.bfloat16))


def test_extreme_and_equal_logits() -> None:
    student, _, positions, coefficients = make_case(("kl", "mlm"))
    check((student._replace(bias=student.bias * 1e4), student, positions, coefficients))
    sums, slopes = interpreted(student, student, positions, coefficients | {"mlm": jnp.float32(0)}, 2.0)
    assert float(sums["kl"]) == 0 and float(jnp.abs(slopes).max()) < 1e-8


def test_small_losses_keep_their_digits_where_logits_are_large() -> None:
    """The targets are the likeliest tokens, at 10,000 above the others: what is left is log(1 + a rest)."""
    student, _, positions, coefficients = make_case(("mlm",))
    bias = student.bias.at[0].set(1e4).at[1].set(1e4 - 12)
    student = student._replace(hidden=student.hidden * 0, bias=bias)
    positions = positions._replace(targets=positions.targets * 0)
    sums, _ = interpreted(student, None, positions, coefficients, 2.0)
    assert float(sums["mlm"]) == pytest.approx(4.5 * np.log1p(np.exp(-12.0)), rel=1e-2)


def test_labels_need_no_teacher() -> None:
    student, _, positions, coefficients = make_case(("mlm",))
    check((student, None, positions, coefficients))


def test_the_loss_is_the_fused_one_in_chunks_and_with_a_gradient() -> None:
    student, *rest = make_case()
    forms = (vocabulary_terms.loss_and_dlogits, interpreted)
    expected, found = (
        jax.jit(
            jax.value_and_grad(
                lambda s, r, form=form: fused_vocabulary_loss(s, *r, temperature=2.0, chunk=4, differentiate=form),
                has_aux=True,
            )
        )(student, rest)
        for form in forms
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_lowered_for_nvidia_gpus(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's part of it: operations that it lacks, or shapes that it refuses, would show here."""
    monkeypatch.setattr(vocabulary_kernel, "this_device", lambda: Device("cuda", (9, 0)))
    student, teacher, positions, coefficients = make_case(dtype=dtype, vocabulary=30_522)
    form = jax.jit(lambda *case: vocabulary_kernel.loss_and_dlogits(*case, temperature=2.0))
    text = form.trace(student, teacher, positions, coefficients).lower(lowering_platforms=("cuda",)).as_text()
    assert "vocabulary_terms" in text and "triton" in text


@pytest.mark.parametrize(
    ("device", "found"),
    [(Device("cpu"), "this is cpu"), (Device("rocm"), "this is rocm"), (Device("cuda", (7, 5)), "this is one of 7.5")],
)
def test_other_devices_are_told(device: Device, found: str) -> None:
    with pytest.raises(UserError, match=found) as caught:
        vocabulary_kernel.require_device(device)
    assert "objective.vocabulary" in str(caught.value) and "\n" not in str(caught.value)
    vocabulary_kernel.require_device(Device("cuda", (8, 0)))


def test_the_cpu_is_refused_when_a_loss_is_traced() -> None:
    with pytest.raises(UserError, match="use 'fused'"):
        vocabulary_kernel.loss_and_dlogits(*make_case(), temperature=2.0)
