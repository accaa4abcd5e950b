"""RoBERTa (Liu et al. 2019), and XLM-R and CamemBERT, which compute the same: BERT with positions behind padding's."""

from __future__ import annotations

import dataclasses

from distil_jax.hf.families.bert import BERT
from distil_jax.hf.families.family import WORD_EMBEDDINGS, ConfigField, Family, HeadRule, TensorRule, linear, norm

ROBERTA = Family(
    name="roberta",
    class_prefix="Roberta",
    prefix="roberta",
    fields={
        **BERT.fields,
        "vocab_size": ConfigField("vocab_size", 50265),
        "pad_token_id": ConfigField("pad_token_id", 1),
    },
    constants=BERT.constants,
    implied=lambda config: BERT.implied(config) | {"position_offset": config.pad_token_id + 1},
    layer=BERT.layer,
    mlm_head=(
        *linear("mlm_head/transform", "lm_head.dense", "HH"),
        *norm("mlm_head/norm", "lm_head.layer_norm"),
        TensorRule(("mlm_head", "bias"), "lm_head.bias", ("V",)),
    ),
    tied={"lm_head.decoder.weight": WORD_EMBEDDINGS, "lm_head.decoder.bias": "lm_head.bias"},
    mlm_activation="gelu",
    tokenizer="RobertaTokenizer",
    reads_token_types=False,
    heads={
        **BERT.heads,
        "sequence": HeadRule(
            "classifier.out_proj",
            dense="classifier.dense",
            dense_activation="tanh",
            dropout_field="classifier_dropout",
            drops_input=True,
        ),
        "choice": HeadRule(),
    },
)
_BERTS_VOCABULARY = {**ROBERTA.fields, "vocab_size": ConfigField("vocab_size", 30522)}
XLM_ROBERTA = dataclasses.replace(
    ROBERTA, name="xlm-roberta", class_prefix="XLMRoberta", tokenizer="XLMRobertaTokenizer", fields=_BERTS_VOCABULARY
)
CAMEMBERT = dataclasses.replace(
    ROBERTA, name="camembert", class_prefix="Camembert", tokenizer="CamembertTokenizer", fields=_BERTS_VOCABULARY
)
