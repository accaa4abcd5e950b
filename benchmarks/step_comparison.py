"""The same distillation step here and in PyTorch, by turns, on identical weights and batches.

    python benchmarks/step_comparison.py --cores 0 1 --output step.md

First all compute the losses and the norm of the gradient without dropout, which have to be equal; then distil_jax and
one side of PyTorch after the other take rounds of whole steps (dropout, AdamW, clipping) by turns, each in a process of
its own, so that no more than two are in memory at once. Settings of PyTorch: "as installed", and "fairest" with MKL's
check of the processor's vendor defeated and the allocator's settings that distil_jax gives itself. A side that fails,
as for want of memory, has a row that says so, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interleaved import (
    INSTALLED,
    MODEL_SIZES,
    TORCH_SETTINGS,
    command_line,
    core,
    environment,
    exit_status,
    finish,
    footer,
    interleave,
    noise_lines,
    output_file,
    positive,
    require_cpp,
    say,
    start,
)

from distil_jax.benchmark.process import Worker
from distil_jax.benchmark.timing import Timing, summarise
from distil_jax.errors import FaultError
from distil_jax.tables import markdown

HERE = "jax"
SIDES = ("eager", "compile", "chunked", "compile-chunked")  # of PyTorch
# Relative, between two losses or norms. In bfloat16 every product is rounded to 8 bits, each side in its own order.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
SETTINGS = {
    "temperature": 2.0,
    "kl": 5.0,
    "mlm": 2.0,
    "cosine": 1.0,
    "learning_rate": 5e-4,
    "beta1": 0.9,
    "beta2": 0.98,
    "epsilon": 1e-6,
    "weight_decay": 0.0,
    "clip_norm": 5.0,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of teacher and student; the student has the teacher's layers `layers`."""

    vocabulary: int
    model: Mapping[str, int]
    layers: tuple[int, ...]


SIZES = {
    "base": Size(30_522, MODEL_SIZES["base"], (0, 2, 4, 7, 9, 11)),
    "tiny": Size(300, MODEL_SIZES["tiny"], (0,)),
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=["8x128", "4x512"], help="rows x tokens")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="of PyTorch, each beside distil_jax"
    )
    parser.add_argument("--settings", nargs="+", choices=TORCH_SETTINGS, default=list(TORCH_SETTINGS))
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=3, help="per round")
    parser.add_argument("--cores", nargs="*", type=core, default=[], help="that every side is pinned to")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    parser.add_argument("--attention", default="sdpa", help="transformers' implementation")
    parser.add_argument(
        "--set", nargs="*", type=_setting, default=[], metavar="SECTION.KEY=VALUE", help="settings of our side"
    )
    parser.add_argument(
        "--output", type=output_file, default="", help="also write the tables to this file, the numbers to FILE.json"
    )
    return parser.parse_args(argv)


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*x([2-9]|[1-9][0-9]+)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxTOKENS, such as 8x128")
    return text


def _setting(text: str) -> tuple[str, Any]:
    """A field's path and its value: a number or true and false as in JSON, anything else a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not SECTION.KEY=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every shape in every setting: {"rows": [...], "notes": [...], "machine": ...}."""
    if arguments.device == "cpu" and any(side.startswith("compile") for side in arguments.sides):
        require_cpp()
    report: dict[str, Any] = {"rows": [], "notes": [], "machine": {}}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            report["machine"] = prepare(arguments, shape, folder)
            failed: dict[str, str] = {}
            for dtype in dict.fromkeys(("float32", arguments.dtype)):
                agreed, failed = check_losses(arguments, dtype, folder)
                report["notes"].append(f"{shape}, {dtype}: losses and gradient norm equal to {agreed:.1e} (relative)")
            for setting in (TORCH_SETTINGS[name] for name in arguments.settings):
                rows, noise = time_sides(arguments, shape, setting, folder, failed)
                report["rows"] += rows
                report["notes"] += [f"{shape}, {setting}, {line}" for line in noise]
    return report


def prepare(arguments: argparse.Namespace, shape: str, folder: Path) -> dict[str, Any]:
    """Write models and batch for both sides; what the machine is."""
    size, (rows, length) = SIZES[arguments.size], map(int, shape.split("x"))
    changes = {
        **{f"model.{name}": value for name, value in size.model.items()},
        "model.max_position_embeddings": max(512, length),
        "training.batch_size": rows,
        "training.micro_batch_size": rows,
        "corpus.sequence_length": length,
    }
    with start(HERE, "jax_step.py", environment(HERE, INSTALLED, folder, arguments.device)) as worker:
        request = {"changes": changes, "vocabulary": size.vocabulary, "layers": list(size.layers)}
        return worker.ask("prepare", folder=str(folder), **request)["machine"]


def open_side(arguments: argparse.Namespace, side: str, setting: str, folder: Path) -> Worker:
    """A side's process, with its model loaded."""
    system, script = ("jax", "jax_step.py") if side == HERE else ("torch", "pytorch_step.py")
    worker = start(side, script, environment(system, setting, folder, arguments.device))
    request: dict[str, Any] = {name: str(folder / name) for name in ("teacher", "student")}
    request |= {"batch": str(folder / "batch.npz"), "settings": SETTINGS, "cores": arguments.cores}
    request |= {"dtype": arguments.dtype, "kind": side, "device": arguments.device, "attention": arguments.attention}
    request |= {"layers": list(SIZES[arguments.size].layers), "changes": dict(arguments.set)}
    worker.ask("open", **request)
    return worker


def check_losses(arguments: argparse.Namespace, dtype: str, folder: Path) -> tuple[float, dict[str, str]]:
    """Compare our losses with those of PyTorch's sides, computed in `dtype`.

    Returns:
        (the largest relative difference, what went wrong with each side that could not compute them).

    Raises:
        FaultError: a difference is above the tolerance, so there would be no point in timing, or distil_jax failed.
    """
    found: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for side in (HERE, *arguments.sides):
        try:
            with open_side(arguments, side, INSTALLED, folder) as worker:
                found[side] = worker.ask("losses", dtype=dtype)
        except FaultError as fault:
            if side == HERE:
                raise
            failed[side] = str(fault)
    worst = 0.0
    for side, terms in found.items():
        for name, value in terms.items():
            difference = abs(value - found[HERE][name]) / max(abs(value), 1e-3)
            if not difference <= TOLERANCES[dtype]:
                every = ", ".join(f"{one} {found[one][name]:.7g}" for one in found)
                raise FaultError(f"{name} of {side} differs by {difference:.1e} ({every}): not the same step")
            worst = max(worst, difference)
    return worst, failed


def time_sides(
    arguments: argparse.Namespace, shape: str, setting: str, folder: Path, failed: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rounds by turns of distil_jax with one side after the other: a row for each, and what was too noisy.

    A row's ratios are those of its own turns; the row of distil_jax has the rounds of all turns. Sides that `failed`
    before are not tried.
    """
    rows: list[dict[str, Any]] = []
    every: list[float] = []
    noise: list[str] = []
    about, tokens = {"shape": shape, "setting": setting}, math.prod(map(int, shape.split("x")))
    with open_side(arguments, HERE, setting, folder) as jax_worker:
        ready = jax_worker.ask("warm_up")["seconds"]
        for side in arguments.sides:
            try:
                if side in failed:
                    raise FaultError(failed[side])
                timings, row = _turns(arguments, side, (setting, folder), jax_worker, tokens)
            except FaultError as fault:
                rows.append({**about, "side": side, "failure": str(fault)})
                say(f"{shape}, {setting}", str(fault))
                continue
            every += timings[HERE].rounds
            rows.append({**about, "side": side, **row})
            noise += noise_lines({side: timings[side]})
            say(f"{shape}, {setting}", _shown(side, row))
        peak = jax_worker.ask("memory")["peak_bytes"]  # the worker has to live until here
    if every:
        own = summarise(every)
        row = {**_measured(own, tokens, peak, ready), "speedup": 1.0, "memory_share": 1.0}
        rows.insert(0, {**about, "side": HERE, **row})
        noise[:0] = noise_lines({HERE: own})
        say(f"{shape}, {setting}", _shown(HERE, row))
    return rows, noise


def _turns(
    arguments: argparse.Namespace, side: str, place: tuple[str, Path], jax_worker: Worker, tokens: int
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Ours and one side by turns: the timings of both, the side's row."""
    with open_side(arguments, side, *place) as worker:
        ready = worker.ask("warm_up")["seconds"]
        timings = interleave({HERE: jax_worker, side: worker}, arguments.rounds, {"steps": arguments.steps})
        peak, its = (one.ask("memory")["peak_bytes"] for one in (jax_worker, worker))
    ratios = {"speedup": timings[side].median / timings[HERE].median, "memory_share": peak / its}
    return timings, {**_measured(timings[side], tokens, its, ready), **ratios}


def _shown(side: str, row: Mapping[str, Any]) -> str:
    return f"{side} {row['tokens_per_second']:,.0f} tokens/s, {row['peak_bytes'] / 2**30:.2f} GiB"


def _measured(timing: Timing, tokens: int, peak: int, ready: float) -> dict[str, Any]:
    return {
        "seconds": timing.median,
        "spread": timing.spread,
        "rounds": list(timing.rounds),
        "tokens_per_second": tokens / timing.median,
        "peak_bytes": peak,
        "ready_seconds": ready,
    }


def report_markdown(report: Mapping[str, Any], command: str) -> str:
    """Tables, notes, machine and command."""
    header = [
        "side",
        "tokens/s",
        "± %",
        "ms/step",
        "peak GiB",
        "ready after s",
        "distil_jax is x as fast",
        "distil_jax / its memory",
    ]
    parts = []
    for shape, setting in dict.fromkeys((row["shape"], row["setting"]) for row in report["rows"]):
        lines = [_line(row) for row in report["rows"] if (row["shape"], row["setting"]) == (shape, setting)]
        parts.append(f"{shape}, PyTorch {setting}:\n\n{markdown(header, lines)}")
    return "\n\n".join([*parts, footer(report["notes"], report["machine"], command)])


def _line(row: Mapping[str, Any]) -> list[str]:
    if "failure" in row:
        return [f"{row['side']}: failed", *["-"] * 7]
    return [
        row["side"],
        f"{row['tokens_per_second']:,.0f}",
        f"{100 * row['spread']:.1f}",
        f"{1000 * row['seconds']:.4g}",
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['ready_seconds']:.0f}",
        f"{row['speedup']:.2f}",
        f"{row['memory_share']:.2f}",
    ]


def main(argv: list[str] | None = None) -> int:
    """Compare, print, write; 1 if a side failed."""
    arguments = parse(argv)
    report = run(arguments)
    failures = [f"{row['shape']}, {row['setting']}: {row['failure']}" for row in report["rows"] if "failure" in row]
    report["notes"] += failures
    finish(report_markdown(report, command_line(argv)), arguments.output, report)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(exit_status("step_comparison", main))
