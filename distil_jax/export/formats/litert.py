"""LiteRT files (.tflite) for phones and small devices, float32 and int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.export.formats.format import ExportFormat, Network, WriteOptions
from distil_jax.export.litert_model import litert_model, quantized
from distil_jax.export.litert_session import open_litert
from distil_jax.export.source import Source
from distil_jax.tasks import kind_of

_LENGTHS = (32, 128, 384)


def _lengths(source: Source, options: WriteOptions) -> list[int]:
    """The lengths of signatures, in ascending order: those asked for, or the usual ones up to the longest row."""
    most = source.encoder.max_length
    if options.lengths and max(options.lengths) > most:
        raise UserError(f"--lengths {max(options.lengths)}: the model takes {most} tokens; lower it")
    if source.ready is not None:
        most = kind_of(source.ready.head).row_length(source.ready.settings)
    return sorted(set(options.lengths or (*(length for length in _LENGTHS if length < most), most)))


def _write(source: Source, path: Path, options: WriteOptions) -> None:
    path.write_bytes(litert_model(source, _lengths(source, options)))


def _write_int8(source: Source, path: Path, options: WriteOptions) -> None:
    path.write_bytes(quantized(litert_model(source, _lengths(source, options))))


def _open(path: Path, source: Source) -> Network:
    return open_litert(path)


def _format(name: str, title: str, file: str, write: Callable[[Source, Path, WriteOptions], None]) -> ExportFormat:
    return ExportFormat(
        name,
        title,
        f"litert/{file}.tflite",
        write,
        _open,
        runtime="LiteRT",
        extra="litert",
        modules=("litert_converter", "ai_edge_litert", "ai_edge_quantizer"),
        exact=write is _write,
    )


LITERT_FORMATS = (
    _format("litert", "LiteRT, float32", "model", _write),
    _format("litert-int8", "LiteRT, int8 weights and activations", "model_int8", _write_int8),
)
