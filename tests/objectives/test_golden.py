"""The triple loss and its gradient against values computed by the original distillation code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Objective
from distil_jax.hf import FAMILIES, read_pretrained, read_tensors
from distil_jax.hf.names import leaves
from distil_jax.models import EncoderInputs, MaskedLM
from distil_jax.objectives import MicroBatch, Totals, objective_loss

# The original's names of the terms, and those here.
NAMES = {"ce": "kl", "mlm": "mlm", "cos": "cosine", "mse": "logit_mse"}
ORIGINAL = {name: original for original, name in NAMES.items()}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Any:
    folder = shared / "goldens" / "triple_loss"
    return {
        "losses": json.loads((folder / "losses.json").read_text()),
        "batch": dict(np.load(folder / "batch.npz")),
        "student": read_pretrained(folder / "student")[:2],
        "teacher": read_pretrained(folder / "teacher")[:2],
        "gradients": folder / "student_grads.safetensors",
    }


def as_micro_batch(batch: dict[str, np.ndarray], keys: dict[str, str]) -> tuple[MicroBatch, Totals]:
    """The golden batch with its labels as (positions, targets, weights) of the most masked row's length."""
    ids, mask, labels = (batch[keys[name]].astype(np.int32) for name in ("ids", "mask", "labels"))
    count = int((labels >= 0).sum(1).max())
    order = np.argsort(labels < 0, axis=1, kind="stable")[:, :count].astype(np.int32)
    targets = np.take_along_axis(labels, order, 1)
    weights = (targets >= 0).astype(np.float32)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32)[None], ids.shape)
    arrays: Any = [jnp.asarray(x) for x in (ids, mask, positions, order, np.maximum(targets, 0), weights)]
    totals = Totals(jnp.float32(mask.sum()), jnp.float32(weights.sum()), jnp.float32(mask.max(-1).sum()))
    return MicroBatch(EncoderInputs(*arrays[:3]), *arrays[3:]), totals


@pytest.mark.parametrize("vocabulary", ["fused", "plain"])
@pytest.mark.parametrize("variant", ["all_tokens", "masked_only"])
def test_losses_and_gradients_match_the_original(golden: Any, variant: str, vocabulary: Any) -> None:
    expected, alphas = golden["losses"]["losses"][variant], golden["losses"]["alphas"]
    objective = Objective(
        temperature=golden["losses"]["temperature"],
        restrict_kl_to_mask=variant == "masked_only",
        vocabulary=vocabulary,
        **{NAMES[name]: value for name, value in alphas.items() if name in NAMES},
    )
    keys = {"ids": "input_ids", "mask": "attention_mask", "labels": "labels"}
    micro, totals = as_micro_batch(golden["batch"], keys)
    (student_config, student_params), (teacher_config, teacher_params) = golden["student"], golden["teacher"]
    student, teacher = MaskedLM(student_config), MaskedLM(teacher_config)

    def total(params: Any) -> Any:
        return objective_loss(objective, student, params, teacher, teacher_params, micro, totals)

    (value, sums), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(student_params)
    for name, term in sums.items():
        assert float(term.mean) == pytest.approx(expected[ORIGINAL[name]], rel=1e-5), name
    assert float(value) == pytest.approx(expected["total"], rel=1e-5)
    if variant == "all_tokens":
        compare_gradients(student_config, gradients, golden["gradients"])


def compare_gradients(config: Any, gradients: Any, file: Path) -> None:
    from safetensors.numpy import load_file

    stored = load_file(file)
    whole = np.sqrt(sum(np.sum(tensor.astype(np.float64) ** 2) for tensor in stored.values()))
    for leaf in leaves(config, mlm_head=True):
        found: Any = gradients
        for part in leaf.path:
            found = found[part]
        found = np.asarray(found).T if leaf.transpose else np.asarray(found)
        want = stored[leaf.stored_name(FAMILIES[config.family].prefix)]
        if "key" in leaf.path and "bias" in leaf.path:
            # Softmax does not see a shift of all keys: this gradient is zero, and both sides hold rounding noise.
            assert max(np.linalg.norm(found), np.linalg.norm(want)) < 1e-7 * whole, leaf.name
            continue
        error = np.linalg.norm(found - want) / np.linalg.norm(want)
        assert error < 1e-4, f"{leaf.name}: {error:.2e}"


def test_logits_and_hidden_states_match_the_original(golden: Any) -> None:
    batch = golden["batch"]
    mask = batch["attention_mask"].astype(bool)
    for role in ("student", "teacher"):
        config, params = golden[role]
        module = MaskedLM(config)
        ids = jnp.asarray(batch["input_ids"].astype(np.int32))
        logits = module.apply({"params": params}, ids, jnp.asarray(mask.astype(np.int32)))
        np.testing.assert_allclose(np.asarray(logits)[mask], batch[f"{role}_logits"][mask], atol=1e-5)
        hidden = module.apply({"params": params}, ids, jnp.asarray(mask.astype(np.int32)), method="encode")
        np.testing.assert_allclose(np.asarray(hidden)[mask], batch[f"{role}_hidden"][mask], atol=1e-5)


def test_the_golden_files_are_read_whole(golden: Any, shared: Path) -> None:
    assert len(read_tensors(shared / "goldens" / "triple_loss" / "student")) > 30
