"""Curves of runs as a picture, from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distil_jax.errors import UserError
from distil_jax.evaluation.report import folder_labels
from distil_jax.runs import EVALUATION, read_metrics

_MOST_NAMED = 3  # runs in the title
_USUAL = ("mlm_loss", "score")  # of runs on text, and of fine-tuning
_TITLES = {"mlm_loss": "held-out masked-token loss (nats)", "score": "validation score"}


def held_out_measures(run: Path) -> list[str]:
    """Names of the held-out measures of the run in `run`, in their order."""
    rows = read_metrics(run, EVALUATION)
    return [*dict.fromkeys(name for row in rows for name, value in row["metrics"].items() if value is not None)]


def held_out_curve(run: Path, measure: str = "mlm_loss") -> tuple[list[int], list[float]]:
    """Steps and values of a held-out measure of the run in `run`.

    Raises:
        UserError: the run has no such measure.
    """
    rows = [row for row in read_metrics(run, EVALUATION) if row["metrics"].get(measure) is not None]
    if not rows:
        known = ", ".join(held_out_measures(run)) or "none; is this the folder of a run?"
        raise UserError(f"{run}: no held-out {measure} in its metrics.jsonl; there are {known}")
    return [row["step"] for row in rows], [row["metrics"][measure] for row in rows]


def plot_runs(runs: Sequence[Path], output: Path, measures: Sequence[str] = ()) -> None:
    """Draw held-out measures of runs against the optimiser step into `output` (.png, .svg or .pdf), side by side.

    Args:
        runs: their folders.
        output: the picture.
        measures: what is drawn; empty: the masked-token loss, of fine-tuning the score.

    Raises:
        UserError: a run without a measure or given twice, matplotlib missing, or a file that cannot be written.
    """
    labels, there = folder_labels(runs, "plot"), held_out_measures(runs[0])
    names = [*measures] or [next((name for name in _USUAL if name in there), _USUAL[0])]
    curves = {name: [held_out_curve(run, name) for run in runs] for name in names}
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError('plots need matplotlib; pip install ".[plot]" in a checkout of distil_jax') from None
    mpl.use("agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, len(names), figsize=(1 + 6 * len(names), 4), layout="constrained", squeeze=False)
    figure.suptitle(", ".join(labels) if len(labels) <= _MOST_NAMED else f"{len(labels)} runs")
    for axes, (name, drawn) in zip(grid[0], curves.items(), strict=True):
        for label, (steps, values) in zip(labels, drawn, strict=True):
            axes.plot(steps, values, marker="o", label=label)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(_TITLES.get(name, f"held-out {name}"))
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{output}: cannot be written ({error})") from None
    finally:
        pyplot.close(figure)
