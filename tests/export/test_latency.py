"""The latency is the median of the passes after the first, in milliseconds."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

from distil_jax.export.latency import encoder_latency
from distil_jax.models import EncoderConfig, MaskedLM


def test_median_of_the_passes_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EncoderConfig("distilbert", 20, 8, 1, 2, 8, 16)
    params = jax.jit(MaskedLM(config).init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    durations = [0.005, 0.001, 0.1, 0.002, 0.003]
    moments = iter(np.cumsum([gap for duration in durations for gap in (1.0, duration)]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    found = encoder_latency(config, params, length=8, repeats=len(durations))
    monkeypatch.undo()
    assert found == pytest.approx(3.0)
    assert next(moments, None) is None, "a pass was not measured"


def test_the_length_is_at_most_what_the_model_has_positions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EncoderConfig("distilbert", 20, 8, 1, 2, 8, 16)
    params = jax.jit(MaskedLM(config).init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    shapes = []
    whole = MaskedLM.encode

    def noted(self: MaskedLM, ids: jax.Array) -> jax.Array:
        shapes.append(ids.shape)
        return whole(self, ids)

    monkeypatch.setattr(MaskedLM, "encode", noted)
    encoder_latency(config, params, length=64, repeats=1)
    assert shapes == [(1, 16)]
