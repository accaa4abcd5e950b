"""One switch turns off every form; the numbers stay the same to rounding, and no other platform has any."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.cpu import SWITCH, forms_apply, is_on
from distil_jax.models import EncoderConfig, EncoderInputs, MaskedLM, row_keys
from distil_jax.objectives.vocabulary import fused_vocabulary_loss
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions

CONFIG = EncoderConfig("bert", 40, 12, 2, 3, 20, 16, type_vocab_size=2)
TERMS = ("kl", "mlm")
IDS: Any = np.random.default_rng(0).integers(5, 40, (2, 10)).astype(np.int32)


def test_zero_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert is_on() and forms_apply()
    monkeypatch.setenv(SWITCH, "0")
    assert not is_on() and not forms_apply()
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert is_on() and not forms_apply()


def test_a_step_computes_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of packed rows with dropout; the programs differ, and the plain one has none of the forms."""
    params = jax.jit(MaskedLM(CONFIG).init)(jax.random.key(0), IDS)["params"]
    sequences = jnp.asarray([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    inputs = EncoderInputs(IDS, sequences, dropout_keys=row_keys(jax.random.key(1), jnp.arange(2)))
    teacher = OutputLayer(jnp.full((20, 4), 0.3), jnp.ones((40, 4)), jnp.arange(40.0))
    positions = Positions({name: jnp.ones(20) for name in TERMS}, jnp.asarray(IDS.reshape(-1)))

    def loss(params: Any) -> Any:
        hidden: Any = MaskedLM(CONFIG).apply({"params": params}, inputs, method="encode")
        factors: Any = MaskedLM(CONFIG).apply({"params": params}, hidden.reshape(20, -1), method="mlm_hidden_and_table")
        coefficients = {name: jnp.float32(0.5) for name in TERMS}
        return fused_vocabulary_loss(OutputLayer(*factors), teacher, positions, coefficients, temperature=2.0, chunk=8)[
            0
        ]

    found = {}
    for value in ("1", "0"):
        monkeypatch.setenv(SWITCH, value)
        step = jax.value_and_grad(partial(loss))
        found[value] = jax.jit(step)(params), str(jax.make_jaxpr(step)(params))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found["1"][0], found["0"][0]
    )
    assert "reduce_precision" in found["1"][1] and "reduce_precision" not in found["0"][1]


def test_the_package_does_not_import_jax() -> None:
    """`distil-jax` restarts itself before JAX reads its settings."""
    code = (
        "import sys; from distil_jax.cpu import restart_for_cpu, tpu_files, memory_in_use; print('jax' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
