"""A plan as text: what fits, memory, work and time by part, transfers, speed, cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distil_jax.tables import markdown

_GIB = 1 << 30


def plan_markdown(plan: Mapping[str, Any]) -> str:
    """The plan of `make_plan`, for people."""
    parts = [_verdict(plan), _memory(plan["memory"], plan["memory_limit"])]
    if "step" in plan:
        parts += [_work(plan), "\n".join(_facts(plan))]
    parts.append("\n".join(f"- {note}" for note in _notes(plan)))
    return "\n\n".join(parts)


def _verdict(plan: Mapping[str, Any]) -> str:
    total, limit = plan["memory"]["total"] / _GIB, plan["memory_limit"] / _GIB
    devices = f"{plan['devices']} device{'s' if plan['devices'] > 1 else ''}"
    lines = [
        f"{plan['stage']} on {plan['on']} ({devices}): batch {plan['batch_size']}, micro-batch "
        f"{plan['micro_batch_size']}: {'fits' if plan['fits'] else 'does not fit'}, {total:.2f} of {limit:.2f} GiB"
    ]
    if plan.get("advised_micro_batch"):
        lines.append(
            f"about {plan['rows_that_fit']:,} rows fit; advised: "
            f"--training.micro-batch-size {plan['advised_micro_batch']}"
        )
    elif "advised_micro_batch" in plan:
        lines.append("no micro-batch that was compiled fits; try --training.remat layer, or larger devices")
    return "\n".join(lines)


def _memory(memory: Mapping[str, int], limit: int) -> str:
    rows = [[name, f"{size / _GIB:.3f}", f"{size / limit:.1%}"] for name, size in memory.items()]
    return markdown(["memory of a device", "GiB", "of limit"], rows)


def _work(plan: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{sums['flops'] / 1e12:.3f}",
            f"{sums['bytes'] / 1e9:.2f}",
            f"{sums['matrix_seconds'] * 1e3:.2f}",
            f"{sums['least_seconds'] * 1e3:.2f}",
        ]
        for name, sums in {**plan["parts"], "step": plan["step"]}.items()
    ]
    return markdown(["a step of a device", "TFLOP", "GB moved", "matrix ms", "least ms"], rows)


def _facts(plan: Mapping[str, Any]) -> list[str]:
    step, (slow, fast) = plan["step"], plan["tokens_per_second"]
    share = step["matrix_seconds"] / step["least_seconds"] if step["least_seconds"] else 0.0
    lines = [
        f"matrix work is {share:.0%} of the least time; {plan['flops_per_token'] / 1e9:.3f} GFLOP a token by formula",
        f"expected: {slow:,.0f} to {fast:,.0f} tokens/s over all devices",
    ]
    transfers: dict[tuple[str, int], int] = {}
    for one in plan["collectives"]:
        key = (one["operation"], one["bytes"])
        transfers[key] = transfers.get(key, 0) + one["times"]
    for (operation, size), times in transfers.items():
        lines.append(f"{times} x {operation} of {size:,} bytes")
    if plan["collectives"]:
        lines.append(f"transfers take at least {step['transfer_seconds'] * 1e3:.2f} ms a step, not overlapped")
    if "hours" in plan:
        low, high = plan["hours"]
        cost = "" if "cost" not in plan else f", cost {plan['cost'][0]:,.2f} to {plan['cost'][1]:,.2f}"
        lines.append(f"{plan['steps']:,} steps: {low:,.2f} to {high:,.2f} hours{cost}")
    else:
        lines.append("hours: set training.steps, which the corpus and training.epochs decide otherwise")
    return lines


def _notes(plan: Mapping[str, Any]) -> list[str]:
    said = [*plan["notes"], f"compiling took {plan['compile_seconds']:.0f} s"]
    if plan["compiled_only"]:
        said.append("compiled, not run: times are what the data sheet allows, speeds a range of what steps reach of it")
    return said
