"""Held-out evaluation: masked-token loss, perplexity and accuracy, and how near a student is to its teacher."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from distil_jax.data.corpus import Corpus
from distil_jax.data.corpus.masking import masking_log_weights
from distil_jax.objectives import SumCount
from distil_jax.training.parallel import Devices
from distil_jax.training.step import FrozenInputs, Params, StepConfig, make_evaluation_step


class Evaluator(Protocol):
    """(params, teacher's params or None), both on the devices -> measures; `go` is called before every batch."""

    def __call__(
        self, params: Params, teacher_params: Params | None, go: Callable[[], None] = ..., /
    ) -> dict[str, float]: ...


def make_evaluator(
    devices: Devices, task: StepConfig, corpus: Corpus, *, smoothing: float, rows: int, batch_size: int, seed: int
) -> Evaluator:
    """An evaluator of the first `rows` rows of `corpus` (0: all), compiled once.

    Masks depend on `seed`, the corpus and the row alone, so results depend neither on `batch_size` or the number of
    devices, nor on what the model was trained on: every model answers the same questions.

    Returns:
        A function (params, teacher params or None), both on the devices -> {"mlm_loss" (nats), "perplexity",
        "accuracy" (share), "predictions" (count), and with a teacher "kl" (nats, temperature 1) and "agreement"
        (share)}, all over the predicted positions.
    """
    log_weights = devices.replicate(masking_log_weights(corpus.token_counts, corpus.special_ids, smoothing))
    per_device = -(-batch_size // devices.count)
    batch = per_device * devices.count
    total = min(rows or corpus.num_rows, corpus.num_rows)
    settings = dataclasses.replace(task, micro_batch_size=per_device, seed=seed)
    step = devices.map(make_evaluation_step(settings), replicated=3)
    part = devices.process_part(batch)

    def read(first: int) -> np.ndarray:
        ids = np.full((part.stop - part.start, corpus.sequence_length), corpus.pad_id, corpus.dtype)
        wanted = np.arange(first + part.start, min(first + part.stop, total))
        ids[: len(wanted)] = corpus.read(wanted)
        return ids

    def evaluate(
        params: Params, teacher_params: Params | None, go: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        constants = FrozenInputs(teacher_params, log_weights)
        sums: Any = None
        for first in range(0, total, batch):
            rows = devices.shard_batch(read(first))
            go()
            found: Any = step(params, constants, np.int32(first), rows)
            # Added up on the host in float64: thousands of batches must not lose digits.
            found = jax.tree.map(lambda x: np.float64(np.asarray(x)), found)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        return _report(sums)

    return evaluate


def _report(sums: dict[str, SumCount]) -> dict[str, float]:
    means = {name: float(term.sum / max(term.count, 1)) for name, term in sums.items()}
    loss = means.pop("mlm")
    perplexity = math.exp(min(loss, 700.0))
    return {"mlm_loss": loss, "perplexity": perplexity, **means, "predictions": float(sums["mlm"].count)}
