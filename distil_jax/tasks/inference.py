"""Logits of every row of a set, on any number of devices, and what they say in the words of the task."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import jax
import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig, TaskHead, TaskModel, transpose_kernels
from distil_jax.tasks.answers import AnswerOptions, predicted_answers
from distil_jax.tasks.batches import Batch, choose_buckets, collate, evaluation_plan
from distil_jax.tasks.encode import Encoded, word_logits
from distil_jax.tasks.examples import Example, Kind, QuestionExample, TaskData, TokenExample
from distil_jax.tasks.metrics.entities import entity_measures
from distil_jax.tasks.metrics.scores import measure
from distil_jax.tasks.metrics.squad import squad_measures
from distil_jax.tasks.registry import TAG_METRICS
from distil_jax.training.parallel import Devices
from distil_jax.training.task_step import make_logits_step

Logits = list[np.ndarray]


class Predictor(Protocol):
    """(parameters on the devices, set) -> logits of its rows; `go` is called before every batch."""

    def __call__(self, params: Any, encoded: Encoded, go: Callable[[], None] = ..., /) -> Logits: ...


SCORE = "score"
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # that batches are padded to
LENGTHS_ALONE = tuple(sorted({*LENGTHS, 24, 40, 80}))  # and a row that comes alone, which waits for its padding
_NO_TAG = "O"
_BATCHES_A_PROGRAM = 8  # fewer batches of a length are not worth compiling for it
_BATCH_TOKENS = 1 << 16  # of a device where nobody has said how many
_BATCH_TOKENS_CPU = 1 << 10  # enough for its arithmetic units to be busy, few enough for its caches
_IN_FLIGHT = 4  # batches that the device has before it


def make_predictor(devices: Devices, model: TaskModel, batch_size: int, buckets: Sequence[int] = ()) -> Predictor:
    """A function (parameters on the devices, set) -> logits of its rows, each of the row's own length.

    Args:
        devices: share every batch.
        model: the network.
        batch_size: rows at a time over all devices, rounded up to a multiple of their number.
        buckets: lengths to pad to; empty: chosen from the set.
    """
    step = devices.map(make_logits_step(model), replicated=1)
    size = -(-batch_size // devices.count) * devices.count
    part = devices.process_part(size)

    def predict(params: Any, encoded: Encoded, go: Callable[[], None] = lambda: None) -> Logits:
        programs = max(len(encoded) // (size * _BATCHES_A_PROGRAM), 1)
        chosen = choose_buckets(encoded.lengths, buckets, programs, model.config.max_length)
        plan = evaluation_plan(encoded.lengths, chosen, size)

        def compute(batch: Batch) -> Any:
            rows = devices.shard_batch({name: values[part] for name, values in batch.items()})
            go()
            return step(params, rows)

        batches = ((rows, length, size) for length, rows in plan)
        return logits_of_rows(model.head.kind, encoded, batches, compute)

    return predict


def make_network(
    devices: Devices, encoder: EncoderConfig, head: TaskHead, params: Any, dtype: str = "float32"
) -> Callable[[Batch], Any]:
    """A function {"ids", "mask", "types"} [B, L] -> logits on the devices, for batches down to one text at a time.

    Args:
        devices: of this process, mapped over by `shard_map`; they share every batch, B is a multiple of their number.
        encoder: sizes.
        head: of the task.
        params: {"encoder", "task_head"} of NumPy arrays, put on the devices in the order that is fastest there.
        dtype: what is computed in.
    """
    # Few rows: the processor's time goes into reading kernels. Products of bfloat16 have no faster form there.
    columns = devices.are_the_host and dtype == "float32"
    model = TaskModel(encoder, head, np.dtype(dtype), transposed=columns)
    if columns:
        params = jax.tree.map(np.ascontiguousarray, transpose_kernels(params))
    held = devices.replicate(params)
    step = devices.map(make_logits_step(model), replicated=1)
    # The batch goes in as it is: placed by itself first, it costs a text that comes alone half a millisecond more.
    return lambda batch: step(held, batch)


def usual_length(tokens: int, most: int, *, alone: bool) -> int:
    """What rows of up to so many tokens are padded to: one of few lengths, as each is a program to compile, or `most`.

    `alone`: it is one row.
    """
    length = min((one for one in (LENGTHS_ALONE if alone else LENGTHS) if one >= tokens), default=most)
    return max(min(length, most), tokens)


def usual_rows(devices: Devices, tokens: int) -> int:
    """How many rows of so many tokens all devices together are given at a time: a power of two."""
    most = devices.count * (_BATCH_TOKENS_CPU if devices.are_the_host else _BATCH_TOKENS)
    return 1 << max(most // tokens, 1).bit_length() - 1


def logits_of_rows(
    kind: Kind,
    encoded: Encoded,
    batches: Iterable[tuple[np.ndarray, int, int]],
    compute: Callable[[Batch], Any],
) -> Logits:
    """Logits of every row, without those of its padding; the host takes them up while the device computes the next.

    Args:
        kind: of the rows.
        encoded: the set.
        batches: (rows, length to pad to, batch size) of each batch; together they hold every row once.
        compute: {"ids", "mask", "types"} of a batch -> its logits, on the devices.

    Raises:
        UserError: logits that are not finite.
    """
    found: Logits = [np.empty(0)] * len(encoded)

    def take(rows: np.ndarray, logits: Any) -> None:
        values = np.asarray(logits, np.float32)[: len(rows)]
        if not np.isfinite(values).all():
            raise UserError("the model's outputs are not finite; it has diverged, or its weights are damaged")
        for row, one in zip(rows, values, strict=True):
            found[row] = one[: encoded.lengths[row]] if kind in ("token", "question") else one

    in_flight: collections.deque[tuple[np.ndarray, Any]] = collections.deque()
    for rows, length, size in batches:
        batch = collate(encoded, kind, rows, length, size)
        in_flight.append((rows, compute({name: batch[name] for name in ("ids", "mask", "types")})))
        if len(in_flight) > _IN_FLIGHT:
            take(*in_flight.popleft())
    for rows, logits in in_flight:
        take(rows, logits)
    return found


def predicted_tags(
    logits: Logits, encoded: Encoded, examples: Sequence[TokenExample], labels: Sequence[str]
) -> list[list[str]]:
    """A tag for every word of every sentence; words without a token get "O" (or the first tag)."""
    missing = _NO_TAG if _NO_TAG in labels else labels[0]
    found: list[list[str]] = []
    for (words, rows), example in zip(word_logits(encoded, logits, len(examples)), examples, strict=True):
        tags = [missing] * len(example.words)
        for word, number in zip(words, rows.argmax(axis=-1), strict=True):
            tags[word] = labels[number]
        found.append(tags)
    return found


def has_unanswerable(examples: Sequence[QuestionExample]) -> bool:
    """Whether some questions are known to have no answer (SQuAD 2.0)."""
    return any(example.answers == () for example in examples)


def measures_of(
    data: TaskData, settings: TaskSettings, examples: Sequence[Example], encoded: Encoded, logits: Logits
) -> dict[str, float]:
    """The task's measures over one set, as shares (0 to 1)."""
    kind = data.spec.kind
    if kind == "token":
        sentences = cast("Sequence[TokenExample]", examples)
        tags = predicted_tags(logits, encoded, sentences, data.labels)
        references = [[data.labels[tag] for tag in example.tags or ()] for example in sentences]
        found = entity_measures(tags, references)
        return found if data.spec.metrics != TAG_METRICS else {name: found[name] for name in TAG_METRICS}
    if kind == "question":
        questions = cast("Sequence[QuestionExample]", examples)
        two = is_version_2(data)
        options = AnswerOptions(no_answer=two, null_threshold=settings.null_threshold)
        answers = predicted_answers(logits, encoded, questions, settings, options)
        if not two:
            texts = {answer.id: answer.text for answer in answers}
            found = squad_measures(texts, questions, version_2=False)
        else:
            spans = {answer.id: answer.span.text for answer in answers}
            scores = {answer.id: answer.no_answer_score for answer in answers}
            found = squad_measures(spans, questions, scores, version_2=True, threshold=settings.null_threshold)
        return {name: value for name, value in found.items() if not name.endswith("total")}  # no shares
    references = np.stack(encoded.labels or [])
    outputs = np.stack(logits)
    if data.spec.problem == "regression":
        outputs, references = outputs.reshape(len(outputs), -1)[:, 0], references.reshape(len(references), -1)[:, 0]
    return measure(data.spec.metrics, outputs, references)


def validation_measures(
    data: TaskData, settings: TaskSettings, held_out: Mapping[str, Encoded], predict: Callable[[Encoded], Logits]
) -> dict[str, float]:
    """Measures over all validation sets, the task's score first.

    The first set's have plain names, those of further ones (MNLI's mismatched) the set's before.

    Args:
        data: the task, whose validation sets are measured on.
        settings: of its data.
        held_out: those sets, encoded, by name.
        predict: logits of every row of a set.
    """
    found: dict[str, float] = {}
    for number, (name, encoded) in enumerate(held_out.items()):
        measures = measures_of(data, settings, data.validation[name], encoded, predict(encoded))
        if number == 0:
            found = {SCORE: score(data.spec.headline, data.spec.metrics, measures)}
        found |= {key if number == 0 else f"{name}_{key}": value for key, value in measures.items()}
    return found


def is_version_2(data: TaskData) -> bool:
    """Whether any known question of the task's data has no answer."""
    sets: list[Sequence[Any]] = [data.train, *data.validation.values()]
    return any(has_unanswerable(examples) for examples in sets) if data.spec.kind == "question" else False


def score(spec_headline: Sequence[str], metrics: Sequence[str], measures: Mapping[str, float]) -> float:
    """The one number of a task: the mean of its headline measures, else its first measure."""
    names = list(spec_headline) or list(itertools.islice(metrics, 1))
    return float(np.mean([measures[name] for name in names]))
