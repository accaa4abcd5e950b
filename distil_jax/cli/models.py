"""Commands on models, runs and corpora: export, predict, evaluate, compare, plot, check, quickstart."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.cli.command import print_tables, say, start, with_long_flags
from distil_jax.config import (
    CONFIG_FLAG,
    CheckArguments,
    CompareArguments,
    Config,
    EmbedArguments,
    EvaluateArguments,
    ExportArguments,
    Masking,
    PlotArguments,
    PredictArguments,
    PushArguments,
    QuickstartArguments,
    ReportArguments,
    ServeArguments,
    ShortHelp,
    TaskSettings,
    TrimArguments,
    fields_of,
    parse_arguments,
    parse_command,
    with_overrides,
)
from distil_jax.errors import UserError

_TASK = "--task"
_SHORT = {_TASK: "--task.name", "--output": "--run.output"}
_PROGRAM = "distil-jax evaluate MODEL --task NAME"
_OF_TRAINING = ("class_weights", "word_masking", "word_shuffling", "max_examples")
_PAGE = ShortHelp(
    "distil-jax evaluate runs/sst2 --task sst2 --output results/sst2",
    ("task.name",),
    (
        *("task.source", "task.validation", "task.test", "task.text", "task.label", "task.labels", "run.output"),
        *("task.max_length", "evaluation.batch_size", "parallel.devices"),
    ),
)
# Settings that have an effect where nothing is trained.
_SCORE_SETTINGS = (
    *(f"task.{key}" for key in fields_of(TaskSettings) if key not in _OF_TRAINING),
    *("run", "parallel", "finetune.buckets", "training.compute_dtype", "training.attention", "evaluation.batch_size"),
)
_PRUNE_PAGE = ShortHelp(
    "distil-jax prune models/sst2 --task sst2 --pruning.feed-forward 0.5 --output models/sst2_pruned",
    ("task.name", "run.output", "pruning.feed_forward", "pruning.heads"),
    ("pruning.examples", "task.source", "task.train", "task.text", "task.label", "task.max_length", "parallel.devices"),
)
_PRUNE_SETTINGS = (
    *(f"task.{key}" for key in fields_of(TaskSettings) if key not in _OF_TRAINING),
    *("run", "parallel.devices", "pruning.feed_forward", "pruning.heads", "pruning.examples"),
)


def run_export(given: ExportArguments) -> None:
    """`distil-jax export`."""
    start(Config())
    from distil_jax.export import ExportChecks, WriteOptions, export

    task = TaskSettings(name=given.task, source=given.task_source) if given.task else None
    exported = export(
        given.model,
        Path(given.output),
        formats=given.format,
        step=None if given.step < 0 else given.step,
        pooling=given.pooling,
        normalize=given.normalize,
        overwrite=given.overwrite,
        options=WriteOptions(dtype=given.dtype, lengths=given.lengths),
        checks=ExportChecks(given.check, task, given.check_rows, given.max_drop, given.force, given.calibrate),
        show=say,
    )
    step = exported.source.step
    print(f"{given.output}: model of {given.model if step is None else f'step {step}'}")
    print_tables(exported.table)


def run_push(given: PushArguments) -> None:
    """`distil-jax push`."""
    start(Config())
    from distil_jax.export import push

    step = None if given.step < 0 else given.step
    print(push(Path(given.model), given.repository, step=step, private=given.private, message=given.message))


def run_predict(given: PredictArguments) -> None:
    """`distil-jax predict`."""
    start(Config())
    from distil_jax.export import predict_rows

    print(predict_rows(given, _show).text, file=sys.stderr)


def run_embed(given: EmbedArguments) -> None:
    """`distil-jax embed`."""
    start(Config())
    from distil_jax.export import embed_rows

    print(embed_rows(given, _show).text, file=sys.stderr)


def run_serve(given: ServeArguments) -> None:
    """`distil-jax serve`."""
    start(Config())
    from distil_jax.serving import serve_model

    serve_model(given, say)


def run_trim(given: TrimArguments) -> None:
    """`distil-jax trim`."""
    start(Config())
    from distil_jax.export import trim_vocabulary

    print(trim_vocabulary(given).table())


def _show(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text}\r", end="", file=sys.stderr, flush=True)


def run_evaluate(arguments: list[str]) -> None:
    """`distil-jax evaluate`, of language models or, with --task, of a task model."""
    flags = {argument.partition("=")[0] for argument in arguments}
    if CONFIG_FLAG in flags or any(flag.partition(".")[0] == _TASK for flag in flags):
        _evaluate_task(arguments)
    else:
        _evaluate_language_models(parse_command(EvaluateArguments, arguments, prog="distil-jax evaluate"))


def _evaluate_language_models(given: EvaluateArguments) -> None:
    start(Config())
    import jax

    from distil_jax.evaluation import evaluate_paths, measures_table
    from distil_jax.runs import require_writable, write_atomically

    if given.json:
        require_writable("--json", Path(given.json))
    masking = Masking(smoothing=given.smoothing)
    measures = evaluate_paths(given.models, given.corpus, given.teacher, given.rows, given.seed, masking)
    if jax.process_index():
        return  # the first process prints for all
    print(measures_table(measures))
    if given.json:
        write_atomically(Path(given.json), json.dumps(measures, indent=2) + "\n")


def _evaluate_task(arguments: Sequence[str]) -> None:
    text = (
        "Scores of MODEL, a fine-tuned model, on a task. --task NAME is short for --task.name NAME, --output FOLDER, "
        "which gets result.json, for --run.output FOLDER."
    )
    config = _task_config(arguments, _PROGRAM, text, _SCORE_SETTINGS, _PAGE)
    start(config)
    from distil_jax.evaluation import score_model, scores_table

    found = score_model(config)
    if found.is_main:
        for note in (note for note in found.notes if note not in found.data.notes):  # the data's were shown before
            print(f"note: {note}", file=sys.stderr)
        print_tables(scores_table(found))


def run_prune(arguments: list[str]) -> None:
    """`distil-jax prune`."""
    program = "distil-jax prune MODEL --task NAME"
    text = (
        "MODEL, a fine-tuned model, with fewer neurons in its feed-forward parts, those that matter least for a task "
        "left out. --task NAME is short for --task.name NAME, --output FOLDER for --run.output FOLDER."
    )
    config = _task_config(arguments, program, text, _PRUNE_SETTINGS, _PRUNE_PAGE)
    start(config)
    from distil_jax.export import prune_model

    print(prune_model(config).table())
    print(
        f"distil-jax finetune --task {config.task.name} --model.initial {config.run.output} --teacher.path "
        f"{config.model.initial} --run.output RUN  # brings its score back",
        file=sys.stderr,
    )


def _task_config(
    arguments: Sequence[str], program: str, text: str, sections: Sequence[str], page: ShortHelp | None = None
) -> Config:
    """The configuration, with the model that precedes the flags as model.initial."""
    count = next((number for number, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    models, flags = arguments[:count], with_long_flags(arguments[count:], _SHORT)
    if len(models) != 1 and not {"-h", "--help", "--help-all"} & {*flags}:
        raise UserError(f"{len(models)} models given before the flags; give one: {program}")
    config = parse_arguments(
        flags,
        prog=program,
        description=text,
        sections=sections,
        default="finetune",
        implied=_any_devices,
        page=page,
    )
    from distil_jax.evaluation import for_task

    return for_task(with_overrides(config, {"model.initial": models[0]}), config.task.name)


def _any_devices(given: Mapping[str, Any]) -> dict[str, Any]:
    """A training batch that any number of devices divides. Nothing is trained, but the batch is checked."""
    return {"training.batch_size": max(given["parallel.devices"], 1), "training.micro_batch_size": 1}


def run_plot(given: PlotArguments) -> None:
    """`distil-jax plot`."""
    from distil_jax.evaluation import plot_runs

    plot_runs([Path(run) for run in given.runs], Path(given.output), given.measures)
    print(given.output)


def run_report(given: ReportArguments) -> None:
    """`distil-jax report`."""
    from distil_jax.evaluation import write_report

    print(write_report([Path(folder) for folder in given.folders], Path(given.output) if given.output else None))


def run_compare(given: CompareArguments) -> None:
    """`distil-jax compare`."""
    from distil_jax.evaluation import compare_studies, comparison_markdown, write_comparison

    found = compare_studies([Path(folder) for folder in given.folders])
    print_tables(comparison_markdown(found))
    if given.output:
        write_comparison(Path(given.output), found)


def run_check(given: CheckArguments) -> int:
    """`distil-jax check`; 1 where something is damaged."""
    start(Config())
    from distil_jax.evaluation import check_folder

    items = check_folder(Path(given.folder))
    width = max(len(item.name) for item in items)
    for item in items:
        print(f"{item.name:<{width}}  {item.state}")
    damaged = [item.name for item in items if item.damaged]
    if damaged:
        print(f"distil-jax: {len(damaged)} of {len(items)} damaged: {', '.join(damaged)}", file=sys.stderr)
    return 1 if damaged else 0


def run_quickstart(given: QuickstartArguments) -> None:
    """`distil-jax quickstart`."""
    start(Config())
    from distil_jax.evaluation import make_quickstart

    print(make_quickstart(Path(given.output)))
