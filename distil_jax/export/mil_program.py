"""An ONNX graph of `onnx_model` as a program of Core ML's intermediate language (MIL), operator by operator.

So Core ML files compute what the ONNX files compute, which onnxruntime checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# A value is a variable of MIL, or a constant of NumPy, int32 or float32.
_Operator = Callable[..., Any]
_TYPES = {1: "fp32", 6: "int32", 7: "int32", 9: "bool"}  # of ONNX
_GELU = {b"none": "EXACT", b"tanh": "TANH_APPROXIMATION"}


def mil_program(model: Any, sizes: dict[str, Any]) -> Any:
    """The graph as a coremltools Program of iOS 17, and of the same names.

    Args:
        model: onnx.ModelProto of `onnx_model`, float32.
        sizes: of the axes that are free in it, by name: a number or a `coremltools.RangeDim`.
    """
    import coremltools
    from coremltools.converters import mil
    from coremltools.converters.mil.mil import Function, Program, types
    from onnx import helper, numpy_helper

    builder: Any = mil.Builder  # its operators are made when it is imported, so that no checker sees them
    graph = model.graph
    values: dict[str, Any] = {one.name: _constant(numpy_helper.to_array(one)) for one in graph.initializer}
    inputs: Any = [
        coremltools.TensorType(
            name=one.name,
            shape=tuple(sizes[size.dim_param] for size in one.type.tensor_type.shape.dim),
            dtype=np.int32,
        )
        for one in graph.input
    ]
    placeholders = {one.name: builder.placeholder(shape=one.shape.symbolic_shape, dtype=types.int32) for one in inputs}
    main: Any = Function(placeholders, opset_version=coremltools.target.iOS17)
    with main as function:
        values |= function.inputs
        for node in graph.node:
            attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            given = [values[name] for name in node.input]
            result = _OPERATORS[node.op_type](builder, *given, **attributes)
            results = result if isinstance(result, (list, tuple)) else [result]
            values |= zip(node.output, results, strict=True)
        outputs = [builder.identity(x=values[one.name], name=one.name) for one in graph.output]
        function.set_outputs(outputs)
    function.set_input_types(tuple(inputs))
    program = Program()
    program.add_function("main", function)
    return program


def _constant(value: np.ndarray) -> Any:
    """In the types that MIL has; a scalar as a number."""
    return value.astype(np.int32 if value.dtype.kind == "i" else np.float32)[()]


def _unary(kind: str) -> _Operator:
    return lambda mb, x: getattr(mb, kind)(x=x)


def _binary(kind: str) -> _Operator:
    return lambda mb, x, y: getattr(mb, kind)(x=x, y=y)


def _reduced(kind: str) -> _Operator:
    return lambda mb, x, axes, keepdims: getattr(mb, kind)(x=x, axes=axes, keep_dims=bool(keepdims))


def _gather(mb: Any, x: Any, ids: Any, axis: int = 0) -> Any:
    if np.ndim(ids) == 0 and isinstance(ids, np.integer):
        first = int(ids)
        return mb.squeeze(x=_part(mb, x, [first], np.array([first + 1], np.int32), [axis]), axes=[axis])
    return mb.gather(x=x, indices=ids, axis=axis, validate_indices=False)


def _part(mb: Any, x: Any, first: Sequence[int], last: Any, axis: Sequence[int]) -> Any:
    """x[first:last] along an axis; `last` is a vector of one number."""
    (place,), rank = axis, len(x.shape)
    begin, others = np.zeros(rank, np.int32), [one != place for one in range(rank)]
    begin[place] = first[0]
    parts = [np.zeros(place, np.int32), last, np.zeros(rank - place - 1, np.int32)]
    parts = [part for part in parts if part.shape != (0,)]
    is_known = isinstance(last, np.ndarray)
    end = np.concatenate(parts) if is_known else mb.concat(values=parts, axis=0)
    return mb.slice_by_index(x=x, begin=begin, end=end, begin_mask=others, end_mask=others)


def _matmul(mb: Any, x: Any, y: Any) -> Any:
    """A kernel [K, N] lies as [N, K], one row an output: so `linear` takes it, and int8 has a scale for each."""
    if isinstance(y, np.ndarray):
        return mb.linear(x=x, weight=np.ascontiguousarray(y.T))
    return mb.matmul(x=x, y=y)


def _reshape(mb: Any, x: Any, shape: Any) -> Any:
    """Zeros, which copy the size of x at their place, are not what MIL takes them for."""
    if not isinstance(shape, np.ndarray):
        return mb.reshape(x=x, shape=shape)
    wanted = [int(size) for size in shape]
    copied = wanted.count(0)
    if copied and wanted[-1] == -1:
        wanted[-1] = math.prod(x.shape[copied:]) // math.prod(wanted[copied:-1])
    known = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    known = [size if isinstance(size, (int, np.integer)) else -1 for size in known]
    if known.count(-1) <= 1:
        return mb.reshape(x=x, shape=np.array(known, np.int32))
    sizes = mb.concat(values=[_shape(mb, x, 0, copied), np.array(wanted[copied:], np.int32)], axis=0)
    return mb.reshape(x=x, shape=sizes)


def _shape(mb: Any, x: Any, start: int, end: int) -> Any:
    return mb.slice_by_index(x=mb.shape(x=x), begin=[start], end=[end])


def _unsqueeze(mb: Any, x: Any, axes: Any) -> Any:
    return mb.expand_dims(x=x, axes=axes)


def _squeeze(mb: Any, x: Any, axes: Any = None) -> Any:
    return mb.squeeze(x=x) if axes is None else mb.squeeze(x=x, axes=axes)


def _normalized(mb: Any, x: Any, scale: Any, bias: Any, axis: int, epsilon: float) -> Any:
    return mb.layer_norm(x=x, axes=[axis], gamma=scale, beta=bias, epsilon=np.float32(epsilon))


# By the name in ONNX: those that `onnx_model` writes.
_OPERATORS: dict[str, _Operator] = {
    "Add": _binary("add"),
    "Cast": lambda mb, x, to: mb.cast(x=x, dtype=_TYPES[to]),
    "Concat": lambda mb, *parts, axis: mb.concat(values=parts, axis=axis),
    "CumSum": lambda mb, x, axis: mb.cumsum(x=x, axis=axis),
    "Div": _binary("real_div"),
    "Equal": _binary("equal"),
    "Gather": _gather,
    "Gelu": lambda mb, x, approximate: mb.gelu(x=x, mode=_GELU[approximate]),
    "Gemm": lambda mb, x, table, transB: mb.linear(x=x, weight=table),
    "Identity": lambda mb, x: x,
    "LayerNormalization": _normalized,
    "MatMul": _matmul,
    "Max": _binary("maximum"),
    "Mul": _binary("mul"),
    "Not": _unary("logical_not"),
    "Range": lambda mb, start, end, step: mb.range_1d(start=start, end=end, step=step),
    "ReduceL2": _reduced("reduce_l2_norm"),
    "ReduceMax": _reduced("reduce_max"),
    "ReduceSum": _reduced("reduce_sum"),
    "Relu": _unary("relu"),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _unary("sigmoid"),
    "Slice": _part,
    "Softmax": lambda mb, x, axis: mb.softmax(x=x, axis=axis),
    "Split": lambda mb, x, axis, num_outputs: mb.split(x=x, num_splits=num_outputs, axis=axis),
    "Squeeze": _squeeze,
    "Sub": _binary("sub"),
    "Tanh": _unary("tanh"),
    "Transpose": lambda mb, x, perm: mb.transpose(x=x, perm=perm),
    "Unsqueeze": _unsqueeze,
    "Where": lambda mb, where, x, y: mb.select(cond=where, a=x, b=y),
}
