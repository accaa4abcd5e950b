"""How a distillation step grows: with tokens, with the batch by accumulation, with the vocabulary, with devices.

    python benchmarks/scaling.py --size small --output scaling.md

Time against tokens is measured and fitted with a line; memory is what the compiler plans, without the parameters, their
gradients and moments; traffic between devices is read from the program compiled for eight virtual ones. All on the CPU,
with the settings that `distil-jax` gives itself there.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from interleaved import INSIDE, command_line, exit_status, finish, footer, output_file, positive, run_inside

DEVICES = 8
SIZES: dict[str, dict[str, Any]] = {
    "base": {"model": {}, "layers": (0, 2, 4, 7, 9, 11), "length": 128, "rows": (1, 2, 4, 8), "vocabulary": 30_522},
    "small": {
        "model": {"num_layers": 4, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024},
        "layers": (0, 2),
        "length": 128,
        "rows": (2, 4, 8, 16),
        "vocabulary": 30_522,
    },
    "tiny": {
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32},
        "layers": (0,),
        "length": 16,
        "rows": (2, 4, 8),
        "vocabulary": 200,
    },
}
ACCUMULATIONS = (1, 2, 4, 8)
VOCABULARIES = (1, 2, 4, 8)  # times a quarter of the size's own


def step_of(size: str, rows: int, micro: int, vocabulary: int, devices: int = 1) -> tuple[Any, Any, int]:
    """(`Step`, its batch, bytes of the gradients of the parameters that are trained): random weights, made-up rows."""
    import jax

    from distil_jax.benchmark.inputs import make_inputs
    from distil_jax.benchmark.step import Step
    from distil_jax.config import Config, with_overrides

    sizes = SIZES[size]
    changes = {f"model.{name}": value for name, value in sizes["model"].items()}
    changes |= {"student.layers": sizes["layers"], "corpus.sequence_length": sizes["length"]}
    changes |= {"training.batch_size": rows, "training.micro_batch_size": micro}
    changes |= {"corpus.pack": False, "parallel.devices": devices}
    spec = make_inputs(with_overrides(Config(), changes), "distill", vocabulary).spec
    step = Step(spec)
    (batch,) = step.batches(1)
    trained = sum(leaf.size for name in spec.step.trainable for leaf in jax.tree.leaves(spec.params[name]))
    return step, batch, 4 * trained


def time_against_tokens(size: str, rounds: int) -> dict[str, Any]:
    """Seconds a step for several numbers of rows, and the line through them with its coefficient of determination."""
    import time

    import numpy as np

    from distil_jax.benchmark.timing import summarise

    sizes, points = SIZES[size], []
    for rows in sizes["rows"]:
        step, batch, _ = step_of(size, rows, rows, sizes["vocabulary"])
        seconds = []
        for number in range(rounds + 1):
            start = time.perf_counter()
            step.run([batch])
            if number:  # the first compiles, and touches its memory for the first time
                seconds.append(time.perf_counter() - start)
        timing = summarise(seconds)
        points.append({"tokens": rows * sizes["length"], "seconds": timing.median, "spread": timing.spread})
    tokens, seconds = (np.array([point[name] for point in points]) for name in ("tokens", "seconds"))
    return {"points": points, **fit_line(tokens, seconds)}


def fit_line(x: Any, y: Any) -> dict[str, float]:
    """Least squares: {"per_token", "fixed", "r2"}."""
    import numpy as np

    slope, fixed = np.polyfit(x, y, 1)
    residual = float(((y - (slope * x + fixed)) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    return {"per_token": float(slope), "fixed": float(fixed), "r2": 1 - residual / total if total else 1.0}


def planned(size: str, rows: int, micro: int, vocabulary: int) -> dict[str, int]:
    """Bytes that the compiler plans besides the arguments, and those of them that are gradients."""
    from distil_jax.training.compiled_step import memory_plan

    step, batch, gradients = step_of(size, rows, micro, vocabulary)
    return {"temporary": memory_plan(step.program(batch))["temporary"], "gradients": gradients}


def memory_against_batch(size: str) -> list[dict[str, Any]]:
    """Planned memory for larger and larger batches of micro-batches of the same size."""
    sizes = SIZES[size]
    micro = sizes["rows"][0]
    return [
        {"rows": micro * times, "micro": micro, **planned(size, micro * times, micro, sizes["vocabulary"])}
        for times in ACCUMULATIONS
    ]


def memory_against_vocabulary(size: str) -> list[dict[str, Any]]:
    """Planned memory for larger and larger vocabularies."""
    sizes, found = SIZES[size], []
    rows = sizes["rows"][-1]
    for times in VOCABULARIES:
        vocabulary = times * sizes["vocabulary"] // 4
        logits = 4 * rows * sizes["length"] * vocabulary
        found.append({"vocabulary": vocabulary, "logits": logits, **planned(size, rows, rows, vocabulary)})
    return found


def traffic(size: str) -> dict[str, Any]:
    """Collectives of a step with four micro-batches on each of eight devices."""
    from collectives import find_collectives

    step, batch, gradients = step_of(size, 4 * DEVICES, 1, SIZES[size]["vocabulary"], DEVICES)
    found = [vars(one) for one in find_collectives(step.program(batch).as_text())]
    return {"collectives": found, "gradients": gradients}


def report_markdown(report: dict[str, Any]) -> str:
    """Everything as Markdown tables."""
    from distil_jax.tables import markdown

    line, parts = report["tokens"], []
    points = [[f"{p['tokens']:,}", f"{1000 * p['seconds']:.4g}", f"{100 * p['spread']:.1f}"] for p in line["points"]]
    parts.append("Time against tokens:\n\n" + markdown(["tokens", "ms/step", "± %"], points))
    parts.append(
        f"line: {1e6 * line['per_token']:.3g} µs a token + {1000 * line['fixed']:.3g} ms a step, R² = {line['r2']:.4f}"
    )

    def mebibytes(row: dict[str, Any]) -> list[str]:
        rest = row["temporary"] - row["gradients"]
        return [f"{size / 2**20:,.1f}" for size in (row["temporary"], row["gradients"], rest)]

    columns = ["temporary MiB", "of it gradients", "the rest"]
    batch = [[f"{row['rows']} in {row['micro']}s", *mebibytes(row)] for row in report["batch"]]
    parts.append("Memory against the batch, by accumulation:\n\n" + markdown(["rows", *columns], batch))
    vocabulary = [
        [f"{row['vocabulary']:,}", *mebibytes(row), f"{row['logits'] / 2**20:,.1f}"] for row in report["vocabulary"]
    ]
    header = ["tokens in the vocabulary", *columns, "one array of logits would be"]
    parts.append("Memory against the vocabulary:\n\n" + markdown(header, vocabulary))
    sent = [
        [one["kind"], f"{one['size']:,}", "yes" if one["in_loop"] else "no"] for one in report["traffic"]["collectives"]
    ]
    parts.append(f"Traffic of a step on {DEVICES} devices:\n\n" + markdown(["collective", "bytes", "in a loop"], sent))
    parts.append(f"gradients: {report['traffic']['gradients']:,} bytes")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--output", type=output_file, default="")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.inside:
        return run_inside(__file__, argv, JAX_NUM_CPU_DEVICES=str(DEVICES))
    from distil_jax.benchmark.machine import describe_machine

    size = arguments.size
    report = {
        "tokens": time_against_tokens(size, arguments.rounds),
        "batch": memory_against_batch(size),
        "vocabulary": memory_against_vocabulary(size),
        "traffic": traffic(size),
    }
    about = footer((), describe_machine(), command_line(argv))
    finish(f"{report_markdown(report)}\n\n{about}", arguments.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("scaling", main))
