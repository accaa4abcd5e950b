"""Sentiment from a CSV file: fine-tune a model, see what it gets wrong, keep it.

    python examples/sentiment_from_csv.py reviews.csv --model models/mine --text review --label stars

The classes are the values of the label column. A part of the rows is set aside to measure on.
"""

from __future__ import annotations

import argparse

import distil_jax

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("rows", help="CSV, TSV, JSON Lines or Parquet with a column of texts and one of labels")
parser.add_argument("--model", default="distilbert/distilbert-base-uncased", help="folder or hub id")
parser.add_argument("--text", default="text")
parser.add_argument("--label", default="label")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--output", default="runs/sentiment")

if __name__ == "__main__":
    given = parser.parse_args()
    result = distil_jax.finetune(
        given.model,
        given.rows,
        folder=given.output,
        task={"text": given.text, "label": given.label},
        training={"epochs": given.epochs},
    )
    print({name: round(value, 3) for name, value in result.metrics.items()})

    predictor = distil_jax.load_predictor(result)
    for answer in predictor(["Warm, funny, and over too soon.", "Two hours I will not get back."]):
        print(answer["label"], round(answer["score"], 3))

    distil_jax.export_model(result, f"{given.output}/export", overwrite=True)
    print(f"{given.output}/export loads in transformers.pipeline('text-classification')")
