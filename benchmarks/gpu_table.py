"""The table of an accelerator in one command: every variant of the step, and PyTorch's compiled step beside ours.

    python benchmarks/gpu_table.py --output benchmarks/gpu

For rows of 128 and 512 tokens: `distil-jax benchmark --fill --variants all` at base size in bfloat16, each variant with
the largest batch that fits; then `step_comparison.py` on the accelerator, with a quarter of the configured variant's
batch, as all sides of the comparison are in memory at once. --tiny does all of it with a tiny model, on any machine, to
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

from taking_turns import HERE, MODEL_SIZES, command_line, finish, tell

from distil_jax.config import Config, with_overrides
from distil_jax.errors import FaultError, UserError
from distil_jax.evidence.benchmark.plan import ALL, BenchmarkArguments
from distil_jax.evidence.benchmark.report import benchmark_markdown
from distil_jax.evidence.benchmark.run import run_benchmark

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


def variants_table(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """The report of `run_benchmark` over all variants and lengths, the batch filling the memory."""
    config = with_overrides(Config(), TINY if arguments.tiny else BASE)
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
    return run_benchmark(config, "distill", options, command=command, say=partial(tell, "measuring"))


def comparison(arguments: argparse.Namespace, report: dict[str, Any], output: Path) -> str:
    """`step_comparison.py` with a part of the batches that the first variant was measured with."""
    first = report["rows"][0]["variant"]
    batches = {row["length"]: row["batch_size"] for row in report["rows"] if row["variant"] == first and row["fits"]}
    shapes = [f"{max(1, rows // arguments.share)}x{length}" for length, rows in batches.items()]
    command = [sys.executable, str(HERE / "step_comparison.py"), "--shapes", *shapes, "--settings", "installed"]
    command += ["--output", str(output), "--sides", "jax", "eager"]
    if arguments.tiny:
        command += ["--size", "tiny", "--rounds", "2", "--steps", "1"]
    else:
        command += ["compile", "chunked", "compile-chunked", "--rounds", "5", "--steps", "10"]
        command += ["--device", arguments.torch_device, "--dtype", "bfloat16"]
    # Two systems share the device: neither may take all of its memory at its start.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        return "The comparison with PyTorch failed; what it said stands above."
    return output.read_text(encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write OUTPUT.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--variants", nargs="+", default=[ALL])
    parser.add_argument("--memory", type=float, default=0.0, help="gibibytes to fill; 0: what the device has")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch-device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--share", type=int, default=4, help="the comparison takes this part of the largest batch")
    parser.add_argument("--no-torch", action="store_true", help="leave the comparison out")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything works")
    arguments = parser.parse_args(argv)
    try:
        report = variants_table(arguments, command_line(argv))
    except (UserError, FaultError) as error:
        print(f"gpu_table: {error}", file=sys.stderr)
        return 1
    parts = [benchmark_markdown(report)]
    if not arguments.no_torch:
        parts.append(comparison(arguments, report, Path(f"{arguments.output}_comparison.md")))
    finish("\n\n".join(parts), f"{arguments.output}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
