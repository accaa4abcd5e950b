"""The process of one model in one runtime, which computes rows on request: `python -m` this module."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.benchmark.process import Reply, pin, serve

_WARM_UP = 3  # calls of a shape that do not count
_STATE: dict[str, Any] = {}


def open_model(folder: str, runtime: str, cores: list[int]) -> Reply:
    """Load the model; only these cores are used from now on."""
    pin(cores)
    _STATE["compute"] = _COMPUTES[runtime](Path(folder), len(cores))
    _STATE["vocabulary"] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    _STATE["warm"] = set()
    return {}


def time_calls(batch: int, length: int, calls: int) -> Reply:
    """Seconds of each of so many calls on rows without padding."""
    ids = np.random.default_rng(0).integers(5, _STATE["vocabulary"], (batch, length), np.int32)
    compute = _STATE["compute"]
    if (batch, length) not in _STATE["warm"]:
        for _ in range(_WARM_UP):
            compute(ids)
        _STATE["warm"].add((batch, length))
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        compute(ids)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}


def _jax(folder: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """As `predict` computes; models without a task head as they are called."""
    del threads
    from distil_jax.export import network_of, read_source
    from distil_jax.models import EncoderInputs, TaskModel
    from distil_jax.training.inference import make_network
    from distil_jax.training.parallel import make_devices

    source = read_source(folder)
    if source.head is None:
        network: Any = network_of(source.encoder, source.params, None)
    else:
        network = make_network(make_devices("shard_map", 1), TaskModel(source.encoder, source.head), source.params)

    def compute(ids: Any) -> Any:
        return np.asarray(network(EncoderInputs(ids, np.ones_like(ids), token_type_ids=np.zeros_like(ids))))

    return compute


def _pytorch(folder: Path, threads: int) -> Callable[[np.ndarray], Any]:
    import transformers

    torch = importlib.import_module("torch")  # nothing that is installed with this project
    torch.set_num_threads(threads)
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    choice = name.endswith("MultipleChoice")

    def compute(ids: np.ndarray) -> Any:
        given = torch.from_numpy(ids.astype(np.int64))
        given = given[:, None] if choice else given
        with torch.inference_mode():
            return model(input_ids=given, attention_mask=torch.ones_like(given))

    return compute


def _file(format: str, opener: str) -> Callable[[Path, int], Callable[[np.ndarray], Any]]:
    """How a file of a format is loaded, by a function of `distil_jax.export`, which only its process imports."""

    def load(folder: Path, threads: int) -> Callable[[np.ndarray], Any]:
        from distil_jax import export
        from distil_jax.models import EncoderInputs

        network = getattr(export, opener)(folder / export.FORMATS[format].file, threads)
        choice = "MultipleChoice" in (folder / "config.json").read_text(encoding="utf-8")
        return lambda ids: network(EncoderInputs(ids[:, None] if choice else ids))  # type: ignore[arg-type]

    return load


_OPENERS = {"onnx": "open_onnx", "onnx-int8": "open_onnx", "litert": "open_litert", "litert-int8": "open_litert"}
_COMPUTES: dict[str, Callable[[Path, int], Callable[[np.ndarray], Any]]] = {
    "jax": _jax,
    "pytorch": _pytorch,
    **{format: _file(format, opener) for format, opener in _OPENERS.items()},
}

if __name__ == "__main__":
    serve({"open": open_model, "time": time_calls})
