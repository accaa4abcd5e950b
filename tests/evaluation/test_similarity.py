"""Correlation of a model's similarities with scores: which order the sentences have, not what the numbers are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distil_jax.evaluation import similarity_score
from distil_jax.export import load_embedder


def test_it_is_the_correlation_of_ranks_with_the_cosines(model_folder: Callable[..., str]) -> None:
    folder = model_folder()
    first, second = ["the cat sat"] * 3, ["the cat sat", "a dog ran fast", "red fish"]
    embedder = load_embedder(folder, pooling="mean", normalize=True)
    cosines = (embedder.encode(first) * embedder.encode(second)).sum(axis=1)
    assert similarity_score(folder, first, second, [*cosines]) == pytest.approx(1)
    assert similarity_score(folder, first, second, [*(-100 * cosines)]) == pytest.approx(-1)
