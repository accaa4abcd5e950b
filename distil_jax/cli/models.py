"""Commands on models, with a few arguments of their own: export, predict, evaluate, compare, plot, quickstart."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

from distil_jax.cli.command import parse, start
from distil_jax.cli.measuring import is_about_a_task, run_evaluate_task
from distil_jax.config import Config, Masking
from distil_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """Write a run's model as a Hugging Face folder with tokenizer and model card."""

    run: Annotated[str, "folder of the run"]
    output: str
    """folder to write"""
    step: int = -1
    """which checkpoint; -1: the best one of a fine-tuning that looks for it, else the newest"""
    overwrite: bool = False
    """replace an existing model folder"""


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Measure masked language models on held-out rows: loss, perplexity, accuracy, likeness to a teacher.

    With --task NAME, the scores of one fine-tuned model on a task: distil-jax evaluate MODEL --task NAME --help
    """

    models: tuple[str, ...]
    corpus: str
    """folder of token shards, e.g. data/wiki/validation"""
    teacher: str = ""
    """run, folder or hub id to compare with"""
    rows: int = 0
    """rows used, the first ones; 0: all"""
    seed: int = 0
    """seed of the masks"""
    smoothing: float = Masking().smoothing
    """rare tokens are masked more often by count^-smoothing; 0: all alike"""
    json: str = ""
    """also write the measures to this file"""


@dataclasses.dataclass(frozen=True)
class PlotArguments:
    """Draw a held-out measure of runs against the optimiser step."""

    runs: tuple[str, ...]
    output: str
    """picture to write: .png, .svg or .pdf"""
    measure: str = "mlm_loss"
    """which one: mlm_loss, perplexity, accuracy, kl, agreement"""


@dataclasses.dataclass(frozen=True)
class CompareArguments:
    """Put the scores of fine-tuning studies side by side, with what each retains of the first one's."""

    folders: tuple[str, ...]
    output: str = ""
    """also write the table to this file, FILE.md, and the numbers to FILE.json"""


@dataclasses.dataclass(frozen=True)
class QuickstartArguments:
    """Text, tokenizer, teacher, student, export and a table, from nothing, in a few minutes on a laptop."""

    output: str = "quickstart"
    """folder for everything it makes"""


def run_export(arguments: list[str]) -> None:
    """`distil-jax export`."""
    given: ExportArguments = parse(ExportArguments, arguments, "export", "run")
    start(Config())
    from distil_jax.export import export

    step = None if given.step < 0 else given.step
    trained = export(Path(given.run), Path(given.output), step=step, overwrite=given.overwrite)
    print(f"{given.output}: model of step {trained.step}, for transformers and distil_jax.from_pretrained")


def run_predict(arguments: list[str]) -> None:
    """`distil-jax predict`."""
    from distil_jax.config.predicting import PredictArguments

    given: PredictArguments = parse(PredictArguments, arguments, "predict", "model")
    start(Config())
    from distil_jax.export.predictions import predict_rows

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text}\r", end="", file=sys.stderr, flush=True)

    print(predict_rows(given, show).text, file=sys.stderr)


def run_evaluate(arguments: list[str]) -> None:
    """`distil-jax evaluate`."""
    if is_about_a_task(arguments):
        run_evaluate_task(arguments)
        return
    given: EvaluateArguments = parse(EvaluateArguments, arguments, "evaluate", "models")
    if given.rows < 0:
        raise UserError(f"--rows {given.rows}: must be at least 0; 0 takes all")
    start(Config())
    import jax

    from distil_jax.evaluation.heldout import evaluate_paths
    from distil_jax.evaluation.report import measures_table
    from distil_jax.runs import require_writable, write_atomically

    if given.json:
        require_writable("--json", Path(given.json))
    measures = evaluate_paths(
        list(given.models), given.corpus, given.teacher, given.rows, given.seed, Masking(smoothing=given.smoothing)
    )
    if jax.process_index():
        return  # the first process speaks for all
    print(measures_table(measures))
    if given.json:
        write_atomically(Path(given.json), json.dumps(measures, indent=2) + "\n")


def run_plot(arguments: list[str]) -> None:
    """`distil-jax plot`."""
    given: PlotArguments = parse(PlotArguments, arguments, "plot", "runs")
    from distil_jax.evaluation.plot import plot_runs

    plot_runs([Path(run) for run in given.runs], Path(given.output), given.measure)
    print(given.output)


def run_compare(arguments: list[str]) -> None:
    """`distil-jax compare`."""
    given: CompareArguments = parse(CompareArguments, arguments, "compare", "folders")
    from distil_jax.evaluation.compare import compare, comparison_markdown, write_comparison

    found = compare([Path(folder) for folder in given.folders])
    print(comparison_markdown(found))
    if given.output:
        write_comparison(Path(given.output), found)


def run_quickstart(arguments: list[str]) -> None:
    """`distil-jax quickstart`."""
    given: QuickstartArguments = parse(QuickstartArguments, arguments, "quickstart")
    start(Config())
    from distil_jax.evaluation.quickstart import quickstart

    print(quickstart(Path(given.output)))
