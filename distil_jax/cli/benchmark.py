"""`distil-jax benchmark`, `distil-jax latency` and `distil-jax plan`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from distil_jax.cli.command import print_tables, say, start
from distil_jax.config import (
    CONFIG_FLAG,
    Arguments,
    BenchmarkArguments,
    Config,
    LatencyArguments,
    PlanArguments,
    fields_of,
    parse_arguments,
    parse_command,
)


def run_benchmark(arguments: list[str]) -> int:
    """`distil-jax benchmark`; 1 where a variant failed."""
    own, settings = split_arguments(BenchmarkArguments, arguments)
    given = parse_command(BenchmarkArguments, own, prog="distil-jax benchmark")
    config = parse_arguments(settings, prog="distil-jax benchmark")
    from distil_jax.benchmark import benchmark_markdown, benchmark_paths, run_benchmark, stage_of, write_benchmark
    from distil_jax.runs import require_writable

    stage = stage_of(config, given.stage, _names_a_file(settings))
    paths = benchmark_paths(given.output) if given.output else ()
    require_writable("--output", *paths)
    command = f"distil-jax benchmark {shlex.join(arguments)}"
    report = run_benchmark(config, stage, given, command=command, say=lambda line: say(f"measuring: {line}"))
    print_tables(benchmark_markdown(report))
    if given.output:
        write_benchmark(given.output, report)
        print("\n".join(map(str, paths)), file=sys.stderr)
    return 1 if any("failed" in row for row in report["rows"]) else 0


def run_latency(given: LatencyArguments) -> None:
    """`distil-jax latency`."""
    start(Config())
    from distil_jax.benchmark import latency_markdown, measure_latency, write_latency
    from distil_jax.runs import require_writable

    if given.json:
        require_writable("--json", Path(given.json))
    report = measure_latency(given, say)
    print_tables(latency_markdown(report), keys=2)
    if given.json:
        write_latency(Path(given.json), report)


def run_plan(arguments: list[str]) -> None:
    """`distil-jax plan`."""
    own, settings = split_arguments(PlanArguments, arguments)
    given = parse_command(PlanArguments, own, prog="distil-jax plan")
    config = parse_arguments(settings, prog="distil-jax plan")
    # A program for devices that are not here cannot be read back from JAX's cache.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true" if given.on == "this" else "false"
    from distil_jax.benchmark import PlanRequest, find_target, make_plan, plan_markdown, stage_of

    stage = stage_of(config, given.command, _names_a_file(settings))
    target = find_target(given.on, config.training.compute_dtype)
    request = PlanRequest(config, stage, given.vocabulary, given.price, given.search)
    plan = make_plan(request, target, lambda line: say(f"planning: {line}"))
    if given.json:
        print(json.dumps(plan, indent=1))
    else:
        print_tables(plan_markdown(plan))


def _names_a_file(settings: Sequence[str]) -> bool:
    return any(one.partition("=")[0] == CONFIG_FLAG for one in settings)


def split_arguments(command: type[Arguments], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of the configuration: --config FILE and --section.key VALUE.

    A flag takes what follows it up to the next flag. Flags that are neither are the command's, which refuses them.
    """
    names = {command.full_name(key) for key in fields_of(command)}
    own: list[str] = []
    settings: list[str] = []
    part = own
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--"):
            part = settings if flag == CONFIG_FLAG or ("." in flag and flag not in names) else own
        part.append(argument)
    return own, settings
