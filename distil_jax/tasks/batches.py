"""Rows of many lengths in batches of few shapes: few programs to compile, little padding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distil_jax.tasks.encode import IGNORED, Encoded
from distil_jax.tasks.examples import Kind

_MULTIPLE = 8  # lengths are multiples of what matrix units and vector registers like
MOST_BUCKETS = 6  # programs to compile at most
_ENOUGH = 1.1  # this much padded / real work is not worth one more program

Batch = dict[str, np.ndarray]


def choose_buckets(
    lengths: np.ndarray, given: Sequence[int] = (), most: int = MOST_BUCKETS, limit: int | None = None
) -> tuple[int, ...]:
    """Lengths to pad to, ascending; the last one holds the longest row.

    `given` ones are used as far as rows need them. Otherwise as few multiples of 8 as keep padding below a tenth (at
    most `most`), placed where they add the fewest tokens.

    Args:
        lengths: [N] tokens of each row.
        given: lengths wanted by the user; empty: choose.
        most: lengths that may be chosen, six at most.
        limit: positions of the model, which no row is longer than: behind them its embeddings are NaN.
    """
    longest = -(-int(lengths.max(initial=1)) // _MULTIPLE) * _MULTIPLE
    if given:
        inside = sorted({length for length in given if length < longest})
        beyond = [length for length in given if length >= longest]
        return _within((*inside, min(beyond) if beyond else longest), limit)
    sizes = np.arange(_MULTIPLE, longest + 1, _MULTIPLE)
    rows = np.bincount((lengths - 1) // _MULTIPLE, minlength=len(sizes))
    real = max(int(lengths.sum()), 1)
    found: tuple[int, ...] = (longest,)
    for count in range(1, min(most, MOST_BUCKETS, len(sizes)) + 1):
        tokens, found = _fewest_tokens(sizes, rows, count)
        if tokens <= _ENOUGH * real:
            break
    return _within(found, limit)


def _within(buckets: tuple[int, ...], limit: int | None) -> tuple[int, ...]:
    return buckets if limit is None else tuple(sorted({min(length, limit) for length in buckets}))


def _fewest_tokens(sizes: np.ndarray, rows: np.ndarray, count: int) -> tuple[float, tuple[int, ...]]:
    """The `count` sizes, the largest among them, under which rows padded up to them have the fewest tokens."""
    below = np.concatenate([[0], np.cumsum(rows)])
    best = [(float(below[i + 1] * sizes[i]), (int(sizes[i]),)) for i in range(len(sizes))]
    for _ in range(count - 1):
        best = [
            min(
                [best[i]]
                + [
                    (best[j][0] + float((below[i + 1] - below[j + 1]) * sizes[i]), (*best[j][1], int(sizes[i])))
                    for j in range(i)
                ]
            )
            for i in range(len(sizes))
        ]
    return best[-1]


def epoch_plan(
    lengths: np.ndarray, buckets: Sequence[int], batch_size: int, generator: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Batches of one epoch, each a length and the rows in it; every row exactly once, in ceil(N / batch_size) batches.

    What is left over of a bucket goes along with the next longer one, so that only one batch is not full.
    """
    bucket_of = np.searchsorted(buckets, lengths)
    order = generator.permutation(len(lengths))
    batches: list[tuple[int, np.ndarray]] = []
    left = order[:0]
    for number, length in enumerate(buckets):
        rows = np.concatenate([left, order[bucket_of[order] == number]])
        full = len(rows) - len(rows) % batch_size
        batches += [(int(length), rows[first : first + batch_size]) for first in range(0, full, batch_size)]
        left = rows[full:]
    if len(left):
        longest = buckets[int(bucket_of[left].max())]
        batches.append((int(longest), left))
    return [batches[number] for number in generator.permutation(len(batches))]


def evaluation_plan(lengths: np.ndarray, buckets: Sequence[int], batch_size: int) -> list[tuple[int, np.ndarray]]:
    """Batches that hold every row exactly once, rows of like lengths together."""
    bucket_of = np.searchsorted(buckets, lengths)
    batches = []
    for number, length in enumerate(buckets):
        rows = np.flatnonzero(bucket_of == number)
        batches += [(int(length), rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]
    return batches


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches of one pass over the rows."""
    return -(-rows // batch_size)


def training_plan(
    lengths: np.ndarray, buckets: Sequence[int], batch_size: int, seed: int
) -> Callable[[int], tuple[int, np.ndarray]]:
    """A function step -> (length, rows) of its batch: of nothing but the step's number and the arguments.

    Epoch e is shuffled by (seed, e).
    """
    per_epoch = steps_per_epoch(len(lengths), batch_size)

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> list[tuple[int, np.ndarray]]:
        return epoch_plan(lengths, buckets, batch_size, np.random.default_rng([seed, number]))

    return lambda step: epoch(step // per_epoch)[step % per_epoch]


def collate(
    encoded: Encoded,
    kind: Kind,
    rows: np.ndarray,
    length: int,
    batch_size: int,
    class_weights: np.ndarray | None = None,
    ids: Sequence[np.ndarray] | None = None,
) -> Batch:
    """A global batch of `batch_size` rows of `length`; places beyond `rows` are empty and weigh nothing.

    Args:
        encoded: the set.
        kind: of its rows.
        rows: numbers of the rows, at most `batch_size`.
        length: tokens to pad to.
        batch_size: B.
        class_weights: [classes] float32, weight of an example or tag by its label, of class sets [K] that of each
            class where the example has it; None: all 1.
        ids: token ids of the rows, where they are not those of `encoded` (augmented ones).

    Returns:
        ids, types [B, L] ([B, C, L] for choices) int32; mask, alike, int32; labels (as in `Encoded`, padded with 0);
        weights [B] or (tags) [B, L] float32, which add up to 1: of the loss against the labels; shares, alike,
        without the class weights: of the loss against a teacher; token_share [B] float32, one over the real tokens of
        the batch. Labels, weights and shares are left out where labels are not known (tags keep theirs). Class sets
        with class weights have weights [B, K], the shares times 1 or the class's weight: their sum is not 1, as in
        torch's BCEWithLogitsLoss(pos_weight).
    """
    given = [encoded.ids[row] for row in rows] if ids is None else ids
    shape = (batch_size, *encoded.ids[rows[0]].shape[:-1], length)
    batch: Batch = {
        name: np.full(shape, fill, np.int32) for name, fill in (("ids", encoded.pad_id), ("types", 0), ("mask", 0))
    }
    for place, (row, values) in enumerate(zip(rows, given, strict=True)):
        size = values.shape[-1]
        batch["ids"][place, ..., :size] = values
        batch["types"][place, ..., :size] = encoded.types[row]
        # The padding inside a choice's shorter endings is recognised by its id, which no text gives.
        batch["mask"][place, ..., :size] = 1 if values.ndim == 1 else values != encoded.pad_id
    # An empty row attends to its first token: softmax over nothing would be NaN.
    batch["mask"][len(rows) :, ..., 0] = 1
    real = float(batch["mask"][: len(rows)].sum())
    batch["token_share"] = np.zeros(batch_size, np.float32)
    batch["token_share"][: len(rows)] = 1.0 / real
    if encoded.labels is not None:
        batch |= _labelled(encoded.labels, kind, rows, length, batch_size, class_weights)
    return batch


def _labelled(
    labels: list[np.ndarray],
    kind: Kind,
    rows: np.ndarray,
    length: int,
    batch_size: int,
    class_weights: np.ndarray | None,
) -> dict[str, Any]:
    first = labels[rows[0]]
    tags = kind == "token"
    shape = (batch_size, length) if tags else (batch_size, *first.shape)
    found: Any = np.zeros(shape, first.dtype)
    counts = np.zeros(shape if tags else (batch_size,), np.float32)
    for place, row in enumerate(rows):
        if tags:
            size = len(labels[row])
            found[place, :size] = np.maximum(labels[row], 0)
            counts[place, :size] = labels[row] != IGNORED
        else:
            found[place], counts[place] = labels[row], 1.0
    shares = (counts / max(counts.sum(dtype=np.float64), 1.0)).astype(np.float32)
    if class_weights is not None and kind == "sequence" and first.ndim == 1:
        positive = np.where(found > 0, class_weights, 1.0)
        return {"labels": found, "weights": (shares[:, None] * positive).astype(np.float32), "shares": shares}
    weights = counts if class_weights is None else counts * class_weights[found]
    return {
        "labels": found,
        "weights": (weights / max(weights.sum(dtype=np.float64), 1e-9)).astype(np.float32),
        "shares": shares,
    }
