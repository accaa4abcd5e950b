"""What a network computes: one encoder for BERT and DistilBERT, and the heads on top of it.

Parameters are nested dictionaries of float32 arrays.
"""

from distil_jax.models.attention import AttentionKind
from distil_jax.models.dropout import row_keys
from distil_jax.models.encoder import Activations, Encoder, EncoderConfig, EncoderInputs
from distil_jax.models.heads import HeadKind, MaskedLM, Problem, TaskHead, TaskModel, one_row_a_choice
from distil_jax.models.layers import ACTIVATIONS, transpose_kernels

__all__ = [
    "ACTIVATIONS",
    "Activations",
    "AttentionKind",
    "Encoder",
    "EncoderConfig",
    "EncoderInputs",
    "HeadKind",
    "MaskedLM",
    "Problem",
    "TaskHead",
    "TaskModel",
    "one_row_a_choice",
    "row_keys",
    "transpose_kernels",
]
