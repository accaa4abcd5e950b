"""Text in, batches out: sources of text, token shards on disk, the order of rows, masking on the device.

Only what needs no JAX is named here, since every process that tokenises imports this package; the device's side is in
`masking` and `sequences`.
"""

from distil_jax.data.corpus.tokens import Corpus, open_corpus

__all__ = ["Corpus", "open_corpus"]
