"""A model as a LiteRT file (.tflite), made of JAX's StableHLO: a signature a length, which share their weights."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core

from distil_jax.errors import FaultError, one_line
from distil_jax.export.jax_network import make_module
from distil_jax.export.source import Source
from distil_jax.models import HEADS, EncoderInputs, pool
from distil_jax.target import Device, traced_for
from distil_jax.training.task_step import readable

_NESTED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where an operation keeps the program that it calls


def litert_model(source: Source, lengths: Sequence[int]) -> bytes:
    """The model as a flat buffer, float32, with the signature "tokens_<L>" for every length L.

    Inputs are int32 [1, L], of choices [1, 1, L]: input_ids, attention_mask, and token_type_ids for families whose
    tokenizers give them. Outputs are float32: logits; of questions start_logits and end_logits; of an encoder
    last_hidden_state and, with pooling, sentence_embedding. Ids beyond the vocabulary are not detected.

    Args:
        source: the model.
        lengths: tokens of the rows.

    Raises:
        FaultError: the converter fails.
    """
    converter: Any = importlib.import_module("litert_converter.converter_api_ext")  # none of them has types
    ir: Any = importlib.import_module("litert_converter.mlir.ir")
    passmanager: Any = importlib.import_module("litert_converter.mlir.passmanager")

    inputs, outputs = source.input_names, source.output_names
    context = ir.Context()
    converter.prepare_mlir_context(context)
    try:
        with context:
            modules = []
            for length in lengths:
                module = ir.Module.parse(_stablehlo(source, length))
                converter.set_signature(module.operation, f"tokens_{length}", [*inputs], [*outputs])
                modules.append(module)
            merged = converter.merge_modules(modules) if len(modules) > 1 else modules[0]
            config = converter.ConvertToTFLConfig()
            converter.run_convert_to_tfl_passes(merged, passmanager.PassManager(), config)
            return converter.export_flatbuffer_to_bytes(merged.operation)
    except Exception as error:  # its classes of errors have no common one
        raise FaultError(f"litert-converter cannot convert this model ({one_line(str(error), 200)})") from error


def quantized(model: bytes) -> bytes:
    """The file with int8 weights, one scale an output of a dense layer or a row of a table.

    What dense layers read is quantised as it comes.
    """
    from ai_edge_quantizer import quantizer, recipe

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its bars of progress
        found: Any = quantizer.Quantizer(bytearray(model), recipe.dynamic_wi8_afp32()).quantize()
    return bytes(found.quantized_model)


def _stablehlo(source: Source, length: int) -> bytes:
    """The program for a row of `length` tokens, with its weights, as MLIR bytecode."""
    module, params = make_module(source.encoder, source.params, source.head, attention="xla")
    params = jax.tree.map(jnp.asarray, params)
    joins_rows = source.head is not None and HEADS[source.head.kind].joins_rows
    row = jax.ShapeDtypeStruct((1, 1, length) if joins_rows else (1, length), np.int32)

    def forward(ids: Array, mask: Array, types: Array | None = None) -> list[Array]:
        given = EncoderInputs(ids, mask, token_type_ids=types)
        found: Any = module.apply({"params": params}, readable(module, given))
        if source.has_logits:
            count = len(source.output_names)
            return [found] if count == 1 else [found[..., number] for number in range(count)]
        return [found] if source.pooling is None else [found, pool(found, mask, source.pooling)]

    rows = [row] * len(source.input_names)
    with traced_for(Device("tpu")):  # the plain forms, without those that are for XLA on a CPU
        program = jax.make_jaxpr(forward)(*rows)
    converted = jax.jit(lambda *rows: _evaluate(program.jaxpr, program.consts, rows), keep_unused=True)
    buffer = io.BytesIO()
    lowered: Any = converted.lower(*rows).compiler_ir("stablehlo")
    lowered.operation.write_bytecode(buffer)
    return buffer.getvalue()


def _evaluate(program: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The program's results, with look-ups and gelu in the form that the converter knows as one operation.

    Otherwise tables of int8 would be held in float32, and gelu would be written out with its error function.
    """
    values = dict(zip([*program.constvars, *program.invars], [*constants, *arguments], strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in program.eqns:
        given = [value(variable) for variable in equation.invars]
        nested = next((equation.params[name] for name in _NESTED if name in equation.params), None)
        if equation.primitive.name == "optimization_barrier":
            found = given
        elif _is_look_up(equation):
            shape: Any = equation.outvars[0].aval
            found = [_look_up(*given).reshape(shape.shape)]
        elif equation.primitive.name == "custom_jvp_call" and " erf " in str(nested):
            found = [_gelu(*given)]
        elif nested is not None:
            found = _evaluate(getattr(nested, "jaxpr", nested), getattr(nested, "consts", ()), given)
        else:
            result = equation.primitive.bind(*given, **equation.params)
            found = result if equation.primitive.multiple_results else [result]
        values.update(zip(equation.outvars, found, strict=True))
    return [value(variable) for variable in program.outvars]


def _is_look_up(equation: Any) -> bool:
    """Whether rows of a table [V, E] are taken by ids."""
    if equation.primitive.name != "gather":
        return False
    shape = equation.invars[0].aval.shape
    return len(shape) == 2 and tuple(equation.params["slice_sizes"]) == (1, shape[1])


def _look_up(table: Array, ids: Array) -> Array:
    """Rows [N, E] of the table [V, E] by N ids."""

    def take(ids: Array, table: Array) -> Array:
        return jnp.take(table, ids, axis=0, mode="clip")

    return jax.lax.composite(take, "odml.embedding_lookup")(ids.reshape(-1), table)


def _gelu(x: Array) -> Array:
    def gelu(x: Array, approximate: str) -> Array:
        del approximate
        return jax.nn.gelu(x, approximate=False)

    return jax.lax.composite(gelu, "aten.gelu.default")(x, approximate="none")
