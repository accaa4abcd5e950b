"""The corpus of a configuration: its train and validation folders, prepared one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.plan import PrepareSettings, TokenizerLike
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
        resolve(settings.validation)  # a file that is not there is told before hours go into the others
    for split, sources in (("train", settings.train), ("validation", settings.validation)):
        if not sources:
            continue
        wanted = PrepareSettings(
            sources=sources,
            output=Path(settings.folder) / split,
            sequence_length=settings.sequence_length,
            pack=settings.pack,
            sequence=settings.sequence,
            min_tokens=settings.min_tokens,
            max_unk_fraction=settings.max_unk_fraction,
            text_column=settings.text_column,
            markup=settings.markup,
            on_error=settings.on_error,
            max_documents=settings.max_documents or None,
            block_bytes=settings.block_bytes,
            workers=settings.workers,
        )
        report = None if progress is None else lambda state, split=split: progress(split, state)
        corpora[split] = prepare(wanted, tokenizer, progress=report)
    return corpora
