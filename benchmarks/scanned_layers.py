"""Would a scan over stacked layers help? Compile time, time and planned memory of both forms of the same layers.

    python benchmarks/scanned_layers.py --output scanned.md

The layers of teacher and student on one batch, with dropout, value and gradient of the distance between their last
hidden states: once layer after layer, as `Encoder` has them, once as `jax.lax.scan` over their stacked parameters. Both
are asserted to compute the same without dropout, and take rounds by turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from interleaved import (
    INSIDE,
    MODEL_SIZES,
    command_line,
    exit_status,
    finish,
    footer,
    interleave_calls,
    output_file,
    positive,
    run_inside,
)

from distil_jax.benchmark.machine import describe_machine
from distil_jax.errors import FaultError
from distil_jax.models import EncoderConfig
from distil_jax.models.encoder import EncoderLayer
from distil_jax.tables import markdown
from distil_jax.training.compiled_step import memory_plan

FORMS = ("unrolled", "scanned")
Layers = list[dict[str, Any]]


def make_layers(config: EncoderConfig) -> Layers:
    """Random parameters of every layer."""
    layer, x = EncoderLayer(config, 0), jnp.zeros((1, 8, config.hidden_size))
    keys = jax.random.split(jax.random.key(0), config.num_layers)
    return [dict(layer.init(key, x, None, None, None)["params"]) for key in keys]


def apply_layers(config: EncoderConfig, form: str, params: Any, x: Any, mask: Any, keys: Any) -> Any:
    """x [B, L, H] through all layers; `params` is a list of layers, stacked for the scanned form."""
    if form == "unrolled":
        for index, layer in enumerate(params):
            x, _ = EncoderLayer(config, index).apply({"params": layer}, x, mask, None, keys)  # type: ignore[misc]
        return x
    # The same dropout bits in every layer, which take as long to draw as others.
    layer = EncoderLayer(config, 0)
    return jax.lax.scan(lambda x, one: (layer.apply({"params": one}, x, mask, None, keys)[0], None), x, params)[0]


def loss_of(form: str, teacher: EncoderConfig, student: EncoderConfig) -> Callable[..., Any]:
    """(student's parameters, teacher's, x, mask, dropout keys) -> mean squared distance of the last hidden states."""

    def loss(learning: Any, fixed: Any, x: Any, mask: Any, keys: Any) -> Any:
        wanted = apply_layers(teacher, form, fixed, x, mask, None)
        return jnp.mean((apply_layers(student, form, learning, x, mask, keys) - wanted) ** 2)

    return jax.value_and_grad(loss)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both forms: {"rows", "agreed", "machine"}."""
    sizes: dict[str, Any] = {"vocab_size": 8, "max_position_embeddings": 8, **MODEL_SIZES[arguments.size]}
    teacher = EncoderConfig(family="bert", **sizes)
    student = EncoderConfig(family="distilbert", **{**sizes, "num_layers": max(1, teacher.num_layers // 2)})
    rows, length = arguments.rows, arguments.length
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((rows, length, teacher.hidden_size), np.float32))
    mask = jnp.ones((rows, length), jnp.int32)
    keys = jnp.asarray(generator.integers(0, 1 << 32, (rows, 2), np.uint32))
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    computed: dict[str, tuple[float, float]] = {}
    for form in FORMS:
        params = [make_layers(config) for config in (student, teacher)]
        if form == "scanned":
            params = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) for layers in params]
        function = jax.jit(loss_of(form, teacher, student))
        loss, gradients = function(*params, x, mask, None)
        norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradients)))
        computed[form] = float(loss), float(norm)
        lowered = function.lower(*params, x, mask, keys)
        start = time.perf_counter()
        program = lowered.compile()
        found[form] = {"compile_seconds": time.perf_counter() - start, "temporary": memory_plan(program)["temporary"]}
        calls[form] = lambda program=program, params=params: jax.block_until_ready(program(*params, x, mask, keys))
    agreed = max(abs(one / other - 1) for one, other in zip(*(computed[form] for form in FORMS), strict=True))
    if not agreed < 1e-5:
        raise FaultError(f"losses or gradients differ by {agreed:.1e}: not the same layers")
    for form, timing in interleave_calls(
        {form: _timed(call) for form, call in calls.items()}, arguments.rounds
    ).items():
        found[form] |= {"seconds": timing.median, "spread": timing.spread, "rounds": list(timing.rounds)}
    return {"rows": found, "agreed": agreed, "machine": describe_machine()}


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A function that calls, and tells the seconds; called once here, which touches its memory for the first time."""
    call()

    def seconds() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return seconds


def report_markdown(report: dict[str, Any], command: str) -> str:
    """A row a form, machine and command."""
    lines = [
        [
            form,
            f"{row['compile_seconds']:.1f}",
            f"{1000 * row['seconds']:.4g}",
            f"{100 * row['spread']:.1f}",
            f"{row['temporary'] / 2**20:,.0f}",
        ]
        for form, row in report["rows"].items()
    ]
    table = markdown(["layers", "compile s", "ms", "± %", "temporary MiB"], lines)
    agreed = f"loss and gradient norm equal to {report['agreed']:.1e} (relative)"
    return f"{table}\n\n{footer([agreed], report['machine'], command)}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=MODEL_SIZES, default="base")
    parser.add_argument("--rows", type=positive, default=8)
    parser.add_argument("--length", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--output", type=output_file, default="")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.inside:
        return run_inside(__file__, argv, arguments.device)
    report = measure(arguments)
    finish(report_markdown(report, command_line(argv)), arguments.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("scanned_layers", main))
