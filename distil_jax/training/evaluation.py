"""Held-out evaluation: masked-token loss, perplexity and accuracy, and how near a student is to its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from distil_jax.data.corpus import Corpus, masking_log_weights
from distil_jax.objectives import SumCount
from distil_jax.training.parallel import Devices
from distil_jax.training.step import Evaluator, FrozenInputs, Params
from distil_jax.training.text_step import TextModels, make_evaluation_step


def make_evaluator(
    devices: Devices, models: TextModels, corpus: Corpus, *, smoothing: float, rows: int, batch_size: int, seed: int
) -> Evaluator:
    """An evaluator of the first `rows` rows of `corpus` (0: all), compiled once.

    Masks depend on `seed`, the corpus and the row alone, so results depend neither on `batch_size` or the number of
    devices, nor on what the model was trained on: every model answers the same questions.

    Returns:
        A function (params, frozen inputs), both on the devices -> with a masked-LM head {"mlm_loss" (nats),
        "perplexity", "accuracy" (share), "predictions" (count), and where the teacher has one too "kl" (nats,
        temperature 1) and "agreement" (share)}, all over the predicted positions; with a teacher the objective's terms
        on activations, by name. Of the frozen inputs only the teacher is read.
    """
    log_weights = devices.replicate(masking_log_weights(corpus.token_counts, corpus.special_ids, smoothing))
    held_out_seed = devices.replicate(np.int32(seed))
    per_device = -(-batch_size // devices.count)
    batch = per_device * devices.count
    total = min(rows or corpus.num_rows, corpus.num_rows)
    step = devices.map(make_evaluation_step(models, per_device), replicated=3)
    part = devices.process_part(batch)

    def read(first: int) -> np.ndarray:
        ids = np.full((part.stop - part.start, corpus.sequence_length), corpus.pad_id, corpus.dtype)
        wanted = np.arange(first + part.start, min(first + part.stop, total))
        ids[: len(wanted)] = corpus.read(wanted)
        return ids

    def evaluate(
        params: Params, frozen: FrozenInputs, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        held_out = FrozenInputs(held_out_seed, frozen.teacher, log_weights)
        sums: Any = None
        for first in range(0, total, batch):
            rows = devices.shard_batch(read(first))
            before_batch()
            found: Any = step(params, held_out, np.int32(first), rows)
            # Added up on the host in float64: thousands of batches must not lose digits.
            found = jax.tree.map(lambda x: np.float64(np.asarray(x)), found)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        return _measures(sums)

    return evaluate


def _measures(sums: dict[str, SumCount]) -> dict[str, float]:
    means = {name: float(term.sum / max(term.count, 1)) for name, term in sums.items()}
    if "mlm" not in sums:
        return means
    loss = means.pop("mlm")
    perplexity = math.exp(min(loss, 700.0))
    return {"mlm_loss": loss, "perplexity": perplexity, **means, "predictions": float(sums["mlm"].count)}
