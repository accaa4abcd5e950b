"""What was measured as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distil_jax.evidence.report import markdown

_HEADER = (
    *("variant", "rows", "ms/step", "± %", "tokens/s", "MFU %", "of measured %", "peak GiB"),
    *("compile s", "first step s", "cached s", "input x", "predicted x", "brought x"),
)


def benchmark_markdown(report: Mapping[str, Any]) -> str:
    """The report of `run_benchmark` as Markdown: a table for each length, what to know, machine and command."""
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
        return [row["variant"], sizes, "does not fit", *[""] * (len(_HEADER) - 3)]
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
        f"{row['predicted']:.2f}",
        f"{row['brought']:.2f}",
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
        f"MFU: {measured[0]['flops_per_token'] / 1e6:.3g} MFLOP a token against the data sheet's peak, and against "
        f"that of a matrix product measured here: {shown}",
        "peak: resident memory of the process at its highest" if cpu else "peak: memory of the fullest device",
        "first step: from starting the process, without and with the programs in the compilation cache; input: the "
        "input alone against the step",
        "predicted: operations over the measured peak plus bytes over the measured bandwidth, nothing overlapping; "
        "brought: tokens a second; both against the table's first row",
    ]


def machine_lines(machine: Mapping[str, Any]) -> str:
    """What `benchmark_machine.describe_machine` found, as lines of Markdown."""
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
