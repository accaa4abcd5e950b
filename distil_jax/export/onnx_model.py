"""A model as an ONNX graph made from its weights, with the names that optimum and transformers.js expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.export.onnx_graph import Graph, Precision
from distil_jax.export.source import Source
from distil_jax.models import HEADS, EncoderConfig, Pooling, TaskHead, buckets_of

# Families whose every computation stands below. A new one is written once it is compared with the JAX model.
WRITTEN = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra"})
_LOWEST = -30000.0  # added to a score or put for a number that is not seen; float16 has it, too
_ROWS, _TOKENS = "batch_size", "sequence_length"


def onnx_model(
    source: Source, precision: Precision = "float32", keep_float: frozenset[str] = frozenset()
) -> tuple[Any, list[str]]:
    """The model as onnx.ModelProto, and the names of its dense layers and tables.

    Inputs are int64, [batch, length] or, of choices, [batch, choices, length], both sizes free: input_ids,
    attention_mask, and token_type_ids for families whose tokenizers give them. Outputs are float32: logits; of
    questions start_logits and end_logits; of an encoder last_hidden_state and, with pooling, sentence_embedding.

    Args:
        source: the model.
        precision: of dense layers and tables.
        keep_float: names of those that stay float32.

    Raises:
        UserError: a family that is not written, or a model that is too large for a file.
    """
    config, params, head = source.encoder, source.params, source.head
    if config.family not in WRITTEN:
        raise UserError(f"family {config.family}: is not written as ONNX; choose --format hf")
    graph = Graph(precision, keep_float)
    choices = head is not None and HEADS[head.kind].joins_rows
    shape = [_ROWS, "num_choices", _TOKENS] if choices else [_ROWS, _TOKENS]
    inputs = dict.fromkeys(source.input_names, shape)
    rows = {name: _row_a_choice(graph, name) if choices else name for name in inputs}
    encoder = _Encoder(graph, config, params["encoder"], rows)
    if head is not None:
        outputs = _task_outputs(encoder, params["task_head"], head)
    elif "mlm_head" in params:
        outputs = {"logits": (_mlm_logits(encoder, params["mlm_head"]), [_ROWS, _TOKENS, config.vocab_size])}
    else:
        hidden = encoder.hidden()
        outputs = {"last_hidden_state": (hidden, [_ROWS, _TOKENS, config.hidden_size])}
        if source.pooling is not None:
            pooled = _pooled(graph, hidden, rows["attention_mask"], source.pooling)
            outputs["sentence_embedding"] = (pooled, [_ROWS, config.hidden_size])
    return graph.model(inputs, outputs), graph.weights


def _row_a_choice(graph: Graph, name: str) -> str:
    """[B, C, L] as [B * C, L]."""
    shape = graph.node("Concat", graph.integers(-1), graph.size(name, 2, 3), axis=0)
    return graph.node("Reshape", name, shape)


class _Encoder:
    """`models.Encoder` without dropout, and for packed sequences without an attention mask of their own."""

    def __init__(self, graph: Graph, config: EncoderConfig, params: Mapping[str, Any], rows: Mapping[str, str]) -> None:
        self.graph, self.config, self._params, self._rows = graph, config, params, rows
        self.words = graph.table("word", params["embeddings"]["word"]["embedding"])

    def hidden(self, *, first_only: bool = False) -> str:
        """Last hidden states [B, L, H], or [B, 1, H] of token 0 alone."""
        graph, last = self.graph, self.config.num_layers - 1
        real = graph.node("Cast", self._rows["attention_mask"], to=1)
        unseen = graph.node("Mul", graph.node("Sub", graph.number(1.0), real), graph.number(_LOWEST))
        bias = graph.node("Unsqueeze", unseen, graph.integers(1, 2))
        if self.config.relative_buckets:
            bias = graph.node("Add", bias, self._relative_positions())
        x = self._embedded()
        for index in range(self.config.num_layers):
            x = self._layer(x, index, bias, first_only and index == last)
        return x

    def _relative_positions(self) -> str:
        """`models.RelativePositions`: [1, N, L, L], looked up by the distance key - query."""
        graph, most = self.graph, self.config.max_length - 1
        values = np.asarray(self._params["relative_positions"]["bias"])
        by_distance = values[buckets_of(np.arange(-most, most + 1), self.config.relative_buckets)].T[None]
        zero, one = (graph.constant(name, np.int64(value)) for name, value in (("zero", 0), ("one", 1)))
        length = graph.node("Squeeze", graph.size(self._rows["input_ids"], 1, 2))
        places = graph.node("Range", zero, length, one)
        distances = graph.node("Sub", places, graph.node("Unsqueeze", places, graph.integers(1)))
        rows = graph.node("Add", distances, graph.constant("most", np.int64(most)))
        return graph.node("Gather", graph.constant("relative_positions", by_distance), rows, axis=2)

    def pooled(self, hidden: str) -> str:
        """BERT's pooler on token 0, hidden [B, 1, H] -> [B, H]."""
        return self.graph.node("Tanh", self.graph.dense(self.first(hidden), "pooler", self._params["pooler"]))

    def first(self, hidden: str) -> str:
        """Token 0, [B, L, H] -> [B, H]."""
        return self.graph.node("Gather", hidden, self.graph.constant("zero", np.int64(0)), axis=1)

    def norm(self, x: str, name: str, params: Any) -> str:
        """LayerNorm over the last axis."""
        scale, bias = (self.graph.constant(f"{name}/{part}", np.asarray(params[part])) for part in ("scale", "bias"))
        return self.graph.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.config.layer_norm_eps)

    def activated(self, x: str, name: str = "") -> str:
        """An activation by its name; "": the encoder's."""
        graph, name = self.graph, name or self.config.activation
        if name == "silu":
            return graph.node("Mul", x, graph.node("Sigmoid", x))
        return graph.node("Gelu", x, approximate=_GELU[name]) if name in _GELU else graph.node(name.capitalize(), x)

    def _embedded(self) -> str:
        graph, params = self.graph, self._params["embeddings"]
        ids, types = self._rows["input_ids"], params.get("token_type")
        x = graph.look_up(self.words, ids)
        positions = np.asarray(params["position"]["embedding"])
        if types is not None:
            types = np.asarray(types["embedding"])
            if segments := self._rows.get("token_type_ids"):
                x = graph.node("Add", x, graph.node("Gather", graph.constant("token_type", types), segments))
            else:
                positions = positions + types[:1]
        x = graph.node("Add", x, self._positions(graph, ids, positions))
        x = self.norm(x, "embeddings/norm", params["norm"])
        return graph.dense(x, "embeddings/project", params["project"]) if "project" in params else x

    def _positions(self, graph: Graph, ids: str, values: np.ndarray) -> str:
        table, offset = graph.table("position", values), self.config.position_offset
        if not offset:
            return graph.first_rows(table, graph.size(ids, 1, 2))
        pad = graph.constant("pad", np.int64(self.config.pad_token_id))
        real = graph.node("Cast", graph.node("Not", graph.node("Equal", ids, pad)), to=7)
        counted = graph.node("Mul", graph.node("CumSum", real, graph.constant("one", np.int64(1))), real)
        return graph.look_up(table, graph.node("Add", counted, graph.constant("before", np.int64(offset - 1))))

    def _layer(self, x: str, index: int, bias: str, first_only: bool) -> str:
        graph, name, params = self.graph, f"layer_{index}", self._params[f"layer_{index}"]
        asking = graph.part(x, 0, graph.integers(1), 1) if first_only else x
        bias = graph.part(bias, 0, graph.integers(1), 2) if first_only else bias
        scale = np.float32(self.config.head_width**-0.5)
        scaled = {part: np.asarray(params["query"][part]) * scale for part in ("kernel", "bias")}
        query = self._heads(graph.dense(asking, f"{name}/query", scaled), [0, 2, 1, 3])
        key = self._heads(graph.dense(x, f"{name}/key", params["key"]), [0, 2, 3, 1])
        value = self._heads(graph.dense(x, f"{name}/value", params["value"]), [0, 2, 1, 3])
        scores = graph.node("Add", graph.node("MatMul", query, key), bias)
        mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph.node("Reshape", mixed, graph.integers(0, 0, self.config.attention_width))
        mixed = graph.dense(mixed, f"{name}/attention_out", params["attention_out"])
        x = self.norm(graph.node("Add", asking, mixed), f"{name}/attention_norm", params["attention_norm"])
        inner = self.activated(graph.dense(x, f"{name}/ffn_in", params["ffn_in"]))
        output = graph.dense(inner, f"{name}/ffn_out", params["ffn_out"])
        return self.norm(graph.node("Add", x, output), f"{name}/output_norm", params["output_norm"])

    def _heads(self, x: str, order: list[int]) -> str:
        """[B, L, H] as [B, L, N, D] with its axes in this order."""
        split = self.graph.node("Reshape", x, self.graph.integers(0, 0, self.config.num_heads, -1))
        return self.graph.node("Transpose", split, perm=order)


_GELU = {"gelu": "none", "gelu_new": "tanh"}


def _mlm_logits(encoder: _Encoder, params: Any) -> str:
    graph = encoder.graph
    x = encoder.activated(graph.dense(encoder.hidden(), "mlm_head/transform", params["transform"]))
    logits = graph.times_table(encoder.norm(x, "mlm_head/norm", params["norm"]), encoder.words, "word")
    return graph.node("Add", logits, graph.constant("mlm_head/bias", np.asarray(params["bias"])))


def _task_outputs(encoder: _Encoder, params: Any, head: TaskHead) -> dict[str, tuple[str, list[Any]]]:
    graph = encoder.graph
    x = encoder.hidden(first_only=head.reads_token_0)
    if head.reads_token_0:
        x = encoder.pooled(x) if head.needs_pooler else encoder.first(x)
    if head.dense:
        x = encoder.activated(graph.dense(x, "task_head/dense", params["dense"]), head.dense_activation)
    logits = graph.dense(x, "task_head/output", params["output"], exact=True)  # a few numbers, which decide
    kind = HEADS[head.kind]
    if names := kind.output_names:
        parts = graph.nodes("Split", logits, count=len(names), axis=-1, num_outputs=len(names))
        found = (graph.node("Squeeze", one, graph.integers(-1)) for one in parts)
        return {name: (one, [_ROWS, _TOKENS]) for name, one in zip(names, found, strict=True)}
    if kind.joins_rows:
        logits = graph.node("Reshape", logits, graph.size("input_ids", 0, 2))
        return {"logits": (logits, [_ROWS, "num_choices"])}
    size = [head.num_outputs]
    return {"logits": (logits, [_ROWS, *([] if head.reads_token_0 else [_TOKENS]), *size])}


def _pooled(graph: Graph, hidden: str, mask: str, pooling: Pooling) -> str:
    """`models.pool`: hidden [B, L, H], mask [B, L] -> [B, H]."""
    real = graph.node("Unsqueeze", graph.node("Cast", mask, to=1), graph.integers(2))
    axis = graph.integers(1)
    if pooling.mode == "cls":
        vectors = graph.node("Gather", hidden, graph.constant("zero", np.int64(0)), axis=1)
    elif pooling.mode == "max":
        seen = graph.node("Where", graph.node("Cast", real, to=9), hidden, graph.number(_LOWEST))
        vectors = graph.node("ReduceMax", seen, axis, keepdims=0)
    else:
        total = graph.node("ReduceSum", graph.node("Mul", hidden, real), axis, keepdims=0)
        vectors = graph.node("Div", total, graph.node("ReduceSum", real, axis, keepdims=0))
    if pooling.normalize:
        length = graph.node("ReduceL2", vectors, graph.integers(-1), keepdims=1)
        vectors = graph.node("Div", vectors, graph.node("Max", length, graph.number(1e-12)))
    return vectors
