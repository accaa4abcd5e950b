"""Curves of runs as a picture, from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.evaluation.report import folder_labels
from distil_jax.runs import read_metrics


def held_out_curve(run: Path, measure: str = "mlm_loss") -> tuple[list[int], list[float]]:
    """Steps and values of a held-out measure of the run in `run`.

    Raises:
        UserError: the folder holds no such measures.
    """
    rows = [row for row in read_metrics(run, "validation") if row["metrics"].get(measure) is not None]
    if not rows:
        raise UserError(f"{run}: no held-out {measure} in its metrics.jsonl; is this the folder of a run?")
    return [row["step"] for row in rows], [row["metrics"][measure] for row in rows]


def plot_runs(runs: Sequence[Path], output: Path, measure: str = "mlm_loss") -> None:
    """Draw a held-out measure of several runs against the optimiser step into `output` (.png, .svg or .pdf).

    Raises:
        UserError: a run without measures or given twice, matplotlib missing, or a file that cannot be written.
    """
    labels = folder_labels(runs, "plot")
    curves = {label: held_out_curve(run, measure) for label, run in zip(labels, runs, strict=True)}
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError('plots need matplotlib; pip install ".[plot]" in a checkout of distil_jax') from None
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, marker="o", label=name)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel({"mlm_loss": "held-out masked-token loss (nats)"}.get(measure, f"held-out {measure}"))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{output}: cannot be written ({error})") from None
    finally:
        pyplot.close(figure)
