"""Flash attention of devices that have it: which one a shape can use, and the calls.

cuDNN's (Dao et al. 2022, by way of `jax.nn.dot_product_attention`) for CUDA, JAX's splash attention in Pallas for TPU.
What they compute is tested in interpret mode (splash) or not at all here (cuDNN): no such device was at hand.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.errors import UserError
from distil_jax.target import Device

# Below this the scores of a head fit into a TPU's fast memory whatever computes them: compiled for v5e, it saves little
# at 128 tokens and more at 512 (benchmarks/RESULTS.md).
SPLASH_FROM = 512
_LANES = 128  # of a TPU's vector registers: splash attention works on tiles of this many tokens
_TILES = (512, 256, _LANES)
_BIASED = "has no biases of relative positions, and this encoder has them"


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """What decides which code computes attention: device, dtype by name, tokens a row, width of a head, a bias."""

    device: Device
    dtype: str
    length: int
    head_width: int
    is_biased: bool = False


def choose_attention(kind: str, shape: AttentionShape) -> str:
    """The form that computes attention of this shape: "xla", "cudnn" or "splash".

    Raises:
        UserError: `kind` is one that can't.
    """
    if kind == "auto":
        if not _why_not_cudnn(shape):
            return "cudnn"
        return "splash" if not _why_not_splash(shape) and shape.length >= SPLASH_FROM else "xla"
    reason = {"cudnn": _why_not_cudnn, "splash": _why_not_splash}.get(kind, lambda _: "")(shape)
    if reason:
        raise UserError(f"training.attention = {kind!r}: {reason}; use 'auto'")
    return kind


def _why_not_cudnn(shape: AttentionShape) -> str:
    """What cuDNN's attention lacks for this shape; "" if nothing (its conditions as of cuDNN 9)."""
    if shape.is_biased:
        return _BIASED
    device = shape.device
    if device.platform != "cuda":
        return f"needs an NVIDIA GPU, and this is {device.platform}"
    if device.capability < (8, 0):
        return f"needs compute capability 8.0, and this GPU has {device.capability[0]}.{device.capability[1]}"
    if shape.dtype not in ("bfloat16", "float16"):
        return f"computes in bfloat16, not in {shape.dtype} (training.compute_dtype)"
    widest = 256 if device.capability >= (9, 0) else 128
    if shape.head_width % 8 or shape.head_width > widest:
        return f"takes heads of 8, 16, ... {widest} wide, and these are {shape.head_width}"
    if shape.length % 2:
        return f"takes rows of an even number of tokens, and these have {shape.length}"
    return ""


def _why_not_splash(shape: AttentionShape) -> str:
    """What splash attention lacks for this shape; "" if nothing."""
    if shape.is_biased:
        return _BIASED
    if shape.device.platform != "tpu":
        return f"needs a TPU, and this is {shape.device.platform}"
    if shape.length % _LANES:
        return f"takes rows of a multiple of {_LANES} tokens, and these have {shape.length}"
    return ""


def cudnn(query: Array, key: Array, value: Array, allowed: Array | None, seed: int, dropout_rate: float) -> Array:
    """cuDNN's attention: query, key, value [B, L, N, D], allowed [B, 1, L, L] bool -> [B, L, N, D].

    Its dropout is a function of `seed` and of how often the process called the kernel of this seed. So every layer
    needs a seed of its own, and none may be computed twice for its gradients: both passes would draw apart.
    """
    if not dropout_rate:
        return jax.nn.dot_product_attention(query, key, value, mask=allowed, implementation="cudnn")
    # The public function has no dropout (jax 0.10 to 0.12).
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    scale = 1.0 / math.sqrt(query.shape[-1])
    drops: Any = {"seed": seed, "dropout_rate": dropout_rate}
    mixed: Any = dot_product_attention(query, key, value, mask=allowed, scale=scale, **drops)
    return mixed


def splash(query: Array, key: Array, value: Array, mask: Array | None, *, interpret: bool = False) -> Array:
    """Splash attention: query, key, value [B, L, N, D], mask [B, L] as in `EncoderInputs` -> [B, L, N, D].

    Padding is one more sequence here: its queries see padding, no real query does. L is a multiple of 128;
    `interpret` computes it without a TPU, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    kernel = _splash_kernel(query.shape[1], query.shape[2], interpret)
    query = query * jnp.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    heads_first = jnp.swapaxes(query, 1, 2), jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    if mask is None:
        mixed = jax.vmap(kernel)(*heads_first)
    else:
        segments = SegmentIds(q=mask, kv=mask)
        mixed = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(*heads_first, segments)
    return jnp.swapaxes(mixed, 1, 2)


@lru_cache(maxsize=32)
def _splash_kernel(length: int, heads: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        make_splash_mha,
    )

    tile = next(size for size in _TILES if length % size == 0)
    mask = MultiHeadMask([FullMask((length, length)) for _ in range(heads)])
    blocks = BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    with jax.ensure_compile_time_eval():  # its tables are constants, kept for the next trace
        return make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret)
