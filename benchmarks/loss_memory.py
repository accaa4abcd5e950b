"""What the losses over the vocabulary hold in memory, all logits at once against in chunks, as XLA compiles them.

    python benchmarks/loss_memory.py --output memory.md

Compiles the value and gradient of KL + cross entropy at 2k, 8k and 32k positions, base size, and runs nothing: the
numbers are the compiler's own plan of temporary buffers (parameters and gradients not counted). Prints a table and
writes it to a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from interleaved import INSIDE, command_line, exit_status, finish, footer, output_file, positive, run_inside

from distil_jax.benchmark.machine import describe_machine
from distil_jax.objectives.vocabulary import chunk_size, fused_vocabulary_loss, plain_vocabulary_loss
from distil_jax.objectives.vocabulary_terms import OutputLayer, Positions
from distil_jax.tables import markdown
from distil_jax.training.compiled_step import memory_plan

FORMS: dict[str, Callable[..., Any]] = {"plain": plain_vocabulary_loss, "fused": fused_vocabulary_loss}
TERMS = ("kl", "mlm")


def temporary_bytes(loss: Callable[..., Any], tokens: int, vocabulary: int, width: int, dtype: str) -> int:
    """Bytes of temporary buffers of the compiled value and gradient."""

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    layer = OutputLayer(array(tokens, width, dtype=dtype), array(vocabulary, width), array(vocabulary))
    positions = Positions({name: array(tokens) for name in TERMS}, array(tokens, dtype=jnp.int32))
    function = jax.jit(jax.value_and_grad(partial(loss, temperature=2.0), has_aux=True))
    program = function.lower(layer, layer, positions, {name: array() for name in TERMS}).compile()
    return memory_plan(program)["temporary"]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that the table shows, and on what it was measured."""
    sizes = [
        (tokens, vocabulary)
        for tokens in arguments.tokens
        for vocabulary in (arguments.vocabulary if tokens == arguments.tokens[-1] else arguments.vocabulary[:1])
    ]
    rows = [
        {
            "tokens": tokens,
            "vocabulary": vocabulary,
            "chunk": chunk_size(tokens, vocabulary),
            **{
                name: temporary_bytes(loss, tokens, vocabulary, arguments.hidden, arguments.dtype)
                for name, loss in FORMS.items()
            },
        }
        for tokens, vocabulary in sizes
    ]
    return {"machine": describe_machine(), "dtype": arguments.dtype, "hidden": arguments.hidden, "rows": rows}


def report_markdown(found: dict[str, Any], command: str) -> str:
    """MiB of each form, machine and command."""
    header = ["tokens", "vocabulary", "chunk", *(f"{name}, MiB" for name in FORMS), "plain / fused"]
    rows = [
        [
            *(f"{row[name]:,}" for name in ("tokens", "vocabulary", "chunk")),
            *(f"{row[name] / 2**20:,.0f}" for name in FORMS),
            f"{row['plain'] / row['fused']:.1f}",
        ]
        for row in found["rows"]
    ]
    title = f"Temporary buffers, {found['dtype']}, width {found['hidden']}:"
    return f"{title}\n\n{markdown(header, rows)}\n\n{footer([], found['machine'], command)}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=positive, nargs="+", default=[2048, 8192, 32768], help="positions")
    parser.add_argument(
        "--vocabulary",
        type=positive,
        nargs="+",
        default=[30522, 119547],
        help="sizes; all but the first at the most tokens",
    )
    parser.add_argument("--hidden", type=positive, default=768, help="width of both models")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the hidden states")
    parser.add_argument("--output", type=output_file, default="")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.inside:
        return run_inside(__file__, argv)
    found = measure(arguments)
    finish(report_markdown(found, command_line(argv)), arguments.output, found)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("loss_memory", main))
