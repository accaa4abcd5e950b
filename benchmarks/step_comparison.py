"""The same distillation step here and in PyTorch, by turns, on identical weights and batches.

    python benchmarks/step_comparison.py --cores 0 1 --output step.md

First both compute the losses and the norm of the gradient without dropout, which have to be equal; then each side takes
rounds of whole steps (dropout, AdamW, clipping) in a process of its own, while the others wait. Settings of PyTorch:
"as installed", and "fairest" with MKL's check of the processor's vendor defeated and the allocator's settings that
distil_jax gives itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taking_turns import (
    INSTALLED,
    MODEL_SIZES,
    TORCH_SETTINGS,
    command_line,
    environment,
    finish,
    footer,
    noise_lines,
    require_cpp,
    start,
    take_turns,
    tell,
)

from distil_jax.errors import FaultError
from distil_jax.evidence.benchmark.process import Worker
from distil_jax.evidence.report import markdown

OURS = "jax"
SIDES = (OURS, "eager", "compile", "chunked", "compile-chunked")
TOLERANCE = 1e-4  # relative, between two losses or norms
SETTINGS = {
    "temperature": 2.0,
    "alpha_ce": 5.0,
    "alpha_mlm": 2.0,
    "alpha_cos": 1.0,
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
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"], help="rows x tokens")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--settings", nargs="+", choices=TORCH_SETTINGS, default=list(TORCH_SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="per round")
    parser.add_argument("--cores", nargs="*", type=int, default=[], help="that every side is pinned to")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="PyTorch's; JAX takes what it finds")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", default="sdpa", help="transformers' implementation")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="settings of our side")
    parser.add_argument("--output", default="", help="also write the tables to this file, the numbers to FILE.json")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every shape in every setting: {"rows": [...], "notes": [...], "machine": ...}."""
    if arguments.device == "cpu" and any(side.startswith("compile") for side in arguments.sides):
        require_cpp()
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    machine: dict[str, Any] = {}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            machine = prepare(arguments, shape, folder)
            agreed = check_losses(arguments, folder)
            notes.append(f"{shape}: losses and gradient norm equal to {agreed:.1e} (relative)")
            for setting in (TORCH_SETTINGS[name] for name in arguments.settings):
                found, noise = time_sides(arguments, shape, setting, folder)
                rows += found
                for row in found:  # a long comparison that is ended half-way has said something
                    speed = f"{row['tokens_per_second']:,.0f} tokens/s, {row['peak_bytes'] / 2**30:.2f} GiB"
                    tell(f"{shape}, {setting}", f"{row['side']} {speed}")
                notes += [f"{shape}, {setting}, {line}" for line in noise]
    return {"rows": rows, "notes": notes, "machine": machine}


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
    with start(OURS, "jax_step.py", environment(OURS, INSTALLED, folder)) as worker:
        request = {"changes": changes, "vocabulary": size.vocabulary, "layers": list(size.layers)}
        return worker.ask("prepare", folder=str(folder), **request)["machine"]


def open_side(arguments: argparse.Namespace, side: str, setting: str, folder: Path) -> Worker:
    """A side's process, told what to load."""
    system = OURS if side == OURS else "torch"
    worker = start(side, "jax_step.py" if side == OURS else "pytorch_step.py", environment(system, setting, folder))
    request: dict[str, Any] = {name: str(folder / name) for name in ("teacher", "student")}
    request |= {"batch": str(folder / "batch.npz"), "settings": SETTINGS, "cores": arguments.cores}
    request |= {"dtype": arguments.dtype, "kind": side, "device": arguments.device, "attention": arguments.attention}
    changes = dict(change.split("=", 1) for change in arguments.set)
    request |= {"layers": list(SIZES[arguments.size].layers), "changes": {k: _value(v) for k, v in changes.items()}}
    worker.ask("open", **request)
    return worker


def _value(text: str) -> Any:
    """A number or true and false as in JSON, anything else as a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_losses(arguments: argparse.Namespace, folder: Path) -> float:
    """The largest relative difference between our losses and PyTorch's.

    Raises:
        FaultError: it is above `TOLERANCE`, so there would be no point in timing.
    """
    kinds = {side if side == OURS else side.removeprefix("compile").lstrip("-") or "eager" for side in arguments.sides}
    found = {}
    for side in sorted({OURS, "eager", *kinds}):
        with open_side(arguments, side, INSTALLED, folder) as worker:
            found[side] = worker.ask("losses")
    worst = 0.0
    for side, terms in found.items():
        for name, value in terms.items():
            difference = abs(value - found[OURS][name]) / max(abs(value), 1e-3)
            if not difference <= TOLERANCE:
                every = ", ".join(f"{one} {found[one][name]:.7g}" for one in found)
                raise FaultError(f"{name} of {side} differs by {difference:.1e} ({every}): not the same step")
            worst = max(worst, difference)
    return worst


def time_sides(
    arguments: argparse.Namespace, shape: str, setting: str, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rounds by turns of all sides in one setting: a row a side, and what was too noisy."""
    workers: dict[str, Worker] = {}
    warm: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for side in arguments.sides:
            workers[side] = stack.enter_context(open_side(arguments, side, setting, folder))
            warm[side] = workers[side].ask("warm_up")["seconds"]
            tell(f"{shape}, {setting}", f"{side} is ready after {warm[side]:.0f} s")
        timings = take_turns(workers, arguments.rounds, {"steps": arguments.steps})
        peaks = {side: worker.ask("memory")["peak_bytes"] for side, worker in workers.items()}
    tokens = math.prod(map(int, shape.split("x")))
    rows = []
    for side, timing in timings.items():
        rows.append(
            {
                "shape": shape,
                "setting": setting,
                "side": side,
                "seconds": timing.median,
                "spread": timing.spread,
                "rounds": list(timing.rounds),
                "tokens_per_second": tokens / timing.median,
                "peak_bytes": peaks[side],
                "ready_seconds": warm[side],
                "speedup": timing.median / timings[OURS].median if OURS in timings else None,
                "memory_share": peaks[OURS] / peaks[side] if OURS in peaks else None,
            }
        )
    return rows, noise_lines(timings)


def report_markdown(report: Mapping[str, Any], command: str) -> str:
    """Tables, notes, machine and command."""
    header = [
        "side",
        "tokens/s",
        "± %",
        "ms/step",
        "peak GiB",
        "ready after s",
        "ours is x as fast",
        "ours / its memory",
    ]
    parts = []
    for shape, setting in dict.fromkeys((row["shape"], row["setting"]) for row in report["rows"]):
        lines = [
            [
                row["side"],
                f"{row['tokens_per_second']:,.0f}",
                f"{100 * row['spread']:.1f}",
                f"{1000 * row['seconds']:.4g}",
                f"{row['peak_bytes'] / 2**30:.2f}",
                f"{row['ready_seconds']:.0f}",
                "-" if row["speedup"] is None else f"{row['speedup']:.2f}",
                "-" if row["memory_share"] is None else f"{row['memory_share']:.2f}",
            ]
            for row in report["rows"]
            if (row["shape"], row["setting"]) == (shape, setting)
        ]
        parts.append(f"{shape}, PyTorch {setting}:\n\n{markdown(header, lines)}")
    return "\n\n".join([*parts, footer(report["notes"], report["machine"], command)])


def main(argv: list[str] | None = None) -> int:
    """Compare, print, write."""
    arguments = parse(argv)
    try:
        report = run(arguments)
    except FaultError as fault:
        print(f"step_comparison: {fault}", file=sys.stderr)
        return 1
    finish(report_markdown(report, command_line(argv)), arguments.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
