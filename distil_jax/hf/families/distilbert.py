"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler."""

from __future__ import annotations

from distil_jax.hf.families.family import WORD_EMBEDDINGS, ConfigField, Family, HeadRule, TensorRule, linear, norm

_STORED, _LAYER = "transformer.layer.{i}", "encoder/layer_{i}"


DISTILBERT = Family(
    name="distilbert",
    class_prefix="DistilBert",
    prefix="distilbert",
    fields={
        "vocab_size": ConfigField("vocab_size", 30522),
        "hidden_size": ConfigField("dim", 768, ("hidden_size",)),
        "num_layers": ConfigField("n_layers", 6, ("num_hidden_layers",)),
        "num_heads": ConfigField("n_heads", 12, ("num_attention_heads",)),
        "intermediate_size": ConfigField("hidden_dim", 3072),
        "max_position_embeddings": ConfigField("max_position_embeddings", 512),
        "activation": ConfigField("activation", "gelu"),
        "hidden_dropout": ConfigField("dropout", 0.1),
        "attention_dropout": ConfigField("attention_dropout", 0.1),
        "initializer_range": ConfigField("initializer_range", 0.02),
        "pad_token_id": ConfigField("pad_token_id", 0),
    },
    constants={
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
    },
    implied=lambda config: {
        "attention_output_dropout": 0.0,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-12,
        "position_offset": 0,
        "relative_buckets": 0,
        "embedding_size": 0,
    },
    signature=frozenset({"dim", "n_layers", "n_heads", "hidden_dim", "vocab_size"}),
    layer=(
        *linear(f"{_LAYER}/query", f"{_STORED}.attention.q_lin", "AH"),
        *linear(f"{_LAYER}/key", f"{_STORED}.attention.k_lin", "AH"),
        *linear(f"{_LAYER}/value", f"{_STORED}.attention.v_lin", "AH"),
        *linear(f"{_LAYER}/attention_out", f"{_STORED}.attention.out_lin", "HA"),
        *norm(f"{_LAYER}/attention_norm", f"{_STORED}.sa_layer_norm"),
        *linear(f"{_LAYER}/ffn_in", f"{_STORED}.ffn.lin1", "FH"),
        *linear(f"{_LAYER}/ffn_out", f"{_STORED}.ffn.lin2", "HF"),
        *norm(f"{_LAYER}/output_norm", f"{_STORED}.output_layer_norm"),
    ),
    mlm_head=(
        *linear("mlm_head/transform", "vocab_transform", "HH"),
        *norm("mlm_head/norm", "vocab_layer_norm"),
        TensorRule(("mlm_head", "bias"), "vocab_projector.bias", ("V",)),
    ),
    tied={"vocab_projector.weight": WORD_EMBEDDINGS},
    has_pooler=False,
    reads_token_types=False,
    heads={
        "sequence": HeadRule(dense="pre_classifier", dropout_field="seq_classif_dropout", dropout=0.2),
        "token": HeadRule(),
        "question": HeadRule("qa_outputs", dropout_field="qa_dropout", dropout=0.1),
        "choice": HeadRule(dense="pre_classifier", dropout_field="seq_classif_dropout", dropout=0.2),
    },
)
