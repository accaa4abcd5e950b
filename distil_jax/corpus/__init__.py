"""Text in, batches out: sources of text, token shards on disk, the order of rows, masking on the device."""

from distil_jax.corpus.masking import MaskingRule, masking_log_weights
from distil_jax.corpus.tokens import Corpus, open_corpus

__all__ = ["Corpus", "MaskingRule", "masking_log_weights", "open_corpus"]
