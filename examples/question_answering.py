"""Answers in a text: train on SQuAD's format, then ask.

python examples/question_answering.py train-v1.1.json --validation dev-v1.1.json --model models/mine
"""

from __future__ import annotations

import argparse

import distil_jax

CONTEXT = "The Amazon rainforest covers 5.5 million square kilometres, of which 60 % lie in Brazil."

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("train", help="SQuAD's JSON")
parser.add_argument("--validation", help="the same; left out: a part of the training questions")
parser.add_argument("--model", default="distilbert/distilbert-base-uncased", help="folder or hub id")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--output", default="runs/questions")

if __name__ == "__main__":
    given = parser.parse_args()
    result = distil_jax.finetune(
        given.model,
        given.train,
        validation=given.validation,
        kind="question",
        folder=given.output,
        training={"epochs": given.epochs},
    )
    print({name: round(value, 3) for name, value in result.metrics.items()})

    predictor = distil_jax.load_predictor(result)
    (answer,) = predictor([{"question": "How much of it lies in Brazil?", "context": CONTEXT}])
    print(answer["answer"])
