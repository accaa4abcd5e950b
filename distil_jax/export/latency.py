"""How long one sentence takes: latency at batch size 1."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.models import EncoderConfig, MaskedLM


def encoder_latency(encoder: EncoderConfig, params: dict[str, Any], *, length: int = 64, repeats: int = 50) -> float:
    """Median milliseconds of one forward pass of the encoder over one row of `length` tokens, after compilation.

    A model with fewer positions gets a row of that many.
    """
    module = MaskedLM(encoder)
    forward = jax.jit(lambda params, ids: module.apply({"params": params}, ids, method="encode"))
    placed = jax.device_put(params)
    length = min(length, encoder.max_length)
    ids = jnp.asarray(np.arange(length)[None] % encoder.vocab_size, jnp.int32)
    jax.block_until_ready(forward(placed, ids))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(placed, ids))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)
