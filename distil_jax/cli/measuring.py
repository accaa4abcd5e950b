"""Commands that measure and take a configuration: benchmark, and evaluate on a task."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.benchmark.plan import BenchmarkArguments, stage_of
from distil_jax.cli.command import parse, spelled_out, start
from distil_jax.config import Config, TaskSettings, fields_of, parse_arguments, with_overrides
from distil_jax.config.arguments import CONFIG_FLAG
from distil_jax.errors import UserError

_TASK = "--task"
_SHORT = {_TASK: "--task.name", "--output": "--run.output"}
_PROGRAM = "distil-jax evaluate MODEL --task NAME"
_OF_TRAINING = ("class_weights", "word_masking", "word_shuffling", "max_examples")
# What has a say where nothing is trained.
_SCORE_SETTINGS = (
    *(f"task.{key}" for key in fields_of(TaskSettings) if key not in _OF_TRAINING),
    *("run", "parallel", "finetune.buckets", "training.compute_dtype", "training.attention", "evaluation.batch_size"),
)


def is_about_a_task(arguments: Sequence[str]) -> bool:
    """Whether these arguments of `distil-jax evaluate` ask for a task's scores, not a language model's."""
    flags = {argument.partition("=")[0] for argument in arguments}
    return CONFIG_FLAG in flags or any(flag.partition(".")[0] == _TASK for flag in flags)


def run_evaluate_task(arguments: list[str]) -> None:
    """`distil-jax evaluate MODEL --task NAME`."""
    config = _of_a_task(arguments)
    start(config)
    from distil_jax.evaluation.task_scores import score_model, scores_table

    found = score_model(config)
    if found.is_main:
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        print(scores_table(found))


def _of_a_task(arguments: Sequence[str]) -> Config:
    """The configuration, with the model that comes before the flags as model.initial."""
    count = next((number for number, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    models, flags = arguments[:count], spelled_out(arguments[count:], _SHORT)
    if len(models) != 1 and not {"-h", "--help"} & {*flags}:
        raise UserError(f"{len(models)} models given before the flags; give one: {_PROGRAM}")
    config = parse_arguments(
        flags,
        prog=_PROGRAM,
        description="Scores of MODEL, a fine-tuned model, on a task. --task NAME is short for --task.name NAME, "
        "--output FOLDER, which gets result.json, for --run.output FOLDER.",
        sections=_SCORE_SETTINGS,
        default="finetune",
        implied=_any_devices,
    )
    from distil_jax.evaluation.study_plan import for_task

    return for_task(with_overrides(config, {"model.initial": models[0]}), config.task.name)


def _any_devices(given: Mapping[str, Any]) -> dict[str, Any]:
    """A batch for training that divides over as many devices as are wanted: there is none, but it is checked."""
    return {"training.batch_size": max(given["parallel.devices"], 1), "training.micro_batch_size": 1}


def run_benchmark(arguments: list[str]) -> int:
    """`distil-jax benchmark`; 1 where a variant failed."""
    own, settings = split_arguments(arguments)
    given: BenchmarkArguments = parse(BenchmarkArguments, own, "benchmark")
    config = parse_arguments(settings, prog="distil-jax benchmark")
    stage = stage_of(config, given.stage, any(one.partition("=")[0] == CONFIG_FLAG for one in settings))
    from distil_jax.benchmark.report import benchmark_markdown, benchmark_paths, write_benchmark
    from distil_jax.benchmark.run import run_benchmark
    from distil_jax.runs import require_writable

    def say(line: str) -> None:
        print(f"measuring: {line}", file=sys.stderr, flush=True)

    paths = benchmark_paths(given.output) if given.output else ()
    require_writable("--output", *paths)
    command = f"distil-jax benchmark {shlex.join(arguments)}"
    report = run_benchmark(config, stage, given, command=command, say=say)
    print(benchmark_markdown(report))
    if given.output:
        write_benchmark(given.output, report)
        print("\n".join(map(str, paths)), file=sys.stderr)
    return 1 if any("failed" in row for row in report["rows"]) else 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of the configuration: --config FILE and --section.key VALUE.

    A flag takes what follows it up to the next flag. Flags that are neither are the command's, which refuses them.
    """
    names = {f"--{spec.name}" for spec in dataclasses.fields(BenchmarkArguments)}
    own: list[str] = []
    settings: list[str] = []
    part = own
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--"):
            part = settings if flag == CONFIG_FLAG or ("." in flag and flag not in names) else own
        part.append(argument)
    return own, settings
