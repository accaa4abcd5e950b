"""The formats that a run is exported to, one value a format, registered by name.

To add a format: write its function and add it to `FORMATS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.export.checkpoint import Trained, read_run, save_trained
from distil_jax.export.embedder import choose_pooling


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        name: as `--format` has it.
        title: what is written, for people.
        write: (trained, output, overwrite=, name=) writes the model whole or not at all; `name` is the card's.
    """

    name: str
    title: str
    write: Callable[..., None]


FORMATS: dict[str, ExportFormat] = {one.name: one for one in (ExportFormat("hf", "Hugging Face folder", save_trained),)}


def export(
    run: Path,
    output: Path,
    *,
    format: str = "hf",
    step: int | None = None,
    pooling: str = "auto",
    normalize: bool | None = None,
    overwrite: bool = False,
    name: str = "",
) -> Trained:
    """Write the model of a run in a format, with tokenizer and model card.

    Args:
        run: the run's folder.
        output: what to write; made whole or not at all.
        format: one of `FORMATS`.
        step: which checkpoint; None is the run's result, as in `read_run`.
        pooling: as `choose_pooling` takes it.
        normalize: as `choose_pooling` takes it.
        overwrite: replace an existing model.
        name: what the card calls the model; empty: as the output is called.

    Raises:
        UserError: there is no such format, or as `read_run` and the format's writer.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; choose from {', '.join(FORMATS)}")
    trained = read_run(run, step)
    chosen = choose_pooling(trained.pooling, pooling, normalize)
    if chosen is not None and trained.head is not None:
        raise UserError(f"--pooling {pooling}: {run} has a task head, so it makes no vectors of texts; leave it out")
    trained = dataclasses.replace(trained, pooling=chosen)
    FORMATS[format].write(trained, output, overwrite=overwrite, name=name)
    return trained
