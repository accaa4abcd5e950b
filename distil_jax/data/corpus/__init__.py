"""Text in, batches out: sources of text, token shards on disk, the order of rows, masking on the device.

Names are imported on first use: processes that tokenise import this package and need no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.data.corpus.batches import batch_rows, stream_order, training_batches
    from distil_jax.data.corpus.masking import MaskingRule, mask_rows, masking_log_weights, predictions_per_row
    from distil_jax.data.corpus.packing import best_fit, token_dtype
    from distil_jax.data.corpus.prepare import PrepareProgress, prepare_splits
    from distil_jax.data.corpus.sequences import sequence_numbers, sequence_positions
    from distil_jax.data.corpus.sources import lines_of
    from distil_jax.data.corpus.teacher_cache import CACHE_INDEX, CacheWriter, TeacherCache, open_teacher_cache
    from distil_jax.data.corpus.tokens import INDEX, Corpus, Shard, open_corpus
    from distil_jax.data.corpus.vocabulary import train_wordpiece
else:
    __getattr__ = lazy_imports(__name__)
