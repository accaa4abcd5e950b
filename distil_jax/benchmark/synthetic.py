"""Synthetic weights, rows, examples and a vocabulary in the shapes of real ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config
from distil_jax.data.corpus import Corpus, Shard, best_fit, token_dtype
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks import TaskData, TaskSpec

PAD, _UNK, _CLS, _SEP, _MASK = range(5)
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Tokens of a line of English Wikipedia: their logarithm is about normal with this mean and deviation.
_LOG_LENGTH = (3.9, 0.9)
_EXAMPLES = 512
_LOG_WORDS = (3.0, 0.6)  # of the words of a sentence in GLUE: mean and deviation of their logarithm
Params = dict[str, Any]


def random_params(module: Any, spread: float, seed: int = 0) -> Params:
    """Weights such as training starts from. NumPy draws them, so nothing is compiled.

    Args:
        module: has the parameters; called on ids [1, 8].
        spread: standard deviation of kernels and embeddings; scales are 1 and biases 0.
        seed: of the draw.
    """
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        kind = str(getattr(path[-1], "key", ""))
        if kind in ("scale", "bias"):
            return np.full(leaf.shape, float(kind == "scale"), np.float32)
        return np.float32(spread) * generator.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def zero_params(module: Any) -> Params:
    """Parameters of the right shapes: float32 zeros, all views of one number."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), dict(shapes))


def synthetic_corpus(config: Config, vocabulary: int, rows: int = 0) -> Corpus:
    """A corpus in memory: sequences as long as lines of Wikipedia, tokens as frequent as words.

    Rows are packed as corpus.pack says. At least `rows` rows, or two batches.
    """
    length, wanted = config.corpus.sequence_length, rows or max(2 * config.training.batch_size, 64)
    generator = np.random.default_rng(0)
    number = wanted
    while True:
        lengths = np.clip(np.exp(generator.normal(*_LOG_LENGTH, number)), min(12, length), length).astype(np.int64)
        row, offset = (
            best_fit(lengths.tolist(), length, config.corpus.min_tokens)
            if config.corpus.pack
            else (np.arange(number), np.zeros(number, np.int64))
        )
        if int(row.max()) + 1 >= wanted:
            break
        number *= 2
    ids = np.full((int(row.max()) + 1, length), PAD, token_dtype(vocabulary))
    words = len(_SPECIALS) + generator.zipf(1.3, ids.shape) % (vocabulary - len(_SPECIALS))
    for place, start, size in zip(row.tolist(), offset.tolist(), lengths.tolist(), strict=True):
        ids[place, start : start + size] = words[place, start : start + size]
        ids[place, start], ids[place, start + size - 1] = _CLS, _SEP
    return corpus_of_rows(ids[generator.permutation(len(ids))], vocabulary, len(lengths), config.corpus.pack)


def corpus_of_rows(ids: np.ndarray, vocabulary: int, sequences: int, packed: bool) -> Corpus:
    """Token ids [N, L] as a corpus in memory, with the special tokens of the synthetic vocabulary."""
    real = int((ids != PAD).sum())
    counts = np.bincount(ids.reshape(-1), minlength=vocabulary)
    counts[PAD] = 0
    return Corpus(
        folder=Path("synthetic"),
        sequence_length=ids.shape[1],
        packed=packed,
        num_rows=len(ids),
        num_tokens=real,
        num_sequences=sequences,
        num_documents=sequences,
        vocab_size=vocabulary,
        tokenizer_sha256="",
        pad_id=PAD,
        unk_id=_UNK,
        cls_id=_CLS,
        sep_id=_SEP,
        mask_id=_MASK,
        dtype=ids.dtype,
        sha256="",
        token_counts=counts.astype(np.int64),
        shards=(Shard(0, 0, len(ids), sequences, 0, ids, Path()),),
        index={"sources": []},
    )


def synthetic_tokenizer(vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of the special tokens and words "w5", "w6", ..."""
    words = (f"w{number}" for number in range(len(_SPECIALS), vocabulary))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join([*_SPECIALS, *words]) + "\n", encoding="utf-8")
        return load_tokenizer(path)


def synthetic_task(spec: TaskSpec, tokenizer: Tokenizer, examples: int = _EXAMPLES) -> TaskData:
    """Examples in the shape of the task's, of words of one token each."""
    words = [token for token in tokenizer.tokens() if token.isalnum()]
    generator = np.random.default_rng(0)
    labels = spec.labels or (("no", "yes") if spec.kind.has_classes else ())
    pairs = spec.name in ("mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")

    def text(count: int = 0) -> str:
        count = count or max(3, int(np.exp(generator.normal(*_LOG_WORDS))))
        return " ".join(words[i] for i in generator.integers(0, len(words), count))

    rows = [spec.kind.synthetic(str(number), text, len(labels), pairs) for number in range(examples)]
    return TaskData(spec, labels, rows, {}, {}, "", ())
