"""STS-B without training: Spearman's correlation of the cosine of two sentences' vectors with the scores of people.

python benchmarks/sentence_similarity.py data/glue/STS-B/dev.tsv models/teacher models/student
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from distil_jax.evaluation import similarity_score

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path, help="TSV of GLUE with the columns sentence1, sentence2 and score")
    parser.add_argument("models", nargs="+", help="folders or hub ids")
    given = parser.parse_args()
    with given.rows.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    first, second = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    for model in given.models:
        value = 100 * similarity_score(model, first, second, [float(row["score"]) for row in rows])
        print(f"{model}: {value:.2f} ({len(rows)} pairs)")
