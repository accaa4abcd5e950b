"""Which attention a call takes, and splash attention in interpret mode against the plain form."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.models.attention import attend
from distil_jax.models.dropout import row_keys
from distil_jax.models.flash_attention import AttentionShape, choose_attention, splash
from distil_jax.target import Device, target_device, traced_for

HOPPER, AMPERE, TURING = (Device("cuda", capability) for capability in ((9, 0), (8, 0), (7, 5)))
CPU, ROCM, TPU = Device("cpu"), Device("rocm"), Device("tpu")
BASE = AttentionShape(HOPPER, "bfloat16", 128, 64)


def on(device: Device, **changes: Any) -> AttentionShape:
    return dataclasses.replace(BASE, device=device, **changes)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (on(HOPPER), "cudnn"),
        (on(AMPERE), "cudnn"),
        (on(HOPPER, dtype="float16", length=512), "cudnn"),
        (on(HOPPER, head_width=256), "cudnn"),
        (on(AMPERE, head_width=256), "xla"),
        (on(HOPPER, head_width=36), "xla"),
        (on(HOPPER, dtype="float32"), "xla"),
        (on(HOPPER, length=33), "xla"),
        (on(TURING), "xla"),
        (on(ROCM), "xla"),
        (on(CPU), "xla"),
        (on(TPU, length=512), "splash"),
        (on(TPU, length=1024, dtype="float32"), "splash"),
        (on(TPU, length=128), "xla"),
        (on(TPU, length=520), "xla"),
    ],
    ids=str,
)
def test_auto_takes_what_works_and_pays(call: AttentionShape, expected: str) -> None:
    assert choose_attention("auto", call) == expected


@pytest.mark.parametrize(
    ("kind", "call", "reason"),
    [
        ("cudnn", on(CPU), "needs an NVIDIA GPU, and this is cpu"),
        ("cudnn", on(TURING), "compute capability 8.0, and this GPU has 7.5"),
        ("cudnn", on(HOPPER, dtype="float32"), "bfloat16, not in float32"),
        ("cudnn", on(AMPERE, head_width=160), "and these are 160"),
        ("cudnn", on(HOPPER, length=31), "and these have 31"),
        ("splash", on(HOPPER), "needs a TPU, and this is cuda"),
        ("splash", on(TPU, length=96), "multiple of 128 tokens, and these have 96"),
    ],
)
def test_what_cannot_be_forced_says_why(kind: str, call: AttentionShape, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        choose_attention(kind, call)
    assert "training.attention" in str(caught.value) and "\n" not in str(caught.value)


def test_what_works_can_be_forced() -> None:
    for call in (on(CPU), on(HOPPER), on(TPU), on(ROCM)):
        assert choose_attention("xla", call) == "xla"
    assert choose_attention("cudnn", on(HOPPER)) == "cudnn"
    assert choose_attention("splash", on(TPU)) == "splash", "also where auto would not"


def test_a_forced_kind_reaches_attention_and_dropout_does_without() -> None:
    """On this CPU: refused while tracing, before anything is compiled."""
    x = jnp.ones((2, 128, 2, 8))
    for kind in ("cudnn", "splash"):
        with pytest.raises(UserError, match=f"training.attention = '{kind}'"):
            jax.eval_shape(lambda kind=kind: attend(x, x, x, None, kind=kind))
        keys = row_keys(jax.random.key(0), jnp.arange(2))
        jax.eval_shape(
            lambda kind=kind, keys=keys: attend(x, x, x, None, kind=kind, dropout_keys=keys, dropout_rate=0.1)
        )


def test_cudnn_drops_out_by_itself_where_exact_bits_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU that is not here: the forward and the backward kernel have the layer's seed and the rate."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    x, mask = jnp.ones((2, 128, 4, 64), jnp.bfloat16), jnp.ones((2, 128), jnp.int32)
    keys = row_keys(jax.random.key(0), jnp.arange(2))

    def lowered(device: Device, rate: float, *, exact: bool) -> str:
        def total(x: Any) -> Any:
            options: Any = {"dropout_keys": keys, "dropout_site": 7, "dropout_rate": rate, "exact_dropout": exact}
            return attend(x, x, x, mask, **options).astype(jnp.float32).sum()

        with traced_for(device):
            return jax.jit(jax.grad(total)).trace(x).lower(lowering_platforms=(device.platform,)).as_text()

    kernels = re.findall(r"@__cudnn\$fmha(\w+)", text := lowered(HOPPER, 0.25, exact=False))
    assert kernels == ["ScaleBiasSoftmaxDropout", "ScaleBiasSoftmaxDropoutBackward"]
    settings = {name: re.findall(rf"{name}[^:]*: ([\d.]+)", text) for name in ("seed", "dropout_rate")}
    assert settings == {"seed": ["7", "7"], "dropout_rate": ["0.25", "0.25"]}
    assert "Dropout" not in lowered(HOPPER, 0.0, exact=False)
    assert "fmha" not in lowered(HOPPER, 0.25, exact=True)
    # Elsewhere nothing else is known that drops out: the exact form.
    for device in (TPU, TURING, CPU):
        assert lowered(device, 0.25, exact=False) == lowered(device, 0.25, exact=True)


def test_this_device_is_the_cpu() -> None:
    assert target_device() == CPU
    with traced_for(TPU):
        assert target_device() == TPU
    assert target_device() == CPU


def rows(length: int) -> np.ndarray:
    """Two packed rows, the first without padding, the second with."""
    found = np.zeros((2, length), np.int32)
    found[0, :50], found[0, 50:] = 1, 2
    found[1, :30], found[1, 30:100] = 1, 2
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["one sequence", "packed"])
def test_splash_attention_is_attention(packed: bool) -> None:
    """Outputs of real queries and all gradients, which padding has no part in."""
    random = np.random.default_rng(0)
    query, key, value, weights = (random.standard_normal((2, 128, 2, 64)).astype(np.float32) for _ in range(4))
    sequences = rows(128) if packed else np.ones((2, 128), np.int32)
    weights = jnp.asarray(weights * (sequences > 0)[:, :, None, None])
    mask = jnp.asarray(sequences) if packed else None

    def plain(query: Any, key: Any, value: Any) -> Any:
        return (attend(query, key, value, mask, kind="xla") * weights).sum()

    def tiled(query: Any, key: Any, value: Any) -> Any:
        return (splash(query, key, value, mask, interpret=True) * weights).sum()

    arrays = [jnp.asarray(x) for x in (query, key, value)]
    expected, expected_gradients = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2)))(*arrays)
    found, gradients = jax.jit(jax.value_and_grad(tiled, argnums=(0, 1, 2)))(*arrays)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    for result, reference in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(result, reference, atol=2e-5)


def test_splash_attention_of_a_row_of_padding_stays_finite() -> None:
    arrays = [jnp.asarray(x) for x in np.random.default_rng(1).standard_normal((3, 1, 128, 2, 64)).astype(np.float32)]
    padding = jnp.zeros((1, 128), jnp.int32)

    def total(query: Any, key: Any, value: Any) -> Any:
        return splash(query, key, value, padding, interpret=True).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
