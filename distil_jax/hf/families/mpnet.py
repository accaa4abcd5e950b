"""MPNet (Song et al. 2020): BERT with biases of relative positions, positions from 2, and without token types."""

from __future__ import annotations

import dataclasses

from distil_jax.hf.families.bert import BERT
from distil_jax.hf.families.family import ConfigField, Family, HeadRule, linear, norm
from distil_jax.hf.families.roberta import ROBERTA

# transformers has 1 for padding and 32 buckets in its code, whatever config.json says.
_FIXED = {"pad_token_id": 1, "position_offset": 2, "relative_buckets": 32, "type_vocab_size": 0}
_STORED, _LAYER = "encoder.layer.{i}", "encoder/layer_{i}"


MPNET = Family(
    name="mpnet",
    class_prefix="MPNet",
    prefix="mpnet",
    fields={
        **{name: field for name, field in BERT.fields.items() if name != "type_vocab_size"},
        "vocab_size": ConfigField("vocab_size", 30527),
        "pad_token_id": ConfigField("pad_token_id", 1),
    },
    required={"relative_attention_num_buckets": 32},
    implied=lambda config: BERT.implied(config) | _FIXED,
    layer=(
        *linear(f"{_LAYER}/query", f"{_STORED}.attention.attn.q", "AH"),
        *linear(f"{_LAYER}/key", f"{_STORED}.attention.attn.k", "AH"),
        *linear(f"{_LAYER}/value", f"{_STORED}.attention.attn.v", "AH"),
        *linear(f"{_LAYER}/attention_out", f"{_STORED}.attention.attn.o", "HA"),
        *norm(f"{_LAYER}/attention_norm", f"{_STORED}.attention.LayerNorm"),
        *linear(f"{_LAYER}/ffn_in", f"{_STORED}.intermediate.dense", "FH"),
        *linear(f"{_LAYER}/ffn_out", f"{_STORED}.output.dense", "HF"),
        *norm(f"{_LAYER}/output_norm", f"{_STORED}.output.LayerNorm"),
    ),
    mlm_head=ROBERTA.mlm_head,
    tied=ROBERTA.tied,
    mlm_activation="gelu",
    tokenizer="MPNetTokenizer",
    reads_token_types=False,
    heads={
        "sequence": dataclasses.replace(ROBERTA.heads["sequence"], dropout_field=""),
        "token": HeadRule(),
        "question": HeadRule("qa_outputs", dropout=0.0),
        "choice": HeadRule(),
    },
)
