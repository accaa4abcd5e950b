"""Random models of every family and head, and rows for them: what files of other formats are compared on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distil_jax.export.jax_network import make_module, network_of
from distil_jax.export.source import Source
from distil_jax.models import EncoderConfig, EncoderInputs, Pooling, TaskHead

VOCABULARY, HIDDEN = 60, 32
HEADS = ("mlm", "none", "sequence", "token", "question", "choice")
FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "electra")
FAMILY_HEADS = [*((family, head) for family in FAMILIES for head in HEADS), ("electra", "replaced")]


def made(
    family: str, head: str, *, pooling: Pooling | None = None, vocabulary: int = VOCABULARY, **fields: Any
) -> Source:
    """A random model; head is "mlm", "none" or a kind of task head."""
    import jax

    roberta = family == "roberta"
    own = {"type_vocab_size": {"bert": 2, "electra": 2, "roberta": 1}.get(family, 0)}
    own |= {"position_offset": 2, "pad_token_id": 1} if roberta or family == "mpnet" else {}
    own |= {"relative_buckets": 32} if family == "mpnet" else {}
    own |= {"embedding_size": 20} if family == "electra" else {}
    kinds = {"sequence": 3, "token": 5, "question": 2, "choice": 1, "replaced": 1}
    before = {"distilbert": "relu", "electra": "gelu", "roberta": "tanh" if head == "sequence" else ""}.get(family)
    dense = bool(before) and head in ("sequence", "choice", "replaced")
    task = None
    if head in kinds:
        kind: Any = head
        task = TaskHead(kind, num_outputs=kinds[head], dense=dense, dense_activation=before or "relu")
    pooler = task is not None and task.needs_pooler
    config = EncoderConfig(family, vocabulary, HIDDEN, 2, 4, 48, 26, pooler=pooler, **{**own, **fields})
    marker: Any = {"mlm_head": 0} if head == "mlm" else {"encoder": 0}
    module, _ = make_module(config, marker, task)
    ids = np.zeros((1, 4), np.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids)["params"])
    random = np.random.default_rng(5)

    def drawn(path: Any, x: Any) -> np.ndarray:
        return (1.0 * (path[-1].key == "scale") + 0.3 * random.standard_normal(x.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    params = {"encoder": params} if head == "none" else params
    tokenizer: Any = None
    return Source(config, params, tokenizer, task, pooling, "", {})


def rows(source: Source, length: int, count: int = 3) -> EncoderInputs:
    """Random rows with padding behind."""
    random = np.random.default_rng(length)
    choices = source.head is not None and source.head.kind == "choice"
    shape = (count, 2, length) if choices else (count, length)
    lengths = random.integers(max(length - 4, 2), length + 1, shape[:-1])[..., None]
    mask = (np.arange(length) < lengths).astype(np.int32)
    ids = np.where(mask, random.integers(2, VOCABULARY, shape), source.encoder.pad_token_id).astype(np.int32)
    given: Any = (ids, mask, random.integers(0, 2, shape).astype(np.int32) * mask)
    return EncoderInputs(*given[:2], token_type_ids=given[2])


def real(values: np.ndarray, inputs: EncoderInputs, source: Source) -> np.ndarray:
    """Without what belongs to padding."""
    pooled = source.head is not None and source.head.reads_token_0
    return values if pooled else values[np.asarray(inputs.mask) > 0]


def assert_computes_the_same(compute: Callable[[EncoderInputs], np.ndarray], source: Source) -> None:
    """That a file's outputs are those of the model, for rows of two lengths."""
    model = network_of(source.encoder, source.params, source.head)
    for length in (24, 7):
        inputs = rows(source, length)
        expected, found = (real(f(inputs), inputs, source) for f in (model, compute))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=3e-5)
