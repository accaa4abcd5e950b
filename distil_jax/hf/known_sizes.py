"""Sizes of models on the hub that configurations often name, for plans made where the hub is out of reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distil_jax.hf.config import encoder_config_from_hf

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_XLM = {**_ROBERTA, "vocab_size": 250002}
# Name without its owner -> what its config.json says beyond the defaults of its family.
_KNOWN: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {"model_type": "bert"},
    "bert-base-cased": {"model_type": "bert", "vocab_size": 28996},
    "bert-base-multilingual-cased": {"model_type": "bert", "vocab_size": 119547},
    "bert-large-uncased": {"model_type": "bert", **_LARGE},
    "bert-large-cased": {"model_type": "bert", **_LARGE, "vocab_size": 28996},
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "roberta-base": {"model_type": "roberta", **_ROBERTA},
    "roberta-large": {"model_type": "roberta", **_ROBERTA, **_LARGE},
    "xlm-roberta-base": {"model_type": "xlm-roberta", **_XLM},
    "xlm-roberta-large": {"model_type": "xlm-roberta", **_XLM, **_LARGE},
    "all-MiniLM-L6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}


def known_encoder_config(model: str) -> EncoderConfig | None:
    """The encoder of the hub's model of this id, with or without its owner; None where its sizes are not known here."""
    fields = _KNOWN.get(model.rpartition("/")[2])
    return None if fields is None else encoder_config_from_hf(fields, model)
