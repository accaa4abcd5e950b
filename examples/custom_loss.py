"""A loss and a loop of one's own: the student learns its teacher's first vector under a Huber loss.

python examples/custom_loss.py models/teacher text.txt --steps 200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import distil_jax

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("teacher", help="folder or hub id")
parser.add_argument("text", help="file with a text a line")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--output", default="models/custom")

if __name__ == "__main__":
    given = parser.parse_args()
    texts = Path(given.text).read_text(encoding="utf-8").splitlines()
    teacher, teacher_params = distil_jax.from_pretrained(given.teacher, head="none")
    tokenizer = distil_jax.load_tokenizer(given.teacher)

    layers = range(0, teacher.config.num_layers, 2)
    config = distil_jax.student_config(teacher.config, layers)
    student = distil_jax.Encoder(config)
    params = distil_jax.student_params({"encoder": teacher_params}, teacher.config, config, layers)["encoder"]
    tx = optax.adamw(1e-4)
    state = tx.init(params)

    def loss(params: Any, inputs: distil_jax.EncoderInputs) -> jax.Array:
        target = teacher.apply({"params": teacher_params}, inputs)
        found = student.apply({"params": params}, inputs._replace(token_type_ids=None))
        return jnp.mean(optax.huber_loss(found[:, 0], target[:, 0]))

    @jax.jit
    def step(params: Any, state: Any, inputs: distil_jax.EncoderInputs) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, inputs)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for number in range(given.steps):
        first = number * given.batch_size % max(len(texts) - given.batch_size, 1)
        inputs = tokenizer(texts[first : first + given.batch_size], max_length=64)
        params, state, value = step(params, state, inputs)
        if number % 50 == 0 or number + 1 == given.steps:
            print(number, round(float(value), 4))
    distil_jax.save_pretrained(given.output, config, {"encoder": params}, tokenizer=tokenizer)
