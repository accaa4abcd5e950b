"""Length buckets against padding everything to the longest, in fine-tuning: examples a second.

    python benchmarks/finetune_buckets.py --source data/glue --tasks sst2 mrpc --model MODEL --output buckets.md

The same examples and model, the batches of an epoch drawn as training draws them. Without --model, random weights of
DistilBERT's size. (PyTorch's Trainer with dynamic padding stands in `trainer_comparison.py`.)
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from interleaved import command_line, exit_status, finish, footer, output_file, positive, say

from distil_jax.benchmark.run import run_benchmark
from distil_jax.config import BenchmarkArguments, Config, load_config, with_overrides
from distil_jax.tables import markdown

BUCKETS, LONGEST = "buckets", "all to the longest"
_NOT = ["does not fit", *["-"] * 4]


def configuration(arguments: argparse.Namespace, task: str) -> Config:
    """Fine-tuning of one task on one device; made-up data where --source is empty."""
    given = load_config(arguments.config or "finetune")
    changes: dict[str, Any] = {
        "task.name": task,
        "task.source": arguments.source,
        "task.max_length": arguments.max_length,
        "training.batch_size": arguments.rows,
        "training.micro_batch_size": arguments.rows,
        "parallel.devices": 1,
    }
    if arguments.model:
        changes["model.initial"] = arguments.model
    elif not arguments.config:
        changes |= {"model.family": "distilbert", "model.num_layers": 6}
    return with_overrides(given, changes)


def compare(arguments: argparse.Namespace, task: str) -> dict[str, Any]:
    """Both ways of padding for one task."""
    config = configuration(arguments, task)
    options = BenchmarkArguments(
        repeats=arguments.repeats, steps=arguments.steps, warm_start=False, vocabulary=arguments.vocabulary
    )
    found: dict[str, Any] = {"task": task}
    for name, buckets in ((BUCKETS, ()), (LONGEST, (arguments.max_length,))):
        changed = with_overrides(config, {"finetune.buckets": buckets})
        report = run_benchmark(changed, "finetune", options, say=partial(say, f"{task}, {name}"))
        found[name] = {**report["rows"][0], "all_notes": report["notes"]}
        found["machine"] = report["machine"]
    return found


def report_markdown(reports: list[dict[str, Any]], command: str) -> str:
    """A table of all tasks, machine and command."""
    rows, notes = [], []
    for report in reports:
        slow = report[LONGEST].get("rows_per_second")
        for name in (BUCKETS, LONGEST):
            row = report[name]
            rows.append([f"{report['task']}, {name}", *(_measured(row, slow) if row["fits"] else _NOT)])
            notes += row["all_notes"]
    header = ["task, padding", "real tokens", "programs", "examples/s", "± %", "times the longest"]
    return f"{markdown(header, rows)}\n\n{footer(notes, reports[0]['machine'], command)}"


def _measured(row: dict[str, Any], slow: float | None) -> list[str]:
    return [
        f"{row['tokens'] / row['positions']:.1%}",
        str(row["programs"]),
        f"{row['rows_per_second']:,.1f}",
        f"{100 * row['spread']:.1f}",
        "-" if slow is None else f"{row['rows_per_second'] / slow:.2f}",
    ]


def main(argv: list[str] | None = None) -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc"])
    parser.add_argument("--source", default="", help="folder with the published files of GLUE; empty: made-up examples")
    parser.add_argument("--model", default="", help="folder of a model; empty: random weights")
    parser.add_argument("--config", default="", help="configuration instead of the shipped finetune")
    parser.add_argument("--max-length", type=positive, default=128)
    parser.add_argument("--rows", type=positive, default=32, help="per batch")
    parser.add_argument("--vocabulary", type=positive, default=30_522)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=20, help="batches of an epoch that are timed")
    parser.add_argument("--output", type=output_file, default="")
    arguments = parser.parse_args(argv)
    reports = [compare(arguments, task) for task in arguments.tasks]
    finish(report_markdown(reports, command_line(argv)), arguments.output, reports)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("finetune_buckets", main))
