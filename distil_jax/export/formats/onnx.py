"""ONNX files, float32 and quantised, placed as optimum and transformers.js look for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distil_jax.export.formats.format import ExportFormat, Network, WriteOptions
from distil_jax.export.onnx_graph import Precision
from distil_jax.export.onnx_model import onnx_model
from distil_jax.export.onnx_session import open_onnx
from distil_jax.export.source import Source


def _write(source: Source, path: Path, options: WriteOptions, precision: Precision) -> None:
    model, _ = onnx_model(source, precision, options.keep_float)
    path.write_bytes(model.SerializeToString())


def _open(path: Path, source: Source) -> Network:
    return open_onnx(path)


def _weights(source: Source) -> list[str]:
    return onnx_model(source)[1]


def _format(name: str, title: str, file: str, precision: Precision) -> ExportFormat:
    return ExportFormat(
        name,
        title,
        f"onnx/{file}.onnx",
        partial(_write, precision=precision),
        _open,
        runtime="onnxruntime",
        extra="onnx",
        modules=("onnx", "onnxruntime"),
        exact=precision == "float32",
        weights=None if precision == "float32" else _weights,
    )


ONNX_FORMATS = (
    _format("onnx", "ONNX, float32", "model", "float32"),
    _format("onnx-int8", "ONNX, int8 weights and activations", "model_quantized", "int8"),
    _format("onnx-q8", "ONNX, weights of 8 bits in blocks", "model_q8_blocks", "q8"),
    _format("onnx-q4", "ONNX, weights of 4 bits in blocks", "model_q4", "q4"),
)
