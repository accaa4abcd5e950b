"""Rows of many lengths in batches of few shapes: few programs to compile, little padding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distil_jax.tasks.encoded import NO_TOKEN, Encoded

if TYPE_CHECKING:
    from distil_jax.models import EncoderInputs
    from distil_jax.tasks.kinds import TaskKind

_MULTIPLE = 8  # lengths are multiples of what matrix units and vector registers like
MOST_BUCKETS = 6  # programs to compile at most
_ENOUGH = 1.1  # this much padded / real work is not worth one more program


class Labels(NamedTuple):
    """Labels of a batch.

    Attributes:
        labels: as in `Encoded`, padded with 0.
        weights: [B] or (tags) [B, L] float32, which add up to 1: of the loss against the labels.
        shares: alike, without the class weights: of the loss against a teacher.
    """

    labels: np.ndarray
    weights: np.ndarray
    shares: np.ndarray


class TaskBatch(NamedTuple):
    """A batch of fine-tuning, of NumPy arrays or, inside a step, of JAX arrays.

    Attributes:
        inputs: ids, mask and segments [B, L] int32; of choices [B, C, L].
        labels: as in `Encoded`, padded with 0; None where none is known.
        weights: of the loss against the labels, [B] or (tags) [B, L] float32, 0 where a label is not known; they add
            up to 1 where any label of the global batch is, but for class sets [B, K] with class weights. None as
            `labels`.
        shares: of the loss against a teacher, [B] or (tags) [B, L] float32; they add up to 1.
        token_share: [B] (of choices [B, C]) float32, one over the real tokens of the global batch; 0 for empty rows.
        phase: which terms are learned from it (`training.task_phases`): no array, a part of the batch's structure.
    """

    inputs: EncoderInputs
    labels: Any
    weights: Any
    shares: Any
    token_share: Any
    phase: Any = None


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
    lengths: np.ndarray, buckets: Sequence[int], batch_size: int, *seed: int
) -> Callable[[int], tuple[int, np.ndarray]]:
    """A function step -> (length, rows) of its batch: of nothing but the step's number and the arguments.

    Epoch e is shuffled by (first seed, e, further seeds).
    """
    per_epoch = steps_per_epoch(len(lengths), batch_size)

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> list[tuple[int, np.ndarray]]:
        return epoch_plan(lengths, buckets, batch_size, np.random.default_rng([seed[0], number, *seed[1:]]))

    return lambda step: epoch(step // per_epoch)[step % per_epoch]


def collate_inputs(
    encoded: Encoded, rows: np.ndarray, length: int, batch_size: int, ids: Sequence[np.ndarray] | None = None
) -> tuple[EncoderInputs, np.ndarray]:
    """What a model reads of a batch, and the share of a row's token among the real ones of the batch.

    Args:
        encoded: the set.
        rows: numbers of the rows, at most `batch_size`.
        length: tokens to pad to.
        batch_size: B; places beyond `rows` are empty.
        ids: token ids of the rows, where they are not those of `encoded` (augmented ones).

    Returns:
        ids, mask and segments [B, L] (of choices [B, C, L]) int32, and shares [B] (or [B, C]) float32, 0 for empty
        places and for endings that an example does not have.
    """
    from distil_jax.models import EncoderInputs

    given = [encoded.ids[row] for row in rows] if ids is None else ids
    shape = (batch_size, encoded.choices, length) if encoded.choices else (batch_size, length)
    # NumPy arrays, for fields that hold JAX arrays inside a step.
    tokens, mask, types = arrays = [np.full(shape, fill, np.int32) for fill in (encoded.pad_id, 0, 0)]
    for place, (row, values) in enumerate(zip(rows, given, strict=True)):
        area = (place, *map(slice, values.shape))
        real = values != NO_TOKEN
        tokens[area], mask[area], types[area] = np.where(real, values, encoded.pad_id), real, encoded.types[row]
    shares = np.where(mask.any(axis=-1), np.float32(1.0 / max(float(mask.sum()), 1.0)), np.float32(0))
    # An empty row attends to its first token: softmax over nothing would be NaN.
    mask[..., 0] = 1
    ids_mask_types: Any = arrays
    return EncoderInputs(*ids_mask_types[:2], token_type_ids=ids_mask_types[2]), shares


def collate(
    encoded: Encoded,
    kind: TaskKind[Any],
    rows: np.ndarray,
    length: int,
    batch_size: int,
    class_weights: np.ndarray | None = None,
    ids: Sequence[np.ndarray] | None = None,
) -> TaskBatch:
    """A global batch of `batch_size` rows of `length`; places beyond `rows` weigh nothing.

    Args:
        encoded: the set.
        kind: of its rows.
        rows: numbers of the rows, at most `batch_size`.
        length: tokens to pad to.
        batch_size: B.
        class_weights: [classes] float32, weight of an example or tag by its label, of class sets [K] that of each
            class where the example has it; None: all 1.
        ids: token ids of the rows, where they are not those of `encoded` (augmented ones).
    """
    assert encoded.labels is not None
    inputs, token_share = collate_inputs(encoded, rows, length, batch_size, ids)
    labels = kind.labels([encoded.labels[row] for row in rows], length, batch_size, class_weights)
    if encoded.labelled is None:
        return TaskBatch(inputs, labels.labels, labels.weights, labels.shares, token_share)
    if not encoded.labelled.any():
        return TaskBatch(inputs, None, None, labels.shares, token_share)
    known = np.zeros(batch_size, np.float32)
    known[: len(rows)] = encoded.labelled[rows]
    weights, shares = (x * known.reshape(-1, *[1] * (x.ndim - 1)) for x in (labels.weights, labels.shares))
    # A mean over the rows with a label. Class weights of class sets are factors, those of single labels add up to 1.
    total = (weights if weights.shape == shares.shape else shares).sum(dtype=np.float64)
    weights = (weights / max(total, 1e-9)).astype(np.float32)
    return TaskBatch(inputs, labels.labels, weights, labels.shares, token_share)


def row_labels(labels: Sequence[np.ndarray], length: int, batch_size: int, class_weights: np.ndarray | None) -> Labels:
    """One label a row: labels [B, ...], weights and shares [B]. Arguments as in `TaskKind.labels`."""
    del length
    found = np.zeros((batch_size, *labels[0].shape), labels[0].dtype)
    counts = np.zeros(batch_size, np.float32)
    for place, label in enumerate(labels):
        found[place], counts[place] = label, 1.0
    return normalised(found, counts, class_weights)


def normalised(labels: np.ndarray, counts: np.ndarray, class_weights: np.ndarray | None) -> Labels:
    """Labels with weights and shares that add up to 1; `counts`, shaped as they are, is 1 where a label counts."""
    weights = counts if class_weights is None else counts * class_weights[labels]
    return Labels(
        labels,
        (weights / max(weights.sum(dtype=np.float64), 1e-9)).astype(np.float32),
        (counts / max(counts.sum(dtype=np.float64), 1.0)).astype(np.float32),
    )
