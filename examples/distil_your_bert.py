"""Half of your own BERT: a student with every other layer, from text alone.

    python examples/distil_your_bert.py models/teacher text.txt --validation held_out.txt --steps 2000

The student matches the hidden states of its teacher, which needs no masked-language-model head and keeps the most where
text is scarce. For the losses of DistilBERT leave `objective` out.
"""

from __future__ import annotations

import argparse

import distil_jax

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("teacher", help="folder or hub id")
parser.add_argument("text", help="file or glob, a sequence a line")
parser.add_argument("--validation", help="held-out text")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--output", default="runs/student")

if __name__ == "__main__":
    given = parser.parse_args()
    student = distil_jax.distill(
        given.teacher,
        given.text,
        validation=given.validation,
        folder=given.output,
        objective={"kl": 0.0, "mlm": 0.0, "cosine": 0.0, "hidden": 1.0},
        optimizer={"learning_rate": 1e-3},
        training={"steps": given.steps, "batch_size": given.batch_size, "micro_batch_size": given.batch_size},
        corpus={"sequence_length": 128},
    )
    print({name: round(value, 4) for name, value in student.metrics.items()})
    distil_jax.export_model(student, f"{given.output}/export", overwrite=True)
    print(f"{given.output}/export loads in transformers.AutoModel")
