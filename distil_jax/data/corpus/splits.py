"""The corpus of a configuration: its train and validation folders, prepared one after the other."""

from __future__ import annotations

from collections.abc import Callable

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.plan import TokenizerLike
from distil_jax.data.corpus.prepare import PrepareProgress, prepare
from distil_jax.data.corpus.sources import resolve
from distil_jax.data.corpus.tokens import Corpus


def prepare_splits(
    settings: CorpusSettings, tokenizer: TokenizerLike, progress: Callable[[str, PrepareProgress], None] | None = None
) -> dict[str, Corpus]:
    """Prepare `folder`/train and, where there are sources for it, `folder`/validation.

    Args:
        settings: sources, folder and form of the rows.
        tokenizer: splits the text.
        progress: called with the split's name after every block.

    Raises:
        UserError: as `prepare`.
    """
    corpora = {}
    if settings.validation:
        resolve(settings.validation)  # a missing file is an error before hours go into the others
    for split in ("train", "validation"):
        if getattr(settings, split):
            report = None if progress is None else lambda state, split=split: progress(split, state)
            corpora[split] = prepare(settings, split, tokenizer, progress=report)
    return corpora
