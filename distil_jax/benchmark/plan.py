"""What a run needs on a device: memory by part, the micro-batch that fits, least time, tokens a second, hours, cost.

Everything follows from programs compiled for the device, none of which is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from distil_jax.benchmark.accelerators import Target, padding_notes
from distil_jax.benchmark.compile import CompiledPlan, compile_step
from distil_jax.benchmark.inputs import STEPS, make_inputs
from distil_jax.benchmark.program import PARTS, Collective, Kernel
from distil_jax.benchmark.run import largest_batch
from distil_jax.benchmark.variants import Stage, with_rows
from distil_jax.config import Config
from distil_jax.models import EncoderConfig
from distil_jax.target import traced_for
from distil_jax.training.loop import RunSpec
from distil_jax.training.step import micro_batch_rows

# Speeds of real steps as shares of that of the least time: kernels reach less than their roofline, and wait for others.
_SLOW, _FAST = 0.55, 0.9
_ADVISED_SHARE = 0.9  # of the memory: the rest is for evaluation, other programs, and what the allocator cannot join
_TRIES = 3  # micro-batches compiled to find the one to take


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What a plan is asked for.

    Attributes:
        config: of the run; models and corpus need not be here.
        stage: whose step.
        vocabulary: tokens of models and corpora whose size is not known.
        price: of all devices together, an hour; 0: not given.
        search: whether to look for the largest micro-batch.
    """

    config: Config
    stage: Stage
    vocabulary: int
    price: float = 0.0
    search: bool = True


def make_plan(request: PlanRequest, target: Target, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The plan of a run on the target's devices, as JSON has it.

    Raises:
        UserError: the devices cannot share the batch, or the configuration is wrong.
    """
    config = request.config
    say(f"compiling for {target.name}")
    compiled, spec, notes = _compiled(request, config, target)
    rows = _rows(spec.config, target)
    found = {
        "on": target.name,
        "devices": _devices(config, target),
        "stage": request.stage,
        "batch_size": config.training.batch_size,
        "micro_batch_size": rows,
        "memory_limit": target.memory,
        "fits": _fits(compiled, target),
        "memory": _memory(compiled),
        "flops_per_token": spec.flops_per_token,
        "remat": spec.config.training.remat,
        "compile_seconds": compiled.compile_seconds,
        "compiled_only": target.name != "this",
        "notes": notes,
    }
    if compiled.program is not None:
        found |= _work(compiled, target) | _duration(compiled, spec, target, request.price)
    elif not compiled.refused:
        notes.append("work, transfers and times are not known: JAX cannot read what this compiler made")
    if request.search:
        found |= _search(request, compiled, rows, target, say)
    return found


def _rows(config: Config, target: Target) -> int:
    """Rows of a device and pass, by a run's settled configuration."""
    share = max(config.training.batch_size // _devices(config, target), 1)
    return micro_batch_rows(share, config.training.micro_batch_size)


def _compiled(request: PlanRequest, config: Config, target: Target) -> tuple[CompiledPlan, RunSpec, list[str]]:
    with traced_for(target.device):
        devices = _devices(config, target)
        inputs = make_inputs(config, request.stage, request.vocabulary, shapes_only=True, devices=devices)
    padding = padding_notes(target.device, _last_sides(inputs.student))
    return compile_step(inputs.spec, target), inputs.spec, [*inputs.notes, *padding]


def _last_sides(student: EncoderConfig) -> dict[str, int]:
    """The sizes of the model that a step's arrays end in."""
    return {
        "a vocabulary": student.vocab_size,
        "a hidden size": student.hidden_size,
        "an inner size": student.intermediate_size,
        "a head": student.head_width,
    }


def _fits(compiled: CompiledPlan, target: Target) -> bool:
    return not compiled.refused and compiled.memory.total <= target.memory


def _memory(compiled: CompiledPlan) -> dict[str, int]:
    return {**dataclasses.asdict(compiled.memory), "total": compiled.memory.total}


def _work(compiled: CompiledPlan, target: Target) -> dict[str, Any]:
    """Matrix work and least time of a device, in all and by part, and its transfers."""
    assert compiled.program is not None
    kernels = compiled.program.kernels()
    parts = {name: _sums([kernel for kernel in kernels if kernel.part == name], target) for name in (*PARTS, "other")}
    transfers = compiled.program.collectives()
    return {
        "step": _sums(kernels, target) | {"transfer_seconds": _transfer_seconds(transfers, target)},
        "parts": {name: sums for name, sums in parts.items() if sums["bytes"] or sums["flops"]},
        "collectives": [one._asdict() for one in transfers],
        "kernels": sum(kernel.times for kernel in kernels),
    }


def _sums(kernels: list[Kernel], target: Target) -> dict[str, float]:
    flops = sum(kernel.flops * kernel.times for kernel in kernels)
    return {
        "flops": flops,
        "bytes": sum(kernel.bytes * kernel.times for kernel in kernels),
        "matrix_seconds": flops / target.flops,
        "least_seconds": sum(kernel.seconds(target.flops, target.bandwidth) for kernel in kernels),
    }


def _transfer_seconds(transfers: list[Collective], target: Target) -> float:
    """Least time of the collectives, each as a ring: every byte is sent twice in a sum, else once."""
    if not target.link:
        return 0.0
    share = (target.count - 1) / target.count
    sent = sum((2 if one.operation == "all-reduce" else 1) * one.bytes * one.times for one in transfers)
    return share * sent / target.link


def _duration(compiled: CompiledPlan, spec: RunSpec, target: Target, price: float) -> dict[str, Any]:
    """Tokens a second, and hours and cost where the steps are known."""
    work = _work(compiled, target)["step"]
    least = work["least_seconds"] + work["transfer_seconds"]
    found: dict[str, Any] = {
        "least_step_seconds": least,
        "tokens_per_second": [share * compiled.positions / least for share in (_SLOW, _FAST)],
    }
    steps = spec.config.training.steps or (spec.steps if spec.steps != STEPS else 0)
    if steps:
        hours = [steps * least / share / 3600 for share in (_FAST, _SLOW)]
        found |= {"steps": steps, "hours": hours}
        if price:
            found["cost"] = [price * one for one in hours]
    return found


def _search(
    request: PlanRequest, compiled: CompiledPlan, rows: int, target: Target, say: Callable[[str], None]
) -> dict[str, Any]:
    """The rows that fit, on the line through two compiled plans, and the micro-batch to take, compiled too.

    Memory grows linearly with the rows, once the vocabulary's chunks are as large as they get.
    """
    devices = _devices(request.config, target)
    share = request.config.training.batch_size // devices
    planned = {rows: compiled}
    choices = [number for number in range(share, 0, -1) if share % number == 0]

    def plan(number: int) -> None:
        say(f"compiling for {target.name}, {number} rows a device and pass")
        planned[number] = _compiled(request, with_rows(request.config, number, devices), target)[0]

    plan(max(rows // 2, 1) if rows > 1 else 2)
    for _ in range(_TRIES):
        most = rows_within(_ADVISED_SHARE * target.memory, planned)
        advised = next((number for number in choices if number <= most), 0)
        if not advised or advised in planned:
            break
        plan(advised)
    fitting = [number for number in choices if number in planned and _fits(planned[number], target)]
    return {
        "rows_that_fit": rows_within(target.memory, planned),
        "advised_micro_batch": max(fitting, default=0),
        "compiled_micro_batches": {str(number): planned[number].memory.total for number in sorted(planned)},
    }


def _devices(config: Config, target: Target) -> int:
    return config.parallel.devices or target.count if target.name == "this" else target.count


def rows_within(limit: float, planned: Mapping[int, CompiledPlan]) -> int:
    """Rows whose memory is `limit` bytes, on the line through the two largest plans; whole eights from 8 on."""
    sizes = {rows: planned[rows].memory.total for rows in sorted(planned)[-2:]}
    return largest_batch(sizes, limit)
