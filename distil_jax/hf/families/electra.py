"""ELECTRA (Clark et al. 2020): BERT with a dense layer behind narrower embeddings, and without pooler."""

from __future__ import annotations

from distil_jax.hf.families.bert import BERT
from distil_jax.hf.families.family import WORD_EMBEDDINGS, ConfigField, Family, HeadRule, TensorRule, linear, norm

_SMALL = {"hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}  # transformers' defaults
ELECTRA = Family(
    name="electra",
    class_prefix="Electra",
    prefix="electra",
    fields={
        **BERT.fields,
        **{name: ConfigField(BERT.fields[name].name, size) for name, size in _SMALL.items()},
        "embedding_size": ConfigField("embedding_size", 128, same_as="hidden_size"),
    },
    constants={**BERT.constants, "summary_last_dropout": 0.1},
    required={"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
    implied=lambda config: BERT.implied(config) | {"embedding_size": config.embedding_size},
    layer=BERT.layer,
    # That of a generator; a discriminator has "replaced".
    mlm_head=(
        *linear("mlm_head/transform", "generator_predictions.dense", "EH"),
        *norm("mlm_head/norm", "generator_predictions.LayerNorm", "E"),
        TensorRule(("mlm_head", "bias"), "generator_lm_head.bias", ("V",)),
    ),
    tied={"generator_lm_head.weight": WORD_EMBEDDINGS},
    mlm_activation="gelu",
    has_pooler=False,
    tokenizer="BertTokenizer",
    heads={
        "sequence": HeadRule(
            "classifier.out_proj",
            dense="classifier.dense",
            dense_activation="gelu",
            dropout_field="classifier_dropout",
            drops_input=True,
        ),
        "token": BERT.heads["token"],
        "question": BERT.heads["question"],
        "choice": HeadRule(
            dense="sequence_summary.summary",
            dense_activation="gelu",
            dropout_field="summary_last_dropout",
            dropout=0.1,
        ),
        "replaced": HeadRule(
            "discriminator_predictions.dense_prediction",
            dense="discriminator_predictions.dense",
            dense_activation="",
            dropout=0.0,
        ),
    },
)
