"""Operations per token against hand-made figures and the compiler's count; peaks of devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from distil_jax.models import EncoderConfig
from distil_jax.training.flops import (
    distillation_flops,
    encoder_flops,
    head_flops,
    peak_flops,
    pretraining_flops,
    utilisation,
)

BASE = EncoderConfig("bert", 30522, 768, 12, 12, 3072)


def test_work_per_token_of_base_size() -> None:
    """Figures worked out by hand from the weights' shapes, in millions of operations."""
    teacher, student = BASE, dataclasses.replace(BASE, num_layers=6)
    assert round((encoder_flops(teacher, 128) + head_flops(teacher)) / 1e6) == 223
    assert round(pretraining_flops(student, 128) / 1e6) == 406
    assert round(distillation_flops(teacher, student, 128) / 1e6) == 629
    assert round(distillation_flops(teacher, student, 512) / 1e6) == 664


def test_work_per_token_is_what_the_compiler_counts() -> None:
    """A forward pass written with the plain products of one layer and the head, counted by XLA."""
    length, width, inner, vocab = 64, 128, 512, 2048

    def forward(x: jax.Array, w: jax.Array, up: jax.Array, down: jax.Array, table: jax.Array) -> jax.Array:
        query, key, value = x @ w, x @ w.T, x @ (w + 1)
        x = ((query @ key.T) @ value) @ (w + 2)
        x = (x @ up) @ down
        return (x @ (w + 3)) @ table

    shapes = [(length, width), (width, width), (width, inner), (inner, width), (width, vocab)]
    cost = jax.jit(forward).lower(*(jnp.ones(shape) for shape in shapes)).compile().cost_analysis()
    sizes = EncoderConfig("bert", vocab, width, 1, 1, inner)
    counted = cost["flops"] / length  # type: ignore[index]
    assert counted == pytest.approx(encoder_flops(sizes, length) + head_flops(sizes), rel=0.01)


def test_a_frozen_encoder_has_no_backward_pass() -> None:
    sizes = BASE
    saved = pretraining_flops(sizes, 128) - pretraining_flops(sizes, 128, freeze_encoder=True)
    assert saved == 2 * encoder_flops(sizes, 128)


def test_peaks_by_device_kind() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA L40") is None and peak_flops("NVIDIA L4") == 121e12
    assert peak_flops(jax.devices()[0].device_kind) is None  # a CPU
    assert utilisation(1e6, 100e6, 2, "TPU v5 lite", "bfloat16") == pytest.approx(1e14 / (2 * 197e12))
    assert utilisation(1e6, 100e6, 2, "cpu", "bfloat16") is None
