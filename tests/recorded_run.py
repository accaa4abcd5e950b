"""A `distil-jax` command that writes down what each row of each training step is made of, where the step makes it.

    python tests/recorded_run.py FILE distill --config ...

FILE (.npz) gets, a row each in the order of their dropout keys: keys [n, 2] uint32, ids [n, L] as read, masked [n, L]
as the model sees them, positions, targets and weights [n, K] of what is predicted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distil_jax.cli import main
from distil_jax.training import text_step

NAMES = ("keys", "ids", "masked", "positions", "targets", "weights")


def record(rows: list[tuple[np.ndarray, ...]]) -> None:
    """From now on every row of a training step that this process computes is added to `rows`."""
    make_micro_batch = text_step.make_micro_batch

    def note(*arrays: Any) -> None:
        rows.extend(zip(*map(np.asarray, arrays), strict=True))

    def recording(models: Any, ids: Any, *arguments: Any, dropout: bool = True) -> Any:
        found = make_micro_batch(models, ids, *arguments, dropout=dropout)
        if dropout:  # not of an evaluation
            laid = (found.inputs.dropout_keys, ids, found.inputs.ids, found.positions, found.targets, found.weights)
            jax.debug.callback(note, *laid)
        return found

    text_step.make_micro_batch = recording


if __name__ == "__main__":
    rows: list[tuple[np.ndarray, ...]] = []
    record(rows)
    status = main(sys.argv[2:])
    jax.effects_barrier()
    rows.sort(key=lambda row: tuple(row[0].tolist()))
    columns: Any = {name: np.stack(values) for name, values in zip(NAMES, zip(*rows, strict=True), strict=True)}
    np.savez(Path(sys.argv[1]), **columns)
    sys.exit(status)
