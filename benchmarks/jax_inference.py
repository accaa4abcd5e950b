"""Classifying texts with what `distil-jax predict` computes with, as a worker of `inference_latency.py`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.benchmark.machine import describe_machine
from distil_jax.benchmark.process import peak_memory, pin, serve
from distil_jax.benchmark.synthetic import random_params
from distil_jax.hf import read_task_model, save_pretrained, task_head
from distil_jax.models import EncoderConfig, EncoderInputs, TaskModel
from distil_jax.training.inference import make_network, usual_length, usual_rows
from distil_jax.training.parallel import make_devices


def write_models(folder: str, sizes: dict[str, Any], vocabulary: int, layers: int) -> dict[str, Any]:
    """Write teacher/ (BERT) and student/ (DistilBERT with `layers` layers), scoring pairs, with random weights."""
    common = {"vocab_size": vocabulary, "max_position_embeddings": 512, **sizes}
    models = {
        "teacher": EncoderConfig(family="bert", type_vocab_size=2, pooler=True, **common),
        "student": EncoderConfig(family="distilbert", **{**common, "num_layers": layers}),
    }
    for name, encoder in models.items():
        head = task_head(encoder, None, "sequence", (), "regression")
        encoder = dataclasses.replace(encoder, pooler=head.needs_pooler)
        params = random_params(TaskModel(encoder, head), 0.04)
        save_pretrained(Path(folder) / name, encoder, params, head=head)
    return {"machine": describe_machine()}


class Side:
    """The worker's state between requests."""

    def open(self, **request: Any) -> dict[str, Any]:
        """Load a model and compile it for every length of the rows [count, at most L] in the file."""
        pin(request["cores"])
        encoder, params, head, *_ = read_task_model(request["model"], "sequence")
        assert head is not None
        devices = make_devices("shard_map", 1)
        self._compute = make_network(devices, TaskModel(encoder, head), params)
        self._rows = [row[row > 0] for row in np.load(request["rows"])["ids"]]
        self._batches = [self._padded(row[None]) for row in self._rows]
        large = np.load(request["rows"])["large"]
        size = usual_rows(devices, large.shape[1])  # as many at a time as `distil-jax predict` takes
        self._large = [self._padded(large[first : first + size]) for first in range(0, len(large), size)]
        for batch in (*self._batches, *self._large):
            self._call(batch)
        return {"jax": jax.__version__}

    def _padded(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = usual_length(ids.shape[1], 512, alone=len(ids) == 1)
        padded = np.zeros((len(ids), length), np.int32)
        padded[:, : ids.shape[1]] = ids
        return padded, (padded > 0).astype(np.int32)

    def _call(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        arrays: Any = batch
        return np.asarray(self._compute(EncoderInputs(*arrays, token_type_ids=0 * arrays[0])))

    def scores(self) -> dict[str, Any]:
        """What the model says to every row."""
        return {"scores": [float(self._call(batch)[0, 0]) for batch in self._batches]}

    def round(self, what: str) -> dict[str, Any]:
        """Seconds a row: of "single" rows one after the other, padding included, or of one "large" batch."""
        start = time.perf_counter()
        if what == "single":
            for row in self._rows:
                self._call(self._padded(row[None]))
            return {"seconds": (time.perf_counter() - start) / len(self._rows)}
        for batch in self._large:
            self._call(batch)
        return {"seconds": (time.perf_counter() - start) / sum(len(ids) for ids, _ in self._large)}

    def memory(self) -> dict[str, Any]:
        """Bytes held at most."""
        return {"peak_bytes": peak_memory()}


if __name__ == "__main__":
    side = Side()
    serve(
        {"write_models": write_models, **{name: getattr(side, name) for name in ("open", "scores", "round", "memory")}}
    )
