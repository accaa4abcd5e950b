"""An ONNX graph that grows operator by operator; dense layers and tables are float32, int8, or blocks of 8 or 4 bits.

int8 is dynamic: kernels have a scale for each output (Jacob et al. 2018, section 2), inputs get one when the model
runs. Kernels use 7 bits, since the sums of two 8-bit products overflow on x86 without VNNI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from distil_jax import __version__
from distil_jax.errors import UserError
from distil_jax.models import KERNEL_LIMIT

Precision = Literal["float32", "int8", "q8", "q4"]
OPSET, _IR = 20, 10  # 20: the first with Gelu
BLOCK = 32  # inputs of a kernel that share a scale
_TABLE_LIMIT = 127
_FILE_LIMIT = (1 << 31) - (1 << 20)  # of a protocol buffer, with space for the graph
_MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of the values of a table [rows, width]: float32, or int8 with a scale [rows, 1]."""

    rows: str
    scales: str = ""


class Graph:
    """Operators and constants by name; the same operator on the same values is there once.

    Attributes:
        weights: names of dense layers and tables in their order.
    """

    def __init__(self, precision: Precision = "float32", keep_float: frozenset[str] = frozenset()) -> None:
        """Starts empty.

        Args:
            precision: of dense layers and tables.
            keep_float: names of those that stay float32.
        """
        self._precision: Precision = precision
        self._keep_float = keep_float
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, tuple[str, ...]] = {}
        self.weights: list[str] = []

    def nodes(self, kind: str, *inputs: str, count: int = 1, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Names of the results of an operator."""
        from onnx import helper

        key = (kind, inputs, repr(attributes))
        if key not in self._known:
            number = len(self._nodes)
            names = tuple(f"{kind}_{number}" + (f"_{place}" if place else "") for place in range(count))
            self._nodes.append(helper.make_node(kind, inputs, names, f"{kind}_{number}", domain=domain, **attributes))
            self._known[key] = names
        return self._known[key]

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Name of the result of an operator that has one."""
        return self.nodes(kind, *inputs, **attributes)[0]

    def constant(self, name: str, value: Any) -> str:
        """Name of a constant; the first value given under a name stays."""
        # `ascontiguousarray` alone would make a vector of a scalar.
        self._constants.setdefault(name, np.ascontiguousarray(value).reshape(np.shape(value)))
        return name

    def integers(self, *values: int) -> str:
        """Name of a constant vector of int64."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Name of a constant scalar, float32."""
        return self.constant(f"number_{value!r}", np.float32(value))

    def part(self, x: str, first: int, last: str, axis: int) -> str:
        """x[first:last] along an axis; `last` names a vector of one int64."""
        return self.node("Slice", x, self.integers(first), last, self.integers(axis))

    def dense(self, x: str, name: str, params: Any, *, exact: bool = False) -> str:
        """x [..., K] times the kernel [K, N], and the bias [N] of `params`; `exact`: float32 in any case."""
        kernel, bias = (np.asarray(params[part], np.float32) for part in ("kernel", "bias"))
        precision = "float32" if exact else self._precision_of(name)
        product = self._PRODUCTS[precision](self, x, name, kernel)
        return self.node("Add", product, self.constant(f"{name}/bias", bias))

    def table(self, name: str, values: Any) -> Table:
        """A table [rows, width]."""
        values = np.asarray(values, np.float32)
        if self._precision_of(name) == "float32":
            return Table(self.constant(name, values))
        scaled, scales = _scaled(values, 1, _TABLE_LIMIT)
        return Table(self.constant(f"{name}/int8", scaled), self.constant(f"{name}/scales", scales))

    def look_up(self, table: Table, ids: str) -> str:
        """Rows of the table [..., width] float32."""
        return self._float(table, lambda values: self.node("Gather", values, ids))

    def first_rows(self, table: Table, count: str) -> str:
        """The first rows [count, width] float32; `count` names a vector of one int64."""
        return self._float(table, lambda values: self.part(values, 0, count, 0))

    def times_table(self, x: str, table: Table, name: str) -> str:
        """x [B, L, width] times the transposed table -> [B, L, rows]."""
        if table.scales:
            scales = self.constant(f"{name}/of_outputs", self._constants[table.scales][:, 0])
            return self._int8_product(x, self.node("Transpose", table.rows, perm=[1, 0]), scales)
        rows, width = self._constants[table.rows].shape
        # A matrix product with a transposed operand would hold the table in memory a second time.
        flat = self.node("Gemm", self.node("Reshape", x, self.integers(-1, width)), table.rows, transB=1)
        shape = self.node("Concat", self.size(x, 0, 2), self.integers(rows), axis=0)
        return self.node("Reshape", flat, shape)

    def size(self, x: str, start: int, end: int) -> str:
        """Sizes of the axes start to end of x, a vector of int64."""
        return self.node("Shape", x, start=start, end=end)

    def model(self, inputs: dict[str, list[Any]], outputs: dict[str, tuple[str, list[Any]]]) -> Any:
        """The whole as onnx.ModelProto.

        Args:
            inputs: name -> shape, of int64; names stand for sizes that are free.
            outputs: name -> (name of its value, shape), of float32.

        Raises:
            UserError: larger than a file of ONNX can be.
        """
        from onnx import TensorProto, helper, numpy_helper

        size = sum(array.nbytes for array in self._constants.values())
        if size > _FILE_LIMIT:
            raise UserError(f"a model of {size / 1e9:.1f} GB: an ONNX file holds 2.1 GB; choose --format onnx-int8")
        named = [helper.make_node("Identity", [value], [name], name) for name, (value, _) in outputs.items()]
        graph = helper.make_graph(
            [*self._nodes, *named],
            "distil_jax",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        made = {"producer_name": "distil_jax", "producer_version": __version__, "ir_version": _IR}
        return helper.make_model(graph, opset_imports=opsets, **made)

    def _precision_of(self, name: str) -> Precision:
        self.weights.append(name)
        return "float32" if name in self._keep_float else self._precision

    def _float(self, table: Table, pick: Callable[[str], str]) -> str:
        if not table.scales:
            return pick(table.rows)
        return self.node("Mul", self.node("Cast", pick(table.rows), to=1), pick(table.scales))

    def _float32(self, x: str, name: str, kernel: np.ndarray) -> str:
        return self.node("MatMul", x, self.constant(f"{name}/kernel", kernel))

    def _int8(self, x: str, name: str, kernel: np.ndarray) -> str:
        scaled, scales = _scaled(kernel, 0, KERNEL_LIMIT)
        names = self.constant(f"{name}/int8", scaled), self.constant(f"{name}/scales", scales[0])
        return self._int8_product(x, *names)

    def _int8_product(self, x: str, kernel: str, scales: str) -> str:
        """In the operators that onnxruntime joins into one."""
        scaled, scale, zero = self.nodes("DynamicQuantizeLinear", x, count=3)
        product = self.node("Cast", self.node("MatMulInteger", scaled, kernel, zero), to=1)
        return self.node("Mul", product, self.node("Mul", scale, scales))

    def _blocks(self, bits: int) -> Callable[[str, str, np.ndarray], str]:
        def product(x: str, name: str, kernel: np.ndarray) -> str:
            packed, scales = block_quantized(kernel, bits)
            values = self.constant(f"{name}/blocks", packed), self.constant(f"{name}/scales", scales)
            sizes = {"K": kernel.shape[0], "N": kernel.shape[1], "bits": bits, "block_size": BLOCK}
            return self.node("MatMulNBits", x, *values, domain=_MICROSOFT, accuracy_level=4, **sizes)

        return product

    _PRODUCTS: ClassVar[dict[Precision, Callable[..., str]]] = {
        "float32": _float32,
        "int8": _int8,
        "q8": lambda self, *given: self._blocks(8)(*given),
        "q4": lambda self, *given: self._blocks(4)(*given),
    }


def _scaled(values: np.ndarray, axis: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values of at most `limit` and their float32 scales, one for everything along `axis`, which has size 1."""
    scales = np.abs(values).max(axis=axis, keepdims=True) / np.float32(limit)
    scales[scales == 0] = 1
    return np.rint(values / scales).astype(np.int8), scales


def block_quantized(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [K, N] in blocks of `BLOCK` inputs that share a scale, as MatMulNBits takes it.

    Returns:
        [N, blocks, bytes of a block] uint8, two numbers a byte with 4 bits, and scales [N, blocks] float32. The last
        block is filled up with zeros.
    """
    middle = 1 << (bits - 1)
    inputs, outputs = kernel.shape
    blocks = -(-inputs // BLOCK)
    values = np.zeros((outputs, blocks * BLOCK), np.float32)
    values[:, :inputs] = kernel.T
    values = values.reshape(outputs, blocks, BLOCK)
    # The largest number of a block gets the end that has one step more.
    largest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    scales = largest / np.float32(-middle)
    scales[scales == 0] = 1
    codes = np.clip(np.rint(values / scales) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    return packed, scales[..., 0]
