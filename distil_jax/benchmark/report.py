"""The report of a benchmark as Markdown, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.benchmark.timing import Timing, noise_note
from distil_jax.errors import UserError
from distil_jax.runs import write_atomically
from distil_jax.tables import markdown

_INPUT_RATIO = 3.0  # times as fast as the step that the input has to be
_HEADER = (
    *("variant", "rows", "ms/step", "± %", "tokens/s", "MFU %", "of measured %", "peak GiB"),
    *("compile s", "first step s", "cached s", "input x", "predicted x", "speedup x"),
)


def benchmark_markdown(report: Mapping[str, Any]) -> str:
    """The report of `run_benchmark` as Markdown: a table for each length, notes, machine and command."""
    lengths = list(dict.fromkeys(row["length"] for row in report["rows"]))
    parts = []
    for length in lengths:
        rows = [_line(row) for row in report["rows"] if row["length"] == length]
        parts.append(f"{report['stage']}, rows of {length} tokens:\n\n" + markdown(_HEADER, rows))
    parts.append("\n".join(f"- {note}" for note in (*report["notes"], *_explanations(report))))
    parts.append(machine_lines(report["machine"]) + (f"\n- command: {report['command']}" if report["command"] else ""))
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any]) -> list[str]:
    sizes = f"{row['batch_size']}" if row["batch_size"] == row["micro_batch_size"] else _accumulated(row)
    if not row["fits"]:
        return [row["variant"], sizes, "failed" if "failed" in row else "does not fit", *[""] * (len(_HEADER) - 3)]
    cached = row.get("cached_first_step_seconds")
    return [
        row["variant"],
        sizes,
        f"{1000 * row['median']:.4g}" + (" (noisy)" if row["noisy"] else ""),
        f"{100 * row['spread']:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        "-" if row["mfu_known"] is None else f"{100 * row['mfu_known']:.1f}",
        f"{100 * row['mfu_measured']:.1f}",
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['compile_seconds']:.1f}",
        f"{row['first_step_seconds']:.1f}",
        "-" if cached is None else f"{cached:.1f}",
        f"{row['input_ratio']:,.1f}",
        f"{row['predicted_speedup']:.2f}",
        f"{row['speedup']:.2f}",
    ]


def _accumulated(row: Mapping[str, Any]) -> str:
    return f"{row['batch_size']} in {row['micro_batch_size']}s"


def _explanations(report: Mapping[str, Any]) -> list[str]:
    measured = [row for row in report["rows"] if row["fits"]]
    if not measured:
        return []
    cpu = report["machine"]["platform"] == "cpu"
    peaks = {row["compute_dtype"]: row["peak_measured"] for row in measured}
    shown = ", ".join(f"{dtype} {peak / 1e12:.3g} TFLOP/s" for dtype, peak in peaks.items())
    return [
        f"median of {len(measured[0]['rounds'])} rounds of up to {max(row['steps'] for row in measured)} steps; tokens "
        "are real ones, without padding",
        f"MFU: {_operations(measured)} against the data sheet's peak, and against that of a matrix product measured "
        f"here: {shown}",
        "peak: resident memory of the process at its highest" if cpu else "peak: memory of the fullest device",
        "first step: from starting the process, without and with the programs in the compilation cache; input: the "
        "input alone against the step",
        "predicted: operations over the measured peak plus bytes over the measured bandwidth, nothing overlapping; "
        "speedup: tokens a second; both against the table's first row that fits",
    ]


def _operations(rows: Sequence[Mapping[str, Any]]) -> str:
    """MFLOP a token by the model's formula, of each variant and length where they differ."""
    found: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['variant']} at {row['length']}"
        found.setdefault(f"{row['flops_per_token'] / 1e6:.3g}", []).append(name)
    if len(found) == 1:
        return f"{next(iter(found))} MFLOP a token"
    most = max(found, key=lambda count: len(found[count]))
    rest = "; ".join(f"{', '.join(names)}: {count}" for count, names in found.items() if count != most)
    return f"{most} MFLOP a token ({rest})"


def machine_lines(machine: Mapping[str, Any]) -> str:
    """What `describe_machine` found, as lines of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    settings = " ".join(f"{name}={value}" for name, value in machine["settings"].items())
    return "\n".join(
        [
            f"- machine: {machine['devices']}; {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gib']:g} GiB; {machine['system']}",
            f"- versions: {versions}",
            f"- environment: {settings or 'nothing set'}",
        ]
    )


def notes_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes for the reader: noise, slow input, what did not fit, what is synthetic."""
    found = []
    for row in rows:
        name = f"{row['variant']}, {row['length']} tokens"
        if "failed" in row:
            found.append(f"{name}: failed: {row['failed']}")
            continue
        if not row["fits"]:
            found.append(f"{name}: does not fit into the memory with a batch of {row['batch_size']}")
            continue
        found.append(noise_note(name, Timing(row["median"], row["spread"], tuple(row["rounds"]))))
        if row["input_ratio"] < _INPUT_RATIO:
            found.append(
                f"{name}: the input is only {row['input_ratio']:.1f} times as fast as the step; {_INPUT_RATIO:g} is "
                "wanted, so that the step never waits"
            )
        found += row["notes"]
    return list(dict.fromkeys(note for note in found if note))


def benchmark_paths(output: str) -> tuple[Path, Path]:
    """FILE.md and FILE.json of --output FILE."""
    return Path(f"{output}.md"), Path(f"{output}.json")


def write_benchmark(output: str, report: Mapping[str, Any]) -> None:
    """Write FILE.md and FILE.json, which `require_writable` has checked."""
    table, numbers = benchmark_paths(output)
    try:
        write_atomically(table, benchmark_markdown(report) + "\n")
        write_atomically(numbers, json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror}); the table stands above") from None
