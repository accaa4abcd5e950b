"""STS-B without training: Spearman's correlation of the cosine of two sentences' vectors with the scores of people.

python benchmarks/sentence_similarity.py data/glue/STS-B/dev.tsv models/teacher models/student
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from distil_jax import load_embedder


def correlation(model: str, first: list[str], second: list[str], scores: list[float]) -> float:
    """Spearman's correlation x 100 of a model's cosines, from mean-pooled vectors, with `scores`."""
    embedder = load_embedder(model, pooling="mean", normalize=True)
    left, right = (embedder.encode(texts) for texts in (first, second))
    found: Any = spearmanr(np.sum(left * right, axis=1), scores)
    return 100 * float(found.statistic)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path, help="TSV of GLUE with the columns sentence1, sentence2 and score")
    parser.add_argument("models", nargs="+", help="folders or hub ids")
    given = parser.parse_args()
    with given.rows.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    first, second = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    for model in given.models:
        value = correlation(model, first, second, [float(row["score"]) for row in rows])
        print(f"{model}: {value:.2f} ({len(rows)} pairs)")
