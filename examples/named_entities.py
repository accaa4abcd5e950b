"""Names in text: train a tagger on CoNLL columns, then mark the entities of new sentences.

python examples/named_entities.py train.conll --validation dev.conll --model models/mine
"""

from __future__ import annotations

import argparse

import distil_jax

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("train", help="a word and its tag a line, a blank line between sentences; or CoNLL-U")
parser.add_argument("--validation", help="the same; left out: a part of the training sentences")
parser.add_argument("--model", default="distilbert/distilbert-base-cased", help="folder or hub id")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--output", default="runs/entities")

if __name__ == "__main__":
    given = parser.parse_args()
    result = distil_jax.finetune(
        given.model,
        given.train,
        validation=given.validation,
        kind="tagging",
        folder=given.output,
        training={"epochs": given.epochs},
        optimizer={"learning_rate": 1e-4},
    )
    print({name: round(value, 3) for name, value in result.metrics.items()})

    words = "Ada Lovelace met Charles Babbage in London .".split()
    (answer,) = distil_jax.load_predictor(result)([words])
    print(" ".join(f"{word}/{tag}" for word, tag in zip(words, answer["tags"], strict=True)))
