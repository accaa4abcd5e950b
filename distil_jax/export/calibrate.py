"""Which layers a quantised file leaves in float32: those whose quantisation changes the outputs most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distil_jax.export.agreement import compare_file
from distil_jax.export.check_rows import CheckRows
from distil_jax.export.formats import ExportFormat, Network, WriteOptions
from distil_jax.export.source import Source
from distil_jax.tasks import collate_inputs

_ROWS = 64  # on which layers are compared with each other


def layers_to_keep(
    format: ExportFormat,
    source: Source,
    path: Path,
    model: Network,
    rows: CheckRows,
    max_drop: float,
    show: Callable[[str], None] = lambda _: None,
) -> frozenset[str]:
    """Names of the fewest layers, 0, 1, 2, 4, 8, ..., without which the file loses no more than `max_drop`.

    Each layer is quantised alone first, and its squared error of the outputs is measured. Those with the largest one
    are kept.

    Args:
        format: a quantised one.
        source: the model.
        path: where files may be written meanwhile.
        model: what is compared with.
        rows: what is computed.
        max_drop: points of 100, as `Agreement.points_lost` has them.
        show: takes a line of progress.
    """
    assert format.weights is not None
    names = format.weights(source)

    count, ranked = 0, []
    while True:
        keep = frozenset(ranked[:count])
        format.write(source, path, WriteOptions(keep_float=keep))
        lost = compare_file(format, path, source, model, rows).points_lost
        show(f"{format.name}: {lost:.2f} points lost with {len(keep)} of {len(names)} layers in float32")
        if lost <= max_drop or len(keep) == len(names):
            return keep
        ranked = ranked or _ranked(format, source, path, model, rows, names, show)
        count = min(max(2 * count, 1), len(names))


def _ranked(
    format: ExportFormat,
    source: Source,
    path: Path,
    model: Network,
    rows: CheckRows,
    names: list[str],
    show: Callable[[str], None],
) -> list[str]:
    """The layers, those first that change the outputs most when they alone are quantised."""
    assert format.open is not None
    chosen = np.linspace(0, len(rows.encoded) - 1, min(_ROWS, len(rows.encoded))).astype(int)
    length = int(rows.encoded.lengths[chosen].max())
    batches = [
        collate_inputs(rows.encoded, part, length, len(part))[0] for part in np.array_split(chosen, 8) if len(part)
    ]
    expected = [model(inputs) for inputs in batches]
    errors = {}
    for number, name in enumerate(names):
        format.write(source, path, WriteOptions(keep_float=frozenset(names) - {name}))
        network = format.open(path, source)
        found = (network(inputs) for inputs in batches)
        errors[name] = sum(float(((one - two) ** 2).sum()) for one, two in zip(expected, found, strict=True))
        show(f"{format.name}: layer {number + 1} of {len(names)}, {name}: squared error {errors[name]:.3g}")
    return sorted(names, key=lambda name: -errors[name])
