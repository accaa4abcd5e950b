"""Logits of every row of a set, on any number of devices."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from distil_jax.errors import UserError
from distil_jax.models import EncoderInputs, SentenceEncoder, TaskHead, TaskModel, transpose_kernels
from distil_jax.tasks import Encoded, choose_buckets, collate_inputs, evaluation_plan
from distil_jax.training.parallel import Devices
from distil_jax.training.step import AXIS, Params
from distil_jax.training.task_step import readable


class LogitsOfSet(Protocol):
    """(parameters on the devices, set) -> logits of its rows; `go` is called before every batch."""

    def __call__(self, params: Any, encoded: Encoded, go: Callable[[], None] = ..., /) -> list[np.ndarray]: ...


LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # that batches are padded to
LENGTHS_ALONE = tuple(sorted({*LENGTHS, 24, 40, 80}))  # and a row that comes alone, which waits for its padding
_BATCHES_A_PROGRAM = 8  # fewer batches of a length are not worth compiling for it
_BATCH_TOKENS = 1 << 16  # of a device, by default
_BATCH_TOKENS_CPU = 1 << 10  # enough for its arithmetic units to be busy, few enough for its caches
_IN_FLIGHT = 4  # batches that wait for the device


def make_logits_step(model: TaskModel | SentenceEncoder) -> Callable[[Params, EncoderInputs], Array]:
    """The per-device `(params, inputs [b, ...]) -> what the model gives of all devices' rows`, in their order.

    A model of transposed products takes parameters as `transpose_kernels` gives them.
    """

    def logits_step(params: Params, inputs: EncoderInputs) -> Array:
        if model.product == "transposed":
            params = transpose_kernels(params)  # names them as the model does; in memory they stay as they are
        logits: Any = model.apply({"params": params}, readable(model, inputs))
        return jax.lax.all_gather(logits, AXIS, tiled=True)

    return logits_step


def make_predictor(devices: Devices, model: TaskModel, batch_size: int, buckets: Sequence[int] = ()) -> LogitsOfSet:
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

    def predict(params: Any, encoded: Encoded, go: Callable[[], None] = lambda: None) -> list[np.ndarray]:
        programs = max(len(encoded) // (size * _BATCHES_A_PROGRAM), 1)
        chosen = choose_buckets(encoded.lengths, buckets, programs, model.config.max_length)
        plan = evaluation_plan(encoded.lengths, chosen, size)

        def compute(inputs: EncoderInputs) -> Any:
            rows = devices.shard_batch(jax.tree.map(lambda values: values[part], inputs))
            go()
            return step(params, rows)

        batches = ((rows, length, size) for length, rows in plan)
        return outputs_of_rows(encoded, batches, compute, own_logits(model.head, encoded))

    return predict


def make_network(devices: Devices, model: TaskModel | SentenceEncoder, params: Any) -> Callable[[EncoderInputs], Any]:
    """A function (inputs [B, L]) -> what the model gives, on the devices, for batches down to one text at a time.

    Args:
        devices: of this process, mapped over by `shard_map`; they share every batch, B is a multiple of their number.
        model: what is computed.
        params: of NumPy arrays, put on the devices in the order that is fastest there.
    """
    # Few rows: the processor's time goes into reading kernels. Products of bfloat16 have no faster form there.
    columns = devices.are_the_host and np.dtype(model.dtype) == np.float32
    model = model.clone(product="transposed" if columns else "plain")
    if columns:
        params = jax.tree.map(np.ascontiguousarray, transpose_kernels(params))
    placed = devices.replicate(params)
    step = devices.map(make_logits_step(model), replicated=1)
    # The batch goes in as it is: placed by itself first, it costs a text that comes alone half a millisecond more.
    return lambda inputs: step(placed, inputs)


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


def own_logits(head: TaskHead, encoded: Encoded) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function (number of a row, its logits) -> those without what belongs to the row's padding."""

    def own(row: int, logits: np.ndarray) -> np.ndarray:
        if encoded.choices:
            return logits[: len(encoded.ids[row])]
        return logits if head.reads_token_0 else logits[: encoded.lengths[row]]

    return own


def outputs_of_rows(
    encoded: Encoded,
    batches: Iterable[tuple[np.ndarray, int, int]],
    compute: Callable[[EncoderInputs], Any],
    own: Callable[[int, np.ndarray], np.ndarray] = lambda _, values: values,
) -> list[np.ndarray]:
    """What a model gives of every row; the host takes it up while the device computes the next.

    Args:
        encoded: the set.
        batches: (rows, length to pad to, batch size) of each batch; together they hold every row once.
        compute: inputs of a batch -> what the model gives, on the devices.
        own: as `own_logits` makes it.

    Raises:
        UserError: numbers that are not finite.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(encoded)

    def take(rows: np.ndarray, outputs: Any) -> None:
        values = np.asarray(outputs, np.float32)[: len(rows)]
        if not np.isfinite(values).all():
            raise UserError("the model's outputs are not finite; it has diverged, or its weights are damaged")
        for row, one in zip(rows, values, strict=True):
            found[row] = own(row, one)

    in_flight: collections.deque[tuple[np.ndarray, Any]] = collections.deque()
    for rows, length, size in batches:
        in_flight.append((rows, compute(collate_inputs(encoded, rows, length, size)[0])))
        if len(in_flight) > _IN_FLIGHT:
            take(*in_flight.popleft())
    for rows, outputs in in_flight:
        take(rows, outputs)
    return found
