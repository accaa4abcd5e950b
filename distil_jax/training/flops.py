"""Floating-point operations per token by formula, the peaks of known devices, and the utilisation that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig


def encoder_flops(sizes: EncoderConfig, sequence_length: int) -> float:
    """Forward operations of the layers, per token: a multiplication and an addition are two.

    A layer has 4 H A (query, key, value, output; A is H unless heads were pruned) + 2 H F (feed-forward) weights, each
    used once a token, and two products, [L, A] with [A, L] (scores) and [L, L] with [L, A] (values): 2 L A
    multiplications a token. Embeddings,
    LayerNorms, softmax and activations are left out, as is usual (PaLM, arXiv 2204.02311, appendix B).
    """
    width, heads, inner = sizes.hidden_size, sizes.attention_width, sizes.intermediate_size
    return 2.0 * sizes.num_layers * (4 * width * heads + 2 * width * inner + 2 * sequence_length * heads)


def head_flops(sizes: EncoderConfig) -> float:
    """Forward operations of the MLM head (H x E transform, E x V decoder; E is H but in ELECTRA), per token."""
    return 2.0 * sizes.embedding_width * (sizes.hidden_size + sizes.vocab_size)


def pretraining_flops(
    sizes: EncoderConfig, sequence_length: int, *, freeze_encoder: bool = False, head_share: float = 1.0
) -> float:
    """Operations per token of an MLM training step: backward is twice forward; a frozen encoder has no backward.

    `head_share` is the share of the tokens that go through the head.
    """
    encoder = encoder_flops(sizes, sequence_length) * (1 if freeze_encoder else 3)
    return encoder + 3 * head_share * head_flops(sizes)


def distillation_flops(
    teacher: EncoderConfig, student: EncoderConfig, sequence_length: int, *, head_share: float = 1.0
) -> float:
    """Operations per token of a distillation step: teacher forward, student forward and backward."""
    forward = encoder_flops(teacher, sequence_length) + head_share * head_flops(teacher)
    return forward + pretraining_flops(student, sequence_length, head_share=head_share)


# Dense peaks in operations a second, from the vendors' data sheets, one device as JAX counts them: (bfloat16, float32).
# NVIDIA float32 is TF32, which XLA uses by default; TPUs multiply float32 in bfloat16 passes by default.
_PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA B200": (2250e12, 1125e12),
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100 NVL": (835e12, 417e12),
    "NVIDIA H100": (989e12, 494e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA L40S": (362e12, 183e12),
    "NVIDIA L4": (121e12, 60e12),
    "NVIDIA A10G": (70e12, 35e12),
    "TPU v2": (22.5e12, 22.5e12),
    "TPU v3": (61.5e12, 61.5e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6": (918e12, 918e12),
    "TPU v6e": (918e12, 918e12),
}


def peak_flops(device_kind: str, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> float | None:
    """Dense operations a second of a device by JAX's `device_kind`; None where it is not known (every CPU)."""
    known = [name for name in _PEAKS if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return _PEAKS[max(known, key=len)][0 if dtype == "bfloat16" else 1] if known else None


def utilisation(
    tokens_per_second: float,
    flops_per_token: float,
    devices: int,
    device_kind: str,
    dtype: Literal["bfloat16", "float32"],
) -> float | None:
    """Model FLOP utilisation, 0 to 1: work the formula asks for over what all devices could do; None if not known."""
    peak = peak_flops(device_kind, dtype)
    return None if peak is None else tokens_per_second * flops_per_token / (devices * peak)
