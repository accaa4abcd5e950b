"""The published distillation at base size on GPUs and TPUs that need not be here: one table from `distil-jax plan`.

    python benchmarks/device_table.py --on h100 h200 a100 v5e v6e --lengths 128 512

Compiles `configs/distilbert_base_uncased.toml` for one device of each kind, with the rows at a time that the program
chooses, and looks for the most that fit. GPUs have a second row, with cuDNN's own dropout. Nothing is run. A device
whose compiler is missing is named and left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from distil_jax.benchmark.accelerators import ACCELERATORS

COLUMNS = (
    "device, tokens a row",
    "rows at a time",
    "GiB, of",
    "largest that fits",
    "least ms a pass",
    "matrix work",
    "tokens/s",
    "compiled in s",
)


def planned(name: str, length: int, *more: str) -> dict[str, Any] | None:
    """The plan as JSON; None where it cannot be made, whose reason is printed."""
    command = [sys.executable, "-m", "distil_jax.cli", "plan", "--config", "distilbert_base_uncased", "--on", name]
    given = ["--corpus.sequence-length", str(length), "--json", *more]
    done = subprocess.run([*command, *given], check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def cells(name: str, length: int, plan: dict[str, Any]) -> list[str]:
    """A row of the table."""
    gib, passes = 2**30, plan["batch_size"] // plan["micro_batch_size"]
    work = ["not known"] * 3
    if step := plan.get("step"):
        slow, fast = plan["tokens_per_second"]
        work = [
            f"{1000 * step['least_seconds'] / passes:.1f}",
            f"{step['matrix_seconds'] / step['least_seconds']:.0%}",
            f"{slow:,.0f} - {fast:,.0f}",
        ]
    return [
        f"{name}, {length}",
        str(plan["micro_batch_size"]),
        f"{plan['memory']['total'] / gib:.1f}, {plan['memory_limit'] / gib:.1f}",
        str(plan["rows_that_fit"]),
        *work,
        f"{plan['compile_seconds']:.0f}",
    ]


def main() -> int:
    """Print the table; 1 where a device's compiler is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", required=True, choices=sorted(ACCELERATORS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    given = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}", flush=True)
    missing = 0
    for name in given.on:
        forms = {"": (), ", cuDNN's dropout": ("--training.no-exact-dropout",)}
        for text, more in list(forms.items())[: 2 if ACCELERATORS[name].gpu else 1]:
            for length in given.lengths:
                plan = planned(name, length, *more)
                missing += plan is None
                if plan is not None:
                    print(f"| {' | '.join(cells(name + text, length, plan))} |", flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
