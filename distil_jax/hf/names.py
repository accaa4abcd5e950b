"""Every tensor of a model, by transformers' name and by its place in our parameter tree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distil_jax.hf.families import FAMILIES, Family, TensorRule
from distil_jax.hf.families.family import EMBEDDINGS, POOLER, PROJECTION, RELATIVE_POSITIONS, TOKEN_TYPES

if TYPE_CHECKING:
    from distil_jax.models import EncoderConfig, TaskHead

# Index buffers that old versions of transformers saved.
_BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A `TensorRule` for one model: layer number filled in, `shape` in numbers (PyTorch's order)."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    transpose: bool = False

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape of the array in our tree."""
        return tuple(reversed(self.shape)) if self.transpose else self.shape

    def stored_name(self, prefix: str) -> str:
        """Its name in a model with a head: the encoder's tensors get the family's prefix."""
        return f"{prefix}.{self.name}" if self.path[0] == "encoder" else self.name


def leaves(config: EncoderConfig, *, mlm_head: bool = False, task_head: TaskHead | None = None) -> Iterator[Leaf]:
    """Every tensor of a model of this configuration; a pooler only where transformers has one under the same head."""
    family = FAMILIES[config.family]
    sizes = {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "E": config.embedding_width,
        "H": config.hidden_size,
        "A": config.attention_width,
        "F": config.intermediate_size,
        "N": config.num_heads,
        "R": config.relative_buckets,
        "K": task_head.num_outputs if task_head else 0,
    }

    def filled(rules: tuple[TensorRule, ...], layer: int = 0) -> Iterator[Leaf]:
        for rule in rules:
            path = tuple(part.format(i=layer) for part in rule.path)
            shape = tuple(sizes[letter] for letter in rule.shape)
            yield Leaf(path, rule.name.format(i=layer), shape, rule.transpose)

    yield from filled(EMBEDDINGS)
    yield from filled(TOKEN_TYPES if config.type_vocab_size else ())
    yield from filled(PROJECTION if config.embedding_width != config.hidden_size else ())
    yield from filled(RELATIVE_POSITIONS if config.relative_buckets else ())
    for layer in range(config.num_layers):
        yield from filled(family.layer, layer)
    if mlm_head:
        yield from filled(family.mlm_head)
    elif task_head.needs_pooler if task_head else config.pooler:
        yield from filled(POOLER)
    if task_head:
        yield from filled(family.heads[task_head.kind].tensors())


def canonical(name: str, family: Family) -> str:
    """The family's name for a name found in a file: prefix off, LayerNorm's old gamma/beta as weight/bias."""
    name = name.removeprefix(f"{family.prefix}.")
    stem, _, last = name.rpartition(".")
    if stem.endswith(("LayerNorm", "layer_norm")):
        last = {"gamma": "weight", "beta": "bias"}.get(last, last)
    return f"{stem}.{last}" if stem else last


@functools.cache
def mlm_names(family_name: str) -> frozenset[str]:
    """The names of the masked-language-model head, those of tied copies among them."""
    family = FAMILIES[family_name]
    return frozenset(rule.name for rule in family.mlm_head) | family.tied.keys()


@functools.cache
def optional_names(family_name: str) -> frozenset[str]:
    """Names that may be left out without a note: known heads, the pooler, index buffers."""
    family = FAMILIES[family_name]
    tasks = (rule.name for head in family.heads.values() for rule in head.tensors())
    poolers = (rule.name for rule in POOLER if family.has_pooler)
    return mlm_names(family_name) | family.ignored | _BUFFERS | frozenset(tasks) | frozenset(poolers)
