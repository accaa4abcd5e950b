"""How like two sentences are by a model's vectors, against what people say, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distil_jax.export import load_embedder
from distil_jax.tasks import measure


def similarity_score(model: str | Path, first: Sequence[str], second: Sequence[str], scores: Sequence[float]) -> float:
    """Spearman's correlation, to ±1, of scores with the cosines of mean-pooled vectors.

    Args:
        model: as `load_embedder` takes it.
        first: N texts.
        second: N texts that they are compared with.
        scores: N.

    Raises:
        UserError: as `load_embedder`.
    """
    embedder = load_embedder(model, pooling="mean", normalize=True)
    left, right = (embedder.encode(texts) for texts in (first, second))
    return measure(("spearman",), (left * right).sum(axis=1), np.asarray(scores))["spearman"]
