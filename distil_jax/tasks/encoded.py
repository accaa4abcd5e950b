"""Rows of token ids, each as long as it is (padding belongs to the batches), and what makes them of pieces of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from distil_jax.hf import Tokenizer

IGNORED = -1  # label of a token that is not predicted
NO_TOKEN = -1  # id behind the shorter endings of a choice
Ids = list[int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows of one set, in the order of its examples (questions and long sentences: of their windows).

    Attributes:
        ids: a row's tokens [L] int32; of a choice [C, L], with `NO_TOKEN` behind the shorter endings.
        types: segments, shaped as `ids`.
        labels: a row's label: class number or score (), scores or 0/1 a class [K], a tag a token [L] with `IGNORED`
            where none is predicted, (start, end) [2], number of the choice (); None where labels are not known.
        lengths: [N] int32, tokens a row (of the longest ending).
        pad_id: id that fills up.
        notes: what a user should read, such as how many examples were longer than allowed and lost their end.
        parts: where an example may have several rows, what each row is of which example; else empty.
        choices: most endings of an example; 0: rows are single texts.
        labelled: [N] bool, whether a row's label is known; labels of the others stand for nothing. None: all are.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    labels: list[np.ndarray] | None
    lengths: np.ndarray
    pad_id: int
    notes: tuple[str, ...]
    parts: list[Any] = dataclasses.field(default_factory=list)
    choices: int = 0
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def with_unlabelled(encoded: Encoded | None, more: Encoded) -> Encoded:
    """The rows of `encoded`, then those of `more`, whose labels count as not known. None: `more` alone."""
    first = encoded or dataclasses.replace(more, ids=[], types=[], labels=[], lengths=more.lengths[:0], notes=())
    labels, known = first.labels or [], np.ones(len(first), bool) if first.labelled is None else first.labelled
    # Tags have labels of another kind here: they say which tokens have one.
    others = more.labels or [np.zeros_like(labels[0]) if labels else np.zeros((), np.int32)] * len(more)
    return dataclasses.replace(
        first,
        ids=[*first.ids, *more.ids],
        types=[*first.types, *more.types],
        labels=[*labels, *others],
        lengths=np.concatenate([first.lengths, more.lengths]),
        notes=(*first.notes, *more.notes),
        parts=[],
        choices=max(first.choices, more.choices),
        labelled=np.concatenate([known, np.zeros(len(more), bool)]),
    )


def pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Ids]:
    """Token ids of each text, without special tokens."""
    return [found.ids for found in tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def assembled(
    tokenizer: Tokenizer,
    rows: Sequence[tuple[Any, Any]],
    labels: list[np.ndarray] | None,
    notes: tuple[str, ...],
    **more: Any,
) -> Encoded:
    """(ids, segments) of each row as arrays; `more` are fields of `Encoded`."""
    ids = [np.asarray(row, np.int32) for row, _ in rows]
    types = [np.asarray(segments, np.int32) for _, segments in rows]
    lengths = np.array([row.shape[-1] for row in ids], np.int32)
    return Encoded(ids, types, labels, lengths, tokenizer.pad_id, notes, **more)


def encoded_texts(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> Encoded:
    """Each text as a row of at most `limit` tokens, without labels."""
    return assembled(tokenizer, [tokenizer.fit(text, None, limit)[:2] for text in pieces(tokenizer, texts)], None, ())


def cut_note(count: int, limit: int) -> tuple[str, ...]:
    """The note on `count` examples that were cut to `limit` tokens; () for none."""
    return (f"{count:,} examples cut to {limit} tokens",) if count else ()


def label_arrays(values: Sequence[Any]) -> list[np.ndarray] | None:
    """Labels as arrays, float32 where they are scores or sets; None where any is unknown."""
    if any(value is None for value in values):
        return None
    return [np.asarray(value, np.float32 if isinstance(value, float | tuple) else np.int32) for value in values]
