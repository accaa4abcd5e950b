"""The table of an accelerator in one command: every variant of the step, and PyTorch's compiled step beside this one.

    python benchmarks/gpu_table.py --output benchmarks/gpu

For rows of 128 and 512 tokens: `distil-jax benchmark --fill --variants all` at base size in bfloat16, each variant with
the largest batch that fits; then `step_comparison.py` on the accelerator, with a third of the configured variant's
batch, as two sides of the comparison are in memory at once. --tiny does all of it with a tiny model, on any machine, to
see that it works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from interleaved import HERE, MODEL_SIZES, command_line, exit_status, finish, positive, say

from distil_jax.benchmark.report import benchmark_markdown
from distil_jax.benchmark.run import run_benchmark
from distil_jax.benchmark.variants import ALL
from distil_jax.config import BenchmarkArguments, Config, with_overrides
from distil_jax.errors import FaultError
from distil_jax.runs import require_writable

BASE: dict[str, Any] = {
    "training.compute_dtype": "bfloat16",
    "teacher.dtype": "bfloat16",
    "corpus.pack": True,
    "student.layers": (0, 2, 4, 7, 9, 11),
    "parallel.devices": 1,
}
TINY: dict[str, Any] = {
    **{f"model.{name}": size for name, size in MODEL_SIZES["tiny"].items()},
    "parallel.devices": 1,
}


PLATFORMS = {"cuda": "gpu", "cpu": "cpu"}


def variants_table(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """The report of `run_benchmark` over all variants and lengths, the batch filling the memory."""
    # On a machine with a GPU that JAX was not installed for, it would take the CPU without a word.
    platform = {"run.platform": PLATFORMS[arguments.device]}
    config = with_overrides(Config(), {**(TINY if arguments.tiny else BASE), **platform})
    options = BenchmarkArguments(
        variants=tuple(arguments.variants),
        lengths=tuple(arguments.lengths),
        fill=True,
        memory=arguments.memory,
        repeats=arguments.repeats,
        steps=1 if arguments.tiny else 0,
        warm_start=not arguments.tiny,
        vocabulary=300 if arguments.tiny else 30_522,
    )
    return run_benchmark(config, "distill", options, command=command, say=partial(say, "measuring"))


def comparison(arguments: argparse.Namespace, report: dict[str, Any], output: Path) -> tuple[str, int]:
    """The tables of `step_comparison.py`, with a part of the batches that the first variant was measured with.

    Raises:
        FaultError: it failed without a table, or no batch of the first variant fits.
    """
    first = report["rows"][0]["variant"]
    batches = {row["length"]: row["batch_size"] for row in report["rows"] if row["variant"] == first and row["fits"]}
    if not batches:
        raise FaultError(f"no batch of the variant {first!r} fits into memory, so there is nothing to compare")
    shapes = [f"{max(1, rows // arguments.share)}x{length}" for length, rows in batches.items()]
    command = [sys.executable, str(HERE / "step_comparison.py"), "--shapes", *shapes, "--settings", "installed"]
    command += ["--output", str(output), "--device", arguments.device]
    if arguments.tiny:
        command += ["--sides", "eager", "--size", "tiny", "--rounds", "2", "--steps", "1"]
    else:
        command += ["--rounds", "5", "--steps", "10", "--dtype", "bfloat16"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    for path in (output, Path(f"{output}.json")):
        path.unlink(missing_ok=True)
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode and not output.is_file():
        raise FaultError("the comparison with PyTorch failed; what it said stands above")
    return output.read_text(encoding="utf-8"), done.returncode


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write OUTPUT.md and OUTPUT.md.json; 1 if a variant, the comparison or a side of it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="files to write, without .md")
    parser.add_argument("--lengths", nargs="+", type=positive, default=[128, 512])
    parser.add_argument("--variants", nargs="+", default=[ALL])
    parser.add_argument("--memory", type=float, help="gibibytes to fill, by default what the device has")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--device", choices=tuple(PLATFORMS), help="that is measured, by default cuda")
    parser.add_argument(
        "--share", type=positive, default=3, help="the comparison takes one in so many rows of the batch"
    )
    parser.add_argument("--no-torch", action="store_true", help="leave the comparison out")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to see that everything works")
    arguments = parser.parse_args(argv)
    arguments.memory = arguments.memory or (0.25 if arguments.tiny else 0.0)
    arguments.device = arguments.device or ("cpu" if arguments.tiny else "cuda")
    require_writable("--output", Path(f"{arguments.output}.md"), Path(f"{arguments.output}.md.json"))
    report = variants_table(arguments, command_line(argv))
    status = 1 if any("failed" in row for row in report["rows"]) else 0
    parts = [benchmark_markdown(report)]
    if not arguments.no_torch:
        try:
            text, its_status = comparison(arguments, report, Path(f"{arguments.output}_comparison.md"))
            parts, status = [*parts, text], max(status, its_status)
        except FaultError as fault:  # what was measured before is kept
            parts.append(f"Not compared with PyTorch: {fault}.")
            status = 1
    finish("\n\n".join(parts), f"{arguments.output}.md", report)
    return status


if __name__ == "__main__":
    sys.exit(exit_status("gpu_table", main))
