"""What a network computes: one encoder for BERT and DistilBERT, and the heads on top of it.

Imports nothing else of this package. Parameters are plain nested dictionaries of float32 arrays.
"""

from distil_jax.models.attention import AttentionKind
from distil_jax.models.dropout import row_keys
from distil_jax.models.encoder import Encoder, EncoderConfig
from distil_jax.models.heads import HeadKind, MaskedLM, Problem, TaskHead, TaskModel, choice_keys
from distil_jax.models.layers import ACTIVATIONS, Product, transpose_kernels

__all__ = [
    "ACTIVATIONS",
    "AttentionKind",
    "Encoder",
    "EncoderConfig",
    "HeadKind",
    "MaskedLM",
    "Problem",
    "Product",
    "TaskHead",
    "TaskModel",
    "choice_keys",
    "row_keys",
    "transpose_kernels",
]
