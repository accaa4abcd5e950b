"""`distil-jax benchmark`: a configuration with a few arguments of its own."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from distil_jax.cli.command import parse
from distil_jax.config import parse_arguments
from distil_jax.config.arguments import CONFIG_FLAG
from distil_jax.evidence.benchmark.plan import BenchmarkArguments, stage_of


def run_benchmark(arguments: list[str]) -> None:
    """`distil-jax benchmark`."""
    own, settings = split_arguments(arguments)
    given: BenchmarkArguments = parse(BenchmarkArguments, own, "benchmark")
    config = parse_arguments(settings, prog="distil-jax benchmark")
    stage = stage_of(config, given.stage, any(one.partition("=")[0] == CONFIG_FLAG for one in settings))
    from distil_jax.evidence.benchmark.report import benchmark_markdown, write_benchmark
    from distil_jax.evidence.benchmark.run import run_benchmark

    def say(line: str) -> None:
        print(f"measuring: {line}", file=sys.stderr, flush=True)

    command = f"distil-jax benchmark {shlex.join(arguments)}"
    report = run_benchmark(config, stage, given, command=command, say=say)
    print(benchmark_markdown(report))
    if given.output:
        print("\n".join(str(path) for path in write_benchmark(Path(given.output), report)), file=sys.stderr)


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
