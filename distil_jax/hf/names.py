"""One table a family: where each tensor of a Hugging Face checkpoint goes in our parameter tree.

A row is (our path, their name, their shape, transposed or not). `{i}` stands for the layer number. Their names are
written without the family's prefix ("bert.", "distilbert."), which is present in models with a head only. A PyTorch
Linear keeps its weight as [out, in], we keep [in, out].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead

FAMILIES = ("bert", "distilbert")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor: `path` in the parameter tree, `name` and `shape` as PyTorch has them, `transpose` between the two.

    In the tables `shape` holds letters (V vocabulary, P positions, T token types, H hidden, F feed-forward, K outputs
    of a task head).
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[str, ...]
    transpose: bool = False


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A row of a table for one configuration: layer number filled in, `shape` in numbers (PyTorch's order)."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transpose: bool = False


def _linear(path: str, name: str, shape: str) -> tuple[Row, ...]:
    parts = tuple(path.split("/"))
    return (
        Row((*parts, "kernel"), f"{name}.weight", tuple(shape), transpose=True),
        Row((*parts, "bias"), f"{name}.bias", (shape[0],)),
    )


def _norm(path: str, name: str) -> tuple[Row, ...]:
    parts = tuple(path.split("/"))
    return Row((*parts, "scale"), f"{name}.weight", ("H",)), Row((*parts, "bias"), f"{name}.bias", ("H",))


def _embedding(which: str, name: str, size: str) -> Row:
    return Row(("encoder", "embeddings", which, "embedding"), f"embeddings.{name}.weight", (size, "H"))


EMBEDDINGS = (
    _embedding("word", "word_embeddings", "V"),
    _embedding("position", "position_embeddings", "P"),
    *_norm("encoder/embeddings/norm", "embeddings.LayerNorm"),
)
TOKEN_TYPES = (_embedding("token_type", "token_type_embeddings", "T"),)
POOLER = _linear("encoder/pooler", "pooler.dense", "HH")

_BERT, _OURS = "encoder.layer.{i}", "encoder/layer_{i}"
_DISTIL = "transformer.layer.{i}"
LAYERS = {
    "bert": (
        *_linear(f"{_OURS}/query", f"{_BERT}.attention.self.query", "HH"),
        *_linear(f"{_OURS}/key", f"{_BERT}.attention.self.key", "HH"),
        *_linear(f"{_OURS}/value", f"{_BERT}.attention.self.value", "HH"),
        *_linear(f"{_OURS}/attention_out", f"{_BERT}.attention.output.dense", "HH"),
        *_norm(f"{_OURS}/attention_norm", f"{_BERT}.attention.output.LayerNorm"),
        *_linear(f"{_OURS}/ffn_in", f"{_BERT}.intermediate.dense", "FH"),
        *_linear(f"{_OURS}/ffn_out", f"{_BERT}.output.dense", "HF"),
        *_norm(f"{_OURS}/output_norm", f"{_BERT}.output.LayerNorm"),
    ),
    "distilbert": (
        *_linear(f"{_OURS}/query", f"{_DISTIL}.attention.q_lin", "HH"),
        *_linear(f"{_OURS}/key", f"{_DISTIL}.attention.k_lin", "HH"),
        *_linear(f"{_OURS}/value", f"{_DISTIL}.attention.v_lin", "HH"),
        *_linear(f"{_OURS}/attention_out", f"{_DISTIL}.attention.out_lin", "HH"),
        *_norm(f"{_OURS}/attention_norm", f"{_DISTIL}.sa_layer_norm"),
        *_linear(f"{_OURS}/ffn_in", f"{_DISTIL}.ffn.lin1", "FH"),
        *_linear(f"{_OURS}/ffn_out", f"{_DISTIL}.ffn.lin2", "HF"),
        *_norm(f"{_OURS}/output_norm", f"{_DISTIL}.output_layer_norm"),
    ),
}
MLM_HEAD = {
    "bert": (
        *_linear("mlm_head/transform", "cls.predictions.transform.dense", "HH"),
        *_norm("mlm_head/norm", "cls.predictions.transform.LayerNorm"),
        Row(("mlm_head", "bias"), "cls.predictions.bias", ("V",)),
    ),
    "distilbert": (
        *_linear("mlm_head/transform", "vocab_transform", "HH"),
        *_norm("mlm_head/norm", "vocab_layer_norm"),
        Row(("mlm_head", "bias"), "vocab_projector.bias", ("V",)),
    ),
}
# The same for both families, the dense layer for DistilBERT only; BERT has its pooler instead.
TASK_DENSE = _linear("task_head/dense", "pre_classifier", "HH")
TASK_OUTPUT = _linear("task_head/output", "classifier", "KH")
QUESTION_OUTPUT = _linear("task_head/output", "qa_outputs", "KH")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
# Copies of tensors that we hold once: accepted when equal. A differing copy is a model with an untied head.
TIED_COPIES = {
    "bert": {"cls.predictions.decoder.weight": WORD_EMBEDDINGS, "cls.predictions.decoder.bias": "cls.predictions.bias"},
    "distilbert": {"vocab_projector.weight": WORD_EMBEDDINGS},
}
# Tensors that may be left out where they are not wanted, whole list: index buffers that old versions saved,
# next-sentence and task heads, BERT's pooler under a head that has none, and the masked-language-model head.
_BUFFERS = r"embeddings\.(position_ids|token_type_ids)"
_TASKS = r"(pre_)?classifier\.(weight|bias)|qa_outputs\.(weight|bias)"
_IGNORED = {
    "bert": re.compile(rf"{_BUFFERS}|{_TASKS}|cls\.seq_relationship\.(weight|bias)|pooler\.dense\.(weight|bias)"),
    "distilbert": re.compile(rf"{_BUFFERS}|{_TASKS}"),
}
_TASK_NAMES = re.compile(_TASKS)
_MLM_NAMES = {
    "bert": re.compile(r"cls\.predictions\.(bias|decoder|transform)\b.*"),
    "distilbert": re.compile(r"vocab_(transform|layer_norm|projector)\..*"),
}


def leaves(config: EncoderConfig, *, mlm_head: bool = False, task_head: TaskHead | None = None) -> Iterator[Leaf]:
    """Every tensor of a model of this configuration; a pooler only where transformers has one under the same head."""
    rows = [*EMBEDDINGS]
    if config.type_vocab_size:
        rows += TOKEN_TYPES
    sizes = {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "H": config.hidden_size,
        "F": config.intermediate_size,
        "K": task_head.num_outputs if task_head else 0,
    }

    def fill(row: Row, layer: int = 0) -> Leaf:
        path = tuple(part.format(i=layer) for part in row.path)
        return Leaf(path, row.name.format(i=layer), tuple(sizes[letter] for letter in row.shape), row.transpose)

    yield from map(fill, rows)
    for layer in range(config.num_layers):
        for row in LAYERS[config.family]:
            yield fill(row, layer)
    if mlm_head:
        yield from map(fill, MLM_HEAD[config.family])
    elif task_head.needs_pooler if task_head else config.pooler:
        yield from map(fill, POOLER)
    if task_head:
        yield from map(fill, TASK_DENSE if task_head.dense else ())
        yield from map(fill, QUESTION_OUTPUT if task_head.kind == "question" else TASK_OUTPUT)


def prefixed(name: str, family: str) -> str:
    """The name that a model with a head has for a tensor of the table: the encoder's get the family's prefix."""
    of_head = is_mlm_name(name, family) or is_task_name(name)
    return name if of_head else f"{family}.{name}"


def canonical(name: str, family: str) -> str:
    """The table's name for a name found in a file: prefix off, LayerNorm's old gamma/beta as weight/bias."""
    name = name.removeprefix(f"{family}.")
    stem, _, last = name.rpartition(".")
    if stem.endswith(("LayerNorm", "layer_norm")):
        last = {"gamma": "weight", "beta": "bias"}.get(last, last)
    return f"{stem}.{last}" if stem else last


def is_mlm_name(name: str, family: str) -> bool:
    """Whether a canonical name belongs to the masked-language-model head."""
    return _MLM_NAMES[family].fullmatch(name) is not None


def is_task_name(name: str) -> bool:
    """Whether a canonical name belongs to a task head."""
    return _TASK_NAMES.fullmatch(name) is not None


def is_ignored(name: str, family: str) -> bool:
    """Whether a canonical name is on the list of tensors that may be left out (other heads, index buffers)."""
    return _IGNORED[family].fullmatch(name) is not None
