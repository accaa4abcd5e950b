"""BERT (Devlin et al. 2019)."""

from __future__ import annotations

from distil_jax.hf.families.family import WORD_EMBEDDINGS, ConfigField, Family, HeadRule, TensorRule, linear, norm

_STORED, _LAYER = "encoder.layer.{i}", "encoder/layer_{i}"
FIELDS = {
    "vocab_size": ConfigField("vocab_size", 30522),
    "hidden_size": ConfigField("hidden_size", 768),
    "num_layers": ConfigField("num_hidden_layers", 12),
    "num_heads": ConfigField("num_attention_heads", 12),
    "intermediate_size": ConfigField("intermediate_size", 3072),
    "max_position_embeddings": ConfigField("max_position_embeddings", 512),
    "type_vocab_size": ConfigField("type_vocab_size", 2),
    "activation": ConfigField("hidden_act", "gelu"),
    "layer_norm_eps": ConfigField("layer_norm_eps", 1e-12),
    "hidden_dropout": ConfigField("hidden_dropout_prob", 0.1),
    "attention_dropout": ConfigField("attention_probs_dropout_prob", 0.1),
    "initializer_range": ConfigField("initializer_range", 0.02),
    "pad_token_id": ConfigField("pad_token_id", 0),
}
LAYER = (
    *linear(f"{_LAYER}/query", f"{_STORED}.attention.self.query", "AH"),
    *linear(f"{_LAYER}/key", f"{_STORED}.attention.self.key", "AH"),
    *linear(f"{_LAYER}/value", f"{_STORED}.attention.self.value", "AH"),
    *linear(f"{_LAYER}/attention_out", f"{_STORED}.attention.output.dense", "HA"),
    *norm(f"{_LAYER}/attention_norm", f"{_STORED}.attention.output.LayerNorm"),
    *linear(f"{_LAYER}/ffn_in", f"{_STORED}.intermediate.dense", "FH"),
    *linear(f"{_LAYER}/ffn_out", f"{_STORED}.output.dense", "HF"),
    *norm(f"{_LAYER}/output_norm", f"{_STORED}.output.LayerNorm"),
)


BERT = Family(
    name="bert",
    class_prefix="Bert",
    prefix="bert",
    fields=FIELDS,
    constants={
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "use_cache": True,
    },
    implied=lambda config: {
        "attention_output_dropout": config.hidden_dropout,
        "position_offset": 0,
        "relative_buckets": 0,
        "embedding_size": 0,
    },
    # Google's bert_config.json has these and no model_type.
    signature=frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "type_vocab_size", "vocab_size"}),
    layer=LAYER,
    mlm_head=(
        *linear("mlm_head/transform", "cls.predictions.transform.dense", "HH"),
        *norm("mlm_head/norm", "cls.predictions.transform.LayerNorm"),
        TensorRule(("mlm_head", "bias"), "cls.predictions.bias", ("V",)),
    ),
    tied={
        "cls.predictions.decoder.weight": WORD_EMBEDDINGS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=frozenset({"cls.seq_relationship.weight", "cls.seq_relationship.bias"}),  # next-sentence prediction
    mlm_classes=frozenset({"BertForPreTraining", "BertLMHeadModel"}),
    heads={
        "sequence": HeadRule(dropout_field="classifier_dropout"),
        "token": HeadRule(dropout_field="classifier_dropout"),
        "question": HeadRule("qa_outputs", dropout=0.0),
        "choice": HeadRule(dropout_field="classifier_dropout"),
    },
    student="distilbert",
)
