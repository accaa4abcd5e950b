from __future__ import annotations

import pytest
import transformers

from distil_jax.hf.known_sizes import _KNOWN, known_encoder_config


@pytest.mark.parametrize("name", _KNOWN)
def test_every_known_model_has_sizes(name: str) -> None:
    found = known_encoder_config(f"owner/{name}")
    assert found is not None and found.hidden_size % found.num_heads == 0


def test_a_base_models_sizes_are_transformers_defaults() -> None:
    found, usual = known_encoder_config("google-bert/bert-base-uncased"), transformers.BertConfig()
    assert found is not None
    sizes = (found.vocab_size, found.hidden_size, found.num_layers, found.num_heads, found.intermediate_size)
    wanted = (usual.vocab_size, usual.hidden_size, usual.num_hidden_layers, usual.num_attention_heads)
    assert sizes == (*wanted, usual.intermediate_size)


def test_other_models_are_not_known() -> None:
    assert known_encoder_config("someone/else") is None and known_encoder_config("") is None
