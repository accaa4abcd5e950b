"""The same numbers as PyTorch from the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.hf import from_pretrained
from distil_jax.models import EncoderConfig

# Odd widths and head counts, one layer and several; initialised wide so that logits are of order one and attention
# is far from uniform.
SIZES = {
    "one_head": ("BertForMaskedLM", {"num_attention_heads": 1, "num_hidden_layers": 1}),
    "three_heads": ("BertForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "wide": ("BertForMaskedLM", {"hidden_size": 70, "num_attention_heads": 7, "intermediate_size": 33}),
    "multilingual": ("BertForMaskedLM", {"vocab_size": 119547, "num_hidden_layers": 1}),
    "distil": ("DistilBertForMaskedLM", {"n_layers": 3}),
    "roberta": ("RobertaForMaskedLM", {"layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    "roberta_other_padding": ("RobertaForMaskedLM", {"pad_token_id": 3, "num_hidden_layers": 3}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", {}),
    "camembert": ("CamembertForMaskedLM", {}),
    "mpnet": ("MPNetForMaskedLM", {"layer_norm_eps": 1e-5}),
    "mpnet_long": ("MPNetForMaskedLM", {"max_position_embeddings": 302, "num_attention_heads": 4}),
    "electra": ("ElectraForMaskedLM", {"embedding_size": 7}),
    "electra_wide": ("ElectraForMaskedLM", {"embedding_size": 12, "layer_norm_eps": 1e-5}),
    "distil_five": ("DistilBertForMaskedLM", {"dim": 40, "n_heads": 5, "activation": "relu"}),
}


def _batch(config: EncoderConfig, rng: np.random.Generator, token_types: bool) -> dict[str, np.ndarray]:
    shape = (3, config.max_length)
    mask = np.arange(shape[1])[None] < np.array([[shape[1]], [7], [1]])
    batch = {"ids": rng.integers(0, config.vocab_size, shape).astype(np.int32), "attention_mask": mask.astype(np.int32)}
    if token_types:
        batch["token_type_ids"] = rng.integers(0, config.type_vocab_size, shape).astype(np.int32)
    return batch


def _torch_inputs(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    names = {"ids": "input_ids"}
    return {names.get(name, name): torch.from_numpy(values).long() for name, values in batch.items()}


@pytest.mark.parametrize("size", SIZES)
def test_logits(make_folder: Callable[..., Path], make_model: Callable[..., Any], size: str) -> None:
    import torch

    architecture, settings = SIZES[size]
    settings = {"initializer_range": 0.15} | settings
    model = make_model(architecture, **settings)
    folder = make_folder(architecture, **settings)
    module, params = from_pretrained(folder)
    batch = _batch(module.config, np.random.default_rng(1), not architecture.startswith(("Distil", "MPNet")))
    with torch.no_grad():
        expected = model(**_torch_inputs(batch)).logits.numpy()
    actual = jax.jit(module.apply)({"params": params}, **batch)
    real = batch["attention_mask"] > 0
    assert 0.3 < np.abs(expected).max() < 30
    np.testing.assert_allclose(np.asarray(actual)[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["BertModel", "DistilBertModel", "RobertaModel", "MPNetModel", "ElectraModel"])
def test_hidden_states_of_headless_models(
    make_folder: Callable[..., Path], make_model: Callable[..., Any], architecture: str
) -> None:
    import torch

    module, params = from_pretrained(make_folder(architecture, initializer_range=0.15))
    batch = _batch(module.config, np.random.default_rng(2), not architecture.startswith(("Distil", "MPNet")))
    with torch.no_grad():
        expected = make_model(architecture, initializer_range=0.15)(**_torch_inputs(batch)).last_hidden_state.numpy()
    actual = np.asarray(jax.jit(module.apply)({"params": params}, **batch))
    real = batch["attention_mask"] > 0
    np.testing.assert_allclose(actual[real], expected[real], atol=1e-5, rtol=0)


def test_hidden_states_of_the_real_minilm(minilm: Path) -> None:
    import torch
    from transformers import BertModel

    module, params = from_pretrained(minilm)
    assert module.config.pooler
    rng = np.random.default_rng(3)
    mask = (np.arange(40)[None] < np.array([[40], [23]])).astype(np.int32)
    batch = {"ids": rng.integers(1000, 30000, (2, 40)).astype(np.int32), "attention_mask": mask}
    with torch.no_grad():
        expected = BertModel.from_pretrained(minilm)(**_torch_inputs(batch)).last_hidden_state.numpy()
    actual = np.asarray(jax.jit(module.apply)({"params": params}, **batch))
    np.testing.assert_allclose(actual[mask > 0], expected[mask > 0], atol=1e-5, rtol=0)
