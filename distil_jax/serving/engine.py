"""What the server computes: predictions of a task model, or vectors of an encoder, by JAX or onnxruntime."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from distil_jax.config import ServeArguments
from distil_jax.data.rows import BadRowError
from distil_jax.errors import UserError
from distil_jax.export import Embedder, Predictor, has_task_head, load_embedder, load_predictor, open_onnx
from distil_jax.hf import home_resolved
from distil_jax.models import EncoderInputs
from distil_jax.tasks import KINDS, request, usual_reading

ONNX_FILE = "onnx/model_quantized.onnx"
# Of the batches that are compiled at the start; nothing else is computed.
_LENGTHS = (16, 32, 64, 128, 256, 512)
_SIZES = (1, 8)
_NO_FLAGS = ("", "", "")  # whoever asks over HTTP has none
_DIGITS = 9  # of a number: all that float32 has


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model that is ready.

    Attributes:
        path: "/predict" or "/embed".
        answers: the field of an answer.
        runtime: "jax" or "onnx".
        check: (what a request holds for one input, the request's options) -> an item. Raises BadRowError.
        compute: items -> an answer of each, as JSON has it.
        row: what an input is, in words.
    """

    path: str
    answers: str
    runtime: str
    check: Callable[[Any, dict[str, Any]], Any]
    compute: Callable[[list[Any]], Sequence[Any]]
    row: str


def load_engine(given: ServeArguments) -> Engine:
    """The model of a run, a folder or a hub id, compiled for all shapes that will be computed.

    Raises:
        UserError: as `load_predictor` and `load_embedder`; a runtime that is not there.
    """
    onnx = _onnx(given)
    runtime = "jax" if onnx is None else "onnx"
    step = None if given.step < 0 else given.step
    if has_task_head(given.model):
        predictor = load_predictor(given.model, step=step, max_length=given.max_length, dtype=given.dtype, compute=onnx)
        predictor.network.fix_shapes(_LENGTHS, _SIZES)
        return _predicting(predictor, runtime)
    embedder = load_embedder(
        given.model,
        pooling=given.pooling,
        normalize=given.normalize,
        max_length=given.max_length,
        dtype=given.dtype,
        step=step,
        compute=onnx,
    )
    embedder.network.fix_shapes(_LENGTHS, _SIZES)
    return _embedding(embedder, runtime)


def _onnx(given: ServeArguments) -> Callable[[EncoderInputs], Any] | None:
    """The quantised file of the folder as a function, None where JAX computes."""
    path = home_resolved(given.model) / ONNX_FILE
    if given.runtime == "onnx" and given.dtype != "float32":
        raise UserError(f"--dtype {given.dtype}: is what JAX computes in; leave it out, or give --runtime jax")
    if given.runtime == "jax" or (given.runtime == "auto" and (not path.is_file() or given.dtype != "float32")):
        return None
    if not path.is_file():
        raise UserError(f"--runtime onnx: {path} is missing; write it with `distil-jax export --format onnx-int8`")
    if given.runtime == "auto" and importlib.util.find_spec("onnxruntime") is None:
        return None
    return open_onnx(path)


def _predicting(predictor: Predictor, runtime: str) -> Engine:
    reading = dataclasses.replace(predictor.reading, flags=_NO_FLAGS)

    def check(value: Any, _: dict[str, Any]) -> Any:
        return request(value, reading).example

    return Engine("/predict", "predictions", runtime, check, predictor.predict, reading.kind.row)


def _embedding(embedder: Embedder, runtime: str) -> Engine:
    reading = dataclasses.replace(usual_reading(KINDS["classes"], False), flags=_NO_FLAGS)

    def check(value: Any, options: dict[str, Any]) -> str:
        example: Any = request(value, reading).example  # of the kind "classes"
        name = options.get("prompt")
        if name is not None and not isinstance(name, str):
            raise BadRowError("prompt: the name of a prompt is wanted")
        try:
            return embedder.prompt_text(name) + example.text
        except UserError as error:
            raise BadRowError(str(error)) from error

    def compute(texts: list[str]) -> list[list[float]]:
        vectors = embedder.encode(texts, prompt="")
        return [[float(f"{number:.{_DIGITS}g}") for number in vector] for vector in vectors.tolist()]

    return Engine("/embed", "embeddings", runtime, check, compute, reading.kind.row)
