"""What a network computes: one encoder for BERT and DistilBERT, and the heads on top of it.

Parameters are nested dictionaries of float32 arrays.
"""

from distil_jax.models.attention import AttentionKind, attention_mask_matrix
from distil_jax.models.dropout import row_keys
from distil_jax.models.encoder import Activations, Encoder, EncoderConfig, EncoderInputs
from distil_jax.models.flash_attention import AttentionShape, choose_attention
from distil_jax.models.heads import HEADS, HeadKind, HeadName, MaskedLM, Problem, TaskHead, TaskModel, one_row_a_choice
from distil_jax.models.layers import ACTIVATIONS, transpose_kernels
from distil_jax.models.pooling import POOLING_MODES, Pooling, PoolingMode, SentenceEncoder, pool
from distil_jax.models.products import KERNEL_LIMIT, PRODUCTS, Product
from distil_jax.models.relative_positions import buckets_of
