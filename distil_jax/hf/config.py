"""config.json of BERT and DistilBERT <-> `EncoderConfig`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distil_jax.errors import UserError, one_line
from distil_jax.hf.hub import locate
from distil_jax.hf.names import FAMILIES

if TYPE_CHECKING:
    from distil_jax.models.encoder import EncoderConfig

Head = Literal["mlm", "none", "sequence", "token", "question", "choice"]

# transformers' names of the same function -> ours. The tanh forms differ in rounding only.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
ARCHITECTURES = {
    ("bert", "mlm"): "BertForMaskedLM",
    ("bert", "none"): "BertModel",
    ("distilbert", "mlm"): "DistilBertForMaskedLM",
    ("distilbert", "none"): "DistilBertModel",
    ("bert", "sequence"): "BertForSequenceClassification",
    ("bert", "token"): "BertForTokenClassification",
    ("bert", "question"): "BertForQuestionAnswering",
    ("bert", "choice"): "BertForMultipleChoice",
    ("distilbert", "sequence"): "DistilBertForSequenceClassification",
    ("distilbert", "token"): "DistilBertForTokenClassification",
    ("distilbert", "question"): "DistilBertForQuestionAnswering",
    ("distilbert", "choice"): "DistilBertForMultipleChoice",
}
MLM_ARCHITECTURES = {"BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel", "DistilBertForMaskedLM"}
# Far beyond any BERT; a larger number is a typing mistake or a hostile file, and would only run out of memory later.
LARGEST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "intermediate_size": 1 << 18,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 10,
}
LARGEST_FILE = 1 << 20  # bytes; settings in a model folder have a few kB


def _shown(value: Any) -> str:
    """A value of a file as part of a message."""
    return one_line(repr(value), 80)


def read_json(path: Path, limit: int = LARGEST_FILE) -> dict[str, Any]:
    """The JSON object in a file. UserError if it is absent, larger than `limit` bytes, or not an object."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; a model folder holds config.json, the weights and the tokenizer's files"
        )
    if path.stat().st_size > limit:
        raise UserError(f"{path}: {path.stat().st_size} bytes, more than the {limit} a file of this kind may have")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds a JSON {type(raw).__name__}, expected an object of settings")
    return raw


class Fields:
    """Typed look-ups in a config.json with the file and field in every message."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def size(self, ours: str, names: tuple[str, ...], default: int) -> int:
        name = next((name for name in names if name in self.raw), names[0])
        value = self.raw.get(name, default)
        low = 0 if ours == "type_vocab_size" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= LARGEST[ours]:
            raise UserError(
                f"{self.where}: {name} = {_shown(value)}, expected a whole number from {low} to {LARGEST[ours]}"
            )
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value < high:
            raise UserError(f"{self.where}: {name} = {_shown(value)}, expected a number from {low} to below {high}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name} = {_shown(value)}, expected true or false")
        return value

    def activation(self, name: str) -> str:
        value = self.raw.get(name, "gelu")
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise UserError(
                f"{self.where}: {name} = {_shown(value)} is not supported; known: {', '.join(ACTIVATION_NAMES)}"
            )
        return ACTIVATION_NAMES[value]

    def pad(self, vocab_size: int) -> int:
        value = self.raw.get("pad_token_id", 0)
        value = 0 if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
            raise UserError(
                f"{self.where}: pad_token_id = {_shown(value)}, expected an id below vocab_size {vocab_size}"
            )
        return value


def family_of(raw: dict[str, Any], where: str) -> str:
    """The family, "bert" or "distilbert": model_type, or for files older than that field, the architectures."""
    family = raw.get("model_type")
    if family is None:
        names = architectures(raw)
        family = next((f for f in FAMILIES for name in names if name.lower().startswith(f)), None)
    if family not in FAMILIES:
        raise UserError(f"{where}: model_type = {_shown(family)} is not supported; known: {', '.join(FAMILIES)}")
    return family


def architectures(raw: dict[str, Any]) -> list[str]:
    """The class names of a config.json, an empty list if it has none."""
    names = raw.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _refuse_what_is_not_computed(raw: dict[str, Any], family: str, where: str) -> None:
    """Settings under which the same weights mean another function than ours."""
    kind = raw.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UserError(f"{where}: position_embedding_type = {_shown(kind)} is not supported, only 'absolute'")
    if raw.get("add_cross_attention"):
        raise UserError(f"{where}: add_cross_attention is not supported; only encoders and plain decoders are")
    if raw.get("quantization_config"):
        raise UserError(f"{where}: quantization_config is set; only plain float weights can be read")
    if raw.get("pruned_heads"):
        raise UserError(f"{where}: pruned_heads is set; models with pruned attention heads are not supported")
    if family == "distilbert" and raw.get("is_decoder"):
        raise UserError(f"{where}: is_decoder = true, but DistilBERT has no causal form in transformers")


def encoder_config_from_hf(raw: dict[str, Any], where: str) -> EncoderConfig:
    """The configuration in a config.json.

    Fields that are absent have transformers' defaults (those of the base model); fields that do not change what is
    computed, `auto_map` among them, are passed over: no code of the folder is ever run.

    Args:
        raw: the parsed config.json.
        where: its path, for messages.

    Raises:
        UserError: a field is out of bounds or asks for something that is not computed here.
    """
    from distil_jax.models.encoder import EncoderConfig

    family = family_of(raw, where)
    _refuse_what_is_not_computed(raw, family, where)
    fields = Fields(raw, where)
    bert = family == "bert"
    size, rate = fields.size, "hidden_dropout_prob" if bert else "dropout"
    vocab_size = size("vocab_size", ("vocab_size",), 30522)
    hidden_dropout = fields.number(rate, 0.1, 0.0, 1.0)
    config = EncoderConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=size("hidden_size", ("hidden_size",) if bert else ("dim", "hidden_size"), 768),
        num_layers=size(
            "num_layers", ("num_hidden_layers",) if bert else ("n_layers", "num_hidden_layers"), 12 if bert else 6
        ),
        num_heads=size("num_heads", ("num_attention_heads",) if bert else ("n_heads", "num_attention_heads"), 12),
        intermediate_size=size("intermediate_size", ("intermediate_size" if bert else "hidden_dim",), 3072),
        max_position_embeddings=size("max_position_embeddings", ("max_position_embeddings",), 512),
        type_vocab_size=size("type_vocab_size", ("type_vocab_size",), 2) if bert else 0,
        activation=fields.activation("hidden_act" if bert else "activation"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-12, 0.0, 1.0) if bert else 1e-12,
        hidden_dropout=hidden_dropout,
        attention_dropout=fields.number("attention_probs_dropout_prob" if bert else "attention_dropout", 0.1, 0.0, 1.0),
        attention_output_dropout=hidden_dropout if bert else 0.0,
        initializer_range=fields.number("initializer_range", 0.02, 0.0, math.inf),
        pad_token_id=fields.pad(vocab_size),
        causal=fields.flag("is_decoder") if bert else False,
    )
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"{where}: hidden size {config.hidden_size} is not a multiple of the {config.num_heads} attention heads"
        )
    return config


def encoder_config_to_hf(config: EncoderConfig, head: Head) -> dict[str, Any]:
    """The config.json that transformers expects for this encoder under a head.

    A task head's own fields (its labels and dropout) are not among them, see `task_head_to_hf`.

    A BERT file has one rate for both hidden dropouts, so `attention_output_dropout` is not written; it has no
    influence on what a trained model computes.

    Raises:
        UserError: the family cannot express this configuration (its numbers would come out differently).
    """
    bert = config.family == "bert"
    name = ARCHITECTURES.get((config.family, head))
    if name is None:
        raise UserError(f"family {config.family!r} with head {head!r} cannot be written; known: {', '.join(FAMILIES)}")
    if bert and not config.type_vocab_size:
        raise UserError("a BERT folder needs token types (type_vocab_size of 1 or more); write the family 'distilbert'")
    if not bert and (config.type_vocab_size or config.pooler or config.causal or config.layer_norm_eps != 1e-12):
        raise UserError(
            "a DistilBERT folder cannot hold token types, a pooler, a causal mask or a layer_norm_eps other than 1e-12"
        )
    common = {
        "architectures": ["BertLMHeadModel" if config.causal and head == "mlm" else name],
        "model_type": config.family,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": True,
    }
    return common | (_bert_fields(config) if bert else _distilbert_fields(config))


def _bert_fields(config: EncoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "type_vocab_size": config.type_vocab_size,
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "is_decoder": config.causal,
        "add_cross_attention": False,
        "use_cache": True,
    }


def _distilbert_fields(config: EncoderConfig) -> dict[str, Any]:
    return {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.intermediate_size,
        "activation": config.activation,
        "dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
    }


def read_encoder_config(path_or_id: str | Path) -> EncoderConfig:
    """The configuration of a model folder or hub id, from its config.json alone (so `pooler` is False).

    Raises:
        UserError: no such folder, or a config.json that cannot be used.
    """
    path = locate(path_or_id, files="config") / "config.json"
    return encoder_config_from_hf(read_json(path), str(path))
