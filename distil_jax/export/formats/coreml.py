"""Core ML packages, float16 and with weights of 8 bits; converted only, as Core ML runs on Apple's systems alone."""

from __future__ import annotations

import contextlib
import io
import logging
from functools import partial
from pathlib import Path
from typing import Any

from distil_jax import __version__
from distil_jax.errors import FaultError
from distil_jax.export.formats.format import ExportFormat, WriteOptions
from distil_jax.export.mil_program import mil_program
from distil_jax.export.onnx_model import onnx_model
from distil_jax.export.source import Source

_CHOICES = 16  # most of a row
_USUAL_LENGTH = 128
_SMALLEST = 2048  # numbers; what has fewer stays float16


def _write(source: Source, path: Path, options: WriteOptions, *, int8: bool) -> None:
    """One row, its length free up to the model's; of choices, their number too."""
    with _quiet():
        import coremltools

        longest = source.encoder.max_length
        sizes = {
            "batch_size": 1,
            "sequence_length": coremltools.RangeDim(1, longest, default=min(_USUAL_LENGTH, longest)),
            "num_choices": coremltools.RangeDim(1, _CHOICES, default=2),
        }
        graph, _ = onnx_model(source)
        program = mil_program(graph, sizes)
        model: Any = coremltools.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=coremltools.precision.FLOAT16,
            skip_model_load=True,
        )
        if int8:
            model = _quantized(model)
        model.author, model.version = "distil_jax", __version__
        model.save(str(path))
        _check(path, graph)


def _quantized(model: Any) -> Any:
    """Kernels and tables with a scale for each output or row; it computes in float16."""
    from coremltools.optimize import coreml

    settings = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_SMALLEST)
    large = coreml.get_weights_metadata(model, weight_threshold=_SMALLEST)
    biases: Any = {name: None for name, weight in large.items() if weight.val.ndim < 2}  # would have one scale for all
    return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(settings, op_name_configs=biases))


def _check(path: Path, graph: Any) -> None:
    """Raise FaultError unless the package can be read again and has the inputs and outputs of the graph."""
    import coremltools

    description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    found = [[one.name for one in part] for part in (description.input, description.output)]
    expected = [[one.name for one in part] for part in (graph.graph.input, graph.graph.output)]
    if found != expected:
        raise FaultError(f"{path}: has the inputs and outputs {found}, not {expected}; report it")


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the bars and warnings of coremltools, which says of each library that it was not tested with it."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _format(name: str, title: str, file: str, *, int8: bool) -> ExportFormat:
    return ExportFormat(
        name,
        title,
        f"coreml/{file}.mlpackage",
        partial(_write, int8=int8),
        None,
        runtime="Core ML",
        extra="coreml",
        modules=("coremltools", "onnx"),
        exact=False,
    )


COREML_FORMATS = (
    _format("coreml", "Core ML, float16", "model", int8=False),
    _format("coreml-int8", "Core ML, weights of 8 bits", "model_int8", int8=True),
)
