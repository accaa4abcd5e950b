"""StableHLO with weights, of free batch and length, for CPU, CUDA and TPU: `jax.export.deserialize(...).call`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.errors import UserError, one_line
from distil_jax.export.formats.format import ExportFormat, Network, WriteOptions
from distil_jax.export.jax_network import make_module
from distil_jax.export.source import Source
from distil_jax.models import HEADS, EncoderInputs
from distil_jax.training.task_step import readable

_PLATFORMS = ("cpu", "cuda", "tpu")


def _write(source: Source, path: Path, options: WriteOptions) -> None:
    """A function (ids, mask, token types), each int32 [batch, length] or of choices [batch, choices, length]."""
    from jax import export

    module, params = make_module(source.encoder, source.params, source.head, attention="xla")
    names = (
        "batch, choices, length" if source.head is not None and HEADS[source.head.kind].joins_rows else "batch, length"
    )
    shape = export.symbolic_shape(names, constraints=[f"length <= {source.encoder.max_length}"])
    rows = jax.ShapeDtypeStruct(shape, np.int32)

    def forward(ids: Any, mask: Any, types: Any) -> Any:
        return module.apply({"params": params}, readable(module, EncoderInputs(ids, mask, token_type_ids=types)))

    path.write_bytes(export.export(jax.jit(forward), platforms=_PLATFORMS)(rows, rows, rows).serialize())


def _open(path: Path, source: Source) -> Network:
    from jax import export

    try:
        call: Any = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    except Exception as error:  # whatever a reader of flat buffers meets
        raise UserError(f"{path}: jax.export cannot read it ({one_line(str(error), 200)})") from error

    def compute(inputs: EncoderInputs) -> np.ndarray:
        return np.asarray(call(inputs.ids, inputs.mask, inputs.token_type_ids), np.float32)

    return compute


STABLEHLO = ExportFormat(
    "stablehlo",
    "StableHLO with weights",
    "stablehlo/model.bin",
    _write,
    _open,
    runtime="jax.export",
    extra="stablehlo",
    modules=("flatbuffers",),
)
