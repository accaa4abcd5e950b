"""`distil-jax <command>`: parse, call one function, print. Exit status 0 done, 1 a fault, 2 the user's mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from distil_jax.config import Config, Masking, parse_arguments, require
from distil_jax.errors import FaultError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as mistake:
        print(f"distil-jax: error: {mistake}", file=sys.stderr, flush=True)
        _leave_other_processes(2)
        return 2
    except FaultError as fault:
        print(f"distil-jax: fault: {fault}", file=sys.stderr, flush=True)
        _leave_other_processes(1)
        return 1
    except KeyboardInterrupt:
        print("distil-jax: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _leave_other_processes(status: int) -> None:
    """End at once as one process of several: leaving in the usual way would wait for the others, and they for us."""
    if "jax" in sys.modules:
        from distil_jax.training import runtime

        runtime.abandon(status)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from distil_jax import __version__

        print(f"distil-jax {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise UserError(f"there is no command {name!r}; did you mean {near[0]}? `distil-jax --help` lists them")
    return COMMANDS[name].run(rest) or 0


def _overview() -> str:
    rows = "\n".join(f"  {name:<11} {command.text}" for name, command in COMMANDS.items())
    return (
        "usage: distil-jax COMMAND [--config FILE] [--section.key VALUE ...]\n\n"
        "Distil a BERT-family encoder into a small, fast one, in and out of Hugging Face format.\n\n"
        f"commands:\n{rows}\n\n`distil-jax COMMAND --help` shows every setting with its default."
    )


# Commands that take a configuration


def _prepare(arguments: list[str]) -> None:
    config = parse_arguments(
        arguments, prog="distil-jax prepare", description="Turn text into token shards.", sections=("corpus", "logging")
    )
    require(config, "corpus.folder", "corpus.train")
    source = config.corpus.tokenizer or config.teacher.path or config.model.initial
    if not source:
        raise UserError("corpus.tokenizer is not set; name the tokenizer's folder or hub id (the teacher's, say)")
    from distil_jax.corpus.splits import prepare_splits
    from distil_jax.hf import load_tokenizer
    from distil_jax.training.telemetry import PrepareDisplay

    with PrepareDisplay(config.logging.progress) as display:
        corpora = prepare_splits(config.corpus, load_tokenizer(source), display.update)
    for split, corpus in corpora.items():
        print(
            f"{split}: {corpus.num_tokens:,} tokens, {corpus.num_sequences:,} sequences in {corpus.num_rows:,} rows of "
            f"{corpus.sequence_length} ({corpus.fill:.1%} filled), {corpus.folder}"
        )


def _train(stage: str) -> Callable[[list[str]], None]:
    sections = {
        "pretrain": ("model",),
        "distill": ("teacher", "student", "objective"),
    }[stage]
    texts = {
        "pretrain": "Train a masked language model, from scratch or from Hugging Face weights.",
        "distill": "Distil a teacher into a smaller student.",
    }
    shared = ("run", "corpus", "masking", "optimizer", "training", "parallel", "checkpoint", "evaluation", "logging")

    def run(arguments: list[str]) -> None:
        config = parse_arguments(
            arguments, prog=f"distil-jax {stage}", description=texts[stage], sections=(*shared, *sections)
        )
        require(config, "run.output", "corpus.folder")
        start(config)
        from distil_jax.training import stages

        outcome = getattr(stages, stage)(config)
        if outcome.is_main:
            print(_summary(config, outcome))

    return run


def _finetune(arguments: list[str]) -> int:
    sections = ("run", "model", "teacher", "task", "finetune", "study", "optimizer", "training", "parallel")
    config = parse_arguments(
        _spelled_out(arguments),
        prog="distil-jax finetune",
        description="Fine-tune a model on a task, or on several with several seeds, alone or with fine-tuned teachers.",
        sections=(*sections, "checkpoint", "evaluation", "logging"),
        default="finetune",
    )
    from distil_jax.evidence.study_plan import for_task, is_study, plan_study

    require(config, "run.output", "model.initial")
    if is_study(config):
        plan_study(config)  # what is wrong with it is said before anything is started
        return _study(config, arguments)
    require(config, "task.name")
    start(config)
    from distil_jax.tasks.finetune import finetune

    config = for_task(config, config.task.name)
    found = finetune(config)
    if found.outcome.is_main:
        for note in found.notes:
            print(f"note: {note}")
        print(_finetuned(config, found))
    return 0


def _study(config: Config, arguments: Sequence[str]) -> int:
    start(config)
    from distil_jax.evidence.study import run_study

    command = f"distil-jax finetune {shlex.join(arguments)}"
    found = run_study(config, command=command, say=lambda line: print(line, file=sys.stderr, flush=True))
    if found.is_main:
        print(f"{found.text}\n\n{config.run.output}/report.md and report.json")
    for failure in found.failures:
        print(f"distil-jax: failed: {failure}", file=sys.stderr)
    return 1 if found.failures else 0


def _spelled_out(arguments: list[str]) -> list[str]:
    """`--task sst2` is short for `--task.name sst2`, `--seeds 5` for `--study.seeds 5`."""
    short = {"--task": "--task.name", "--seeds": "--study.seeds"}
    return [re.sub(r"^(--task|--seeds)(?=$|=)", lambda found: short[found[1]], argument) for argument in arguments]


def _finetuned(config: Config, found: Any) -> str:
    outcome = found.outcome
    state = "was finished already" if outcome.resumed_from == outcome.step else "finished"
    measures = ", ".join(f"{name} {value:.4f}" for name, value in found.measures.items())
    return (
        f"{config.run.output}: {found.data.spec.title} {state}, step {outcome.best_step} of {outcome.step}"
        f"{'; ' if measures else ''}{measures}\nnext: distil-jax export {config.run.output} --output FOLDER"
    )


def start(config: Config) -> None:
    """Process start-up of commands that compute: environment, cluster, platform, compilation cache."""
    from distil_jax.training import runtime

    runtime.start(config)


def _summary(config: Config, outcome: Any) -> str:
    state = "was finished already" if outcome.resumed_from == outcome.step else "finished"
    measures = ", ".join(
        f"{name} {value:.4f}"
        for name, value in outcome.evaluations.get(str(outcome.step), {}).items()
        if name != "predictions"
    )
    return (
        f"{config.run.output}: {state}, step {outcome.step}{'; held-out: ' if measures else ''}{measures}\n"
        f"next: distil-jax export {config.run.output} --output FOLDER"
    )


# Commands with a few arguments of their own


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
    """Measure masked language models on held-out rows: loss, perplexity, accuracy, likeness to a teacher."""

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


def _parse(kind: type[Any], arguments: list[str], name: str, positional: str = "") -> Any:
    from distil_jax.config.arguments import parse_dataclass

    return parse_dataclass(kind, arguments, prog=f"distil-jax {name}", positional=positional)


def _export(arguments: list[str]) -> None:
    given: ExportArguments = _parse(ExportArguments, arguments, "export", "run")
    start(Config())
    from distil_jax.delivery import export

    step = None if given.step < 0 else given.step
    trained = export(Path(given.run), Path(given.output), step=step, overwrite=given.overwrite)
    print(f"{given.output}: model of step {trained.step}, for transformers and distil_jax.from_pretrained")


def _predict(arguments: list[str]) -> None:
    from distil_jax.config.predicting import PredictArguments

    given: PredictArguments = _parse(PredictArguments, arguments, "predict", "model")
    start(Config())
    from distil_jax.delivery.predictions import predict_rows

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text}\r", end="", file=sys.stderr, flush=True)

    print(predict_rows(given, show).text, file=sys.stderr)


def _evaluate(arguments: list[str]) -> None:
    given: EvaluateArguments = _parse(EvaluateArguments, arguments, "evaluate", "models")
    start(Config())
    from distil_jax.evidence.heldout import evaluate_paths
    from distil_jax.evidence.report import measures_table

    measures = evaluate_paths(
        list(given.models), given.corpus, given.teacher, given.rows, given.seed, Masking(smoothing=given.smoothing)
    )
    print(measures_table(measures))
    if given.json:
        Path(given.json).write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")


def _plot(arguments: list[str]) -> None:
    given: PlotArguments = _parse(PlotArguments, arguments, "plot", "runs")
    from distil_jax.evidence.plot import plot_runs

    plot_runs([Path(run) for run in given.runs], Path(given.output), given.measure)
    print(given.output)


def _compare(arguments: list[str]) -> None:
    given: CompareArguments = _parse(CompareArguments, arguments, "compare", "folders")
    from distil_jax.evidence.compare import compare, comparison_markdown, write_comparison

    found = compare([Path(folder) for folder in given.folders])
    print(comparison_markdown(found))
    if given.output:
        write_comparison(Path(given.output), found)


def _quickstart(arguments: list[str]) -> None:
    given: QuickstartArguments = _parse(QuickstartArguments, arguments, "quickstart")
    start(Config())
    from distil_jax.evidence.quickstart import quickstart

    print(quickstart(Path(given.output)))


@dataclasses.dataclass(frozen=True)
class Command:
    """One entry of `distil-jax`: a line of help and the function that takes the arguments after its name.

    The function returns the exit status where it is not 0.
    """

    text: str
    run: Callable[[list[str]], int | None]


COMMANDS = {
    "quickstart": Command("everything once, small, from nothing (no network, under five minutes)", _quickstart),
    "prepare": Command("text -> token shards", _prepare),
    "pretrain": Command("train a masked language model, or give an encoder its head", _train("pretrain")),
    "distill": Command("teacher -> student", _train("distill")),
    "finetune": Command("model -> a task (GLUE, SQuAD, tagging, own data), with a task teacher if wanted", _finetune),
    "evaluate": Command("held-out measures of runs and model folders", _evaluate),
    "predict": Command("texts, files or a pipe -> labels, scores, tags or answers of a fine-tuned model", _predict),
    "export": Command("run -> Hugging Face folder", _export),
    "compare": Command("scores of fine-tuning studies side by side, with retention", _compare),
    "plot": Command("held-out curves of runs as a picture", _plot),
}

if __name__ == "__main__":
    sys.exit(main())
