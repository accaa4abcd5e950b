"""Classifying texts with transformers in PyTorch, as a worker of `inference_latency.py`.

Kinds: eager (attention written out), sdpa, compile (sdpa under `torch.compile`, in the same buckets of lengths).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from distil_jax.benchmark.process import peak_memory, pin, serve


class Side:
    """The worker's state between requests."""

    def open(self, **request: Any) -> dict[str, Any]:
        """Load a model and call it once on every row of the file."""
        import transformers

        pin(request["cores"])
        if request["cores"]:
            torch.set_num_threads(len(request["cores"]))
        self._compiled = request["kind"] == "compile"
        self._lengths = request["lengths"]
        attention = "eager" if request["kind"] == "eager" else "sdpa"
        kind: Any = transformers.AutoModelForSequenceClassification
        self._model = kind.from_pretrained(request["model"], attn_implementation=attention).eval()
        self._forward = self._model
        if self._compiled:
            torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
            self._forward = torch.compile(self._model, dynamic=False)
        arrays = np.load(request["rows"])
        self._rows = [torch.from_numpy(row[row > 0][None].astype(np.int64)) for row in arrays["ids"]]
        self._large = torch.from_numpy(arrays["large"].astype(np.int64))
        for ids in (*self._rows, self._large):
            self._call(ids)
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def _call(self, ids: torch.Tensor) -> np.ndarray:
        """Logits; without padding for eager code, which takes every length as it comes."""
        if self._compiled:
            length = min(one for one in self._lengths if one >= ids.shape[1])
            ids = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
        with torch.inference_mode():
            return self._forward(input_ids=ids, attention_mask=(ids > 0).long()).logits.numpy()

    def scores(self) -> dict[str, Any]:
        """What the model says to every row."""
        return {"scores": [float(self._call(ids)[0, 0]) for ids in self._rows]}

    def round(self, what: str) -> dict[str, Any]:
        """Seconds a row: of "single" rows one after the other, or of one "large" batch."""
        start = time.perf_counter()
        if what == "single":
            for ids in self._rows:
                self._call(ids)
            return {"seconds": (time.perf_counter() - start) / len(self._rows)}
        self._call(self._large)
        return {"seconds": (time.perf_counter() - start) / len(self._large)}

    def memory(self) -> dict[str, Any]:
        """Bytes held at most."""
        return {"peak_bytes": peak_memory()}


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("open", "scores", "round", "memory")})
