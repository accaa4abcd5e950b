"""config.json in both directions, against transformers' configuration classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import transformers

from distil_jax.errors import UserError
from distil_jax.hf import FAMILIES, encoder_config_from_hf, encoder_config_to_hf, read_encoder_config

BERT = transformers.BertConfig(
    vocab_size=70,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=41,
    max_position_embeddings=17,
    type_vocab_size=3,
    hidden_act="gelu_new",
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.3,
    initializer_range=0.05,
    pad_token_id=4,
)
DISTILBERT = transformers.DistilBertConfig(
    vocab_size=70,
    dim=30,
    n_layers=3,
    n_heads=5,
    hidden_dim=41,
    max_position_embeddings=17,
    activation="relu",
    dropout=0.2,
    attention_dropout=0.3,
    initializer_range=0.05,
    pad_token_id=4,
)


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "hidden_dropout_prob", "layer_norm_eps"),
)
ROBERTA = transformers.RobertaConfig(**{name: getattr(BERT, name) for name in SIZES}, pad_token_id=3)
ELECTRA = transformers.ElectraConfig(**{name: getattr(BERT, name) for name in SIZES}, embedding_size=7)
MPNET = transformers.MPNetConfig(**{name: getattr(BERT, name) for name in SIZES if name != "type_vocab_size"})


def test_every_field_of_bert() -> None:
    config = encoder_config_from_hf(BERT.to_dict(), "here")
    assert dataclasses.asdict(config) == {
        "family": "bert",
        "vocab_size": 70,
        "hidden_size": 30,
        "num_layers": 3,
        "num_heads": 5,
        "intermediate_size": 41,
        "max_position_embeddings": 17,
        "position_offset": 0,
        "relative_buckets": 0,
        "embedding_size": 0,
        "head_size": 0,
        "type_vocab_size": 3,
        "activation": "gelu_new",
        "layer_norm_eps": 1e-5,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.3,
        "attention_output_dropout": 0.2,
        "initializer_range": 0.05,
        "pad_token_id": 4,
        "pooler": False,
    }


def test_every_field_of_distilbert() -> None:
    config = encoder_config_from_hf(DISTILBERT.to_dict(), "here")
    expected = dataclasses.asdict(encoder_config_from_hf(BERT.to_dict(), "here")) | {
        "family": "distilbert",
        "type_vocab_size": 0,
        "activation": "relu",
        "layer_norm_eps": 1e-12,
        "attention_output_dropout": 0.0,
    }
    assert dataclasses.asdict(config) == expected


def test_positions_of_roberta() -> None:
    config = encoder_config_from_hf(ROBERTA.to_dict(), "here")
    bert = encoder_config_from_hf(BERT.to_dict() | {"hidden_act": "gelu"}, "here")
    assert (config.position_offset, config.max_position_embeddings, config.max_length) == (4, 17, 13)
    same = dataclasses.replace(config, family="bert", position_offset=0, pad_token_id=bert.pad_token_id)
    assert same == dataclasses.replace(bert, attention_dropout=0.1, initializer_range=0.02)
    with pytest.raises(UserError, match="max_position_embeddings = 4"):
        encoder_config_from_hf(ROBERTA.to_dict() | {"max_position_embeddings": 4}, "here")
    with pytest.raises(UserError, match="position_offset = 4, not 2"):
        encoder_config_to_hf(dataclasses.replace(config, position_offset=2), "mlm")


def test_embeddings_of_electra() -> None:
    config = encoder_config_from_hf(ELECTRA.to_dict(), "here")
    assert (config.embedding_size, config.embedding_width, config.hidden_size) == (7, 7, 30)
    same = encoder_config_from_hf(ELECTRA.to_dict() | {"embedding_size": 30}, "here")
    assert (same.embedding_size, same.embedding_width) == (0, 30)
    assert encoder_config_to_hf(same, "none")["embedding_size"] == 30
    assert encoder_config_to_hf(dataclasses.replace(same, family="bert"), "mlm")["hidden_size"] == 30
    with pytest.raises(UserError, match="embedding_size = 0, not 7"):
        encoder_config_to_hf(dataclasses.replace(config, family="bert"), "mlm")
    with pytest.raises(UserError, match='summary_type = "last" is not supported'):
        encoder_config_from_hf(ELECTRA.to_dict() | {"summary_type": "last"}, "here")


def test_what_mpnet_computes_whatever_its_file_says() -> None:
    config = encoder_config_from_hf(MPNET.to_dict() | {"pad_token_id": 0}, "here")
    assert (config.pad_token_id, config.position_offset, config.relative_buckets, config.max_length) == (1, 2, 32, 15)
    with pytest.raises(UserError, match="relative_attention_num_buckets = 64"):
        encoder_config_from_hf(MPNET.to_dict() | {"relative_attention_num_buckets": 64}, "here")
    for family in ("bert", "distilbert", "roberta"):
        with pytest.raises(UserError, match=r"has .*, not \d"):
            encoder_config_to_hf(dataclasses.replace(config, family=family, type_vocab_size=2), "mlm")


@pytest.mark.parametrize(
    "reference", [BERT, DISTILBERT, ROBERTA, MPNET, ELECTRA], ids=["bert", "distilbert", "roberta", "mpnet", "electra"]
)
@pytest.mark.parametrize("head", ["mlm", "none"])
def test_back_to_transformers(reference: Any, head: Literal["mlm", "none"]) -> None:
    config = encoder_config_from_hf(reference.to_dict(), "here")
    raw = encoder_config_to_hf(config, head)
    assert encoder_config_from_hf(json.loads(json.dumps(raw)), "here") == config
    rebuilt, original = type(reference).from_dict(raw).to_dict(), reference.to_dict()
    assert {key: rebuilt[key] for key in original if key not in ("architectures", "dtype", "transformers_version")} == {
        key: value for key, value in original.items() if key not in ("architectures", "dtype", "transformers_version")
    }
    (name,) = raw["architectures"]
    assert hasattr(transformers, name)
    assert name.endswith("MaskedLM") == (head == "mlm")


def test_defaults_are_those_of_transformers() -> None:
    for name in FAMILIES:
        reference = transformers.AutoConfig.for_model(name)
        bare = encoder_config_from_hf({"model_type": name}, "here")
        assert bare == encoder_config_from_hf(reference.to_dict(), "here")


def test_a_file_without_model_type_is_known_by_its_architecture() -> None:
    raw = {"architectures": ["DistilBertForMaskedLM"]}
    assert encoder_config_from_hf(raw, "here").family == "distilbert"


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_activations_compute_what_transformers_computes(name: str) -> None:
    import jax.numpy as jnp
    import numpy as np
    import torch
    from transformers.activations import get_activation

    from distil_jax.models import ACTIVATIONS

    x = np.linspace(-5, 5, 101, dtype=np.float32)
    config = encoder_config_from_hf({"model_type": "bert", "hidden_act": name}, "here")
    reference = get_activation(name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[config.activation](jnp.asarray(x)), reference, atol=2e-6)


GOOGLE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 30,
    "initializer_range": 0.02,
    "intermediate_size": 41,
    "max_position_embeddings": 17,
    "num_attention_heads": 5,
    "num_hidden_layers": 3,
    "type_vocab_size": 2,
    "vocab_size": 70,
}


def test_googles_bert_config_is_bert_by_its_fields() -> None:
    assert encoder_config_from_hf(GOOGLE, "here") == encoder_config_from_hf(GOOGLE | {"model_type": "bert"}, "here")
    with pytest.raises(UserError, match=r"here: model_type is missing.*bert, distilbert"):
        encoder_config_from_hf({"vocab_size": 70, "hidden_size": 30}, "here")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, '"gpt2"'),
        ({"model_type": ["bert"]}, "model_type"),
        ({"model_type": None, "architectures": ["LlamaModel"]}, "model_type"),
        ({"hidden_act": "mish"}, '"mish"'),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_size": 31}, "not a multiple"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"vocab_size": 30.5}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"intermediate_size": "3072"}, "intermediate_size"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"pad_token_id": 70}, "pad_token_id"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        encoder_config_from_hf(BERT.to_dict() | changes, "some/config.json")
    assert named in str(caught.value)
    assert "some/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-5}, {"type_vocab_size": 2}, {"pooler": True}])
def test_a_distilbert_that_transformers_would_compute_otherwise_is_not_written(change: dict[str, Any]) -> None:
    config = dataclasses.replace(encoder_config_from_hf(DISTILBERT.to_dict(), "here"), **change)
    with pytest.raises(UserError, match="DistilBert"):
        encoder_config_to_hf(config, "none")


def test_bert_without_token_types_is_not_written() -> None:
    config = dataclasses.replace(encoder_config_from_hf(BERT.to_dict(), "here"), type_vocab_size=0)
    with pytest.raises(UserError, match="token types"):
        encoder_config_to_hf(config, "mlm")


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000, '{"a": "\\ud800'])
def test_unreadable_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="JSON"):
        read_encoder_config(tmp_path)


def test_read_encoder_config(tmp_path: Path) -> None:
    DISTILBERT.save_pretrained(tmp_path)
    assert read_encoder_config(tmp_path) == encoder_config_from_hf(DISTILBERT.to_dict(), "here")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read_encoder_config(tmp_path)
