"""How long one sentence pair takes, and how many a second in a large batch: BERT-base and a DistilBERT-size student.

    python benchmarks/inference_latency.py --pairs data/glue/STS-B/dev.tsv --tokenizer bert-base-uncased-vocab.txt \
        --cores 0 1 --output inference.md

Ours (what `distil-jax predict` computes with) and PyTorch by turns, each in a process of its own, after asserting that
all give the same scores. `torch.compile` gets rows padded to the few lengths of distil_jax. The rows are as long as
STS-B's pairs; without --pairs, a fixed list of their lengths is used.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import (
    INSTALLED,
    MODEL_SIZES,
    TORCH_SETTINGS,
    command_line,
    core,
    environment,
    exit_status,
    finish,
    footer,
    interleave,
    noise_lines,
    output_file,
    positive,
    require_cpp,
    say,
    start,
)

from distil_jax.benchmark.process import Worker
from distil_jax.errors import FaultError, UserError, one_line
from distil_jax.tables import markdown
from distil_jax.training.inference import LENGTHS_ALONE

HERE = "jax"
SIDES = (HERE, "eager", "sdpa", "compile")
MODELS = ("teacher", "student")
TOLERANCE = 1e-4
# Tokens of the pairs of STS-B's dev set with BERT's uncased vocabulary: 26 evenly spread quantiles of 1,500 pairs.
LENGTHS = (14, 16, 17, 17, 18, 19, 20, 21, 21, 22, 23, 25, 26, 28, 31, 33, 35, 37, 39, 41, 43, 45, 48, 52, 59, 69)
SIZES = {
    "base": (MODEL_SIZES["base"], {"layers": 6, "vocabulary": 30_522, "large": (32, 128)}),
    "tiny": (MODEL_SIZES["tiny"], {"layers": 1, "vocabulary": 300, "large": (4, 32)}),
}


def row_lengths(pairs: str, tokenizer: str, count: int) -> list[int]:
    """Tokens of `count` pairs spread over the file of STS-B, or of the fixed list."""
    if not pairs:
        return [LENGTHS[number * len(LENGTHS) // count] for number in range(count)]
    from distil_jax.hf import load_tokenizer

    backend = load_tokenizer(tokenizer).backend
    try:
        lines = [line.split("\t") for line in Path(pairs).read_text(encoding="utf-8").splitlines()[1:]]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pairs: {pairs}: {one_line(str(error))}; name STS-B's dev.tsv") from error
    if not lines or any(len(line) < 9 for line in lines):
        raise UserError(f"--pairs: {pairs} lacks the columns of STS-B's dev.tsv, 8 and 9 of which are the sentences")
    chosen = [lines[number * len(lines) // count] for number in range(count)]
    return [min(len(backend.encode(line[7], line[8]).ids), 512) for line in chosen]


def write_rows(path: Path, lengths: list[int], vocabulary: int, large: tuple[int, int]) -> None:
    """Random ids: `ids` [rows, longest], 0 behind a row's end, and `large` [rows, L] without padding."""
    generator = np.random.default_rng(0)
    ids = np.zeros((len(lengths), max(lengths)), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(5, vocabulary, length)
    np.savez(path, ids=ids, large=generator.integers(5, vocabulary, large))


def open_side(arguments: argparse.Namespace, side: str, model: str, setting: str, folder: Path) -> Worker:
    """A side's process with a model loaded and warm."""
    script = "jax_inference.py" if side == HERE else "pytorch_inference.py"
    worker = start(f"{model}, {side}", script, environment(HERE if side == HERE else "torch", setting, folder))
    rows = str(folder / "rows.npz")
    worker.ask("open", model=str(folder / model), rows=rows, kind=side, cores=arguments.cores, lengths=LENGTHS_ALONE)
    say(f"{model}, {setting}", f"{side} is ready")
    return worker


def check_scores(workers: Mapping[str, Worker]) -> float:
    """The largest difference of two scores of one row; `FaultError` above `TOLERANCE`."""
    found = {name: np.array(worker.ask("scores")["scores"]) for name, worker in workers.items()}
    first = next(iter(found))
    # NumPy's maximum, which NaN does not get past.
    worst = float(np.max([np.abs(scores - found[first]) for scores in found.values()]))
    if not worst <= TOLERANCE:
        raise FaultError(f"scores of {', '.join(found)} differ by {worst:.2g}: not the same model")
    return worst


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both models in every setting: {"rows", "notes", "machine"}."""
    if "compile" in arguments.sides:
        require_cpp()
    sizes, rest = SIZES[arguments.size]
    found: dict[str, Any] = {"rows": [], "notes": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lengths = row_lengths(arguments.pairs, arguments.tokenizer, arguments.rows)
        write_rows(folder / "rows.npz", lengths, rest["vocabulary"], rest["large"])
        with start(HERE, "jax_inference.py", environment(HERE, INSTALLED, folder)) as worker:
            request = {"sizes": sizes, "vocabulary": rest["vocabulary"], "layers": rest["layers"]}
            found["machine"] = worker.ask("write_models", folder=str(folder), **request)["machine"]
        for name in arguments.settings:
            for model in MODELS:
                _time(arguments, model, TORCH_SETTINGS[name], folder, found)
    found["notes"].append(
        f"one by one: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens; "
        f"large batch: {rest['large'][0]} rows of {rest['large'][1]}"
    )
    return found


def _time(arguments: argparse.Namespace, model: str, setting: str, folder: Path, found: dict[str, Any]) -> None:
    """Add the rows and notes of one model in one setting to `found`."""
    with contextlib.ExitStack() as stack:
        workers = {
            side: stack.enter_context(open_side(arguments, side, model, setting, folder)) for side in arguments.sides
        }
        worst = check_scores(workers)
        single = interleave(workers, arguments.rounds, {"what": "single"})
        large = interleave(workers, arguments.rounds, {"what": "large"})
        peaks = {side: worker.ask("memory")["peak_bytes"] for side, worker in workers.items()}
    found["notes"].append(f"{model}, {setting}: scores differ by {worst:.1e} at most")
    for what, timings in (("one by one", single), ("large batch", large)):
        found["notes"] += [f"{model}, {setting}, {what}, {line}" for line in noise_lines(timings)]
    for side in workers:
        found["rows"].append(
            {
                "model": model,
                "setting": setting,
                "side": side,
                "peak_bytes": peaks[side],
                "milliseconds": 1000 * single[side].median,
                "spread": single[side].spread,
                "rows_per_second": 1 / large[side].median,
                "large_spread": large[side].spread,
                "speedup": single[side].median / single[HERE].median if HERE in single else None,
                "large_speedup": large[side].median / large[HERE].median if HERE in large else None,
            }
        )


def report_markdown(report: Mapping[str, Any], command: str) -> str:
    """Tables, notes, machine and command."""

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    header = [
        "model, side",
        "ms a row",
        "± %",
        "speedup",
        "rows/s, large batch",
        "± %",
        "speedup",
        "peak GiB",
    ]
    parts = []
    for setting in dict.fromkeys(row["setting"] for row in report["rows"]):
        lines = [
            [
                f"{row['model']}, {row['side']}",
                f"{row['milliseconds']:.4g}",
                f"{100 * row['spread']:.1f}",
                times(row["speedup"]),
                f"{row['rows_per_second']:,.1f}",
                f"{100 * row['large_spread']:.1f}",
                times(row["large_speedup"]),
                f"{row['peak_bytes'] / 2**30:.2f}",
            ]
            for row in report["rows"]
            if row["setting"] == setting
        ]
        parts.append(f"PyTorch {setting}:\n\n{markdown(header, lines)}")
    return "\n\n".join([*parts, footer(report["notes"], report["machine"], command)])


def main(argv: list[str] | None = None) -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--settings", nargs="+", choices=TORCH_SETTINGS, default=list(TORCH_SETTINGS))
    parser.add_argument("--pairs", default="", help="STS-B's dev.tsv")
    parser.add_argument("--tokenizer", default="", help="vocabulary that --pairs is counted with")
    parser.add_argument("--rows", type=positive, default=26, help="how many pairs")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--cores", nargs="*", type=core, default=[])
    parser.add_argument("--output", type=output_file, default="")
    arguments = parser.parse_args(argv)
    if arguments.pairs and not arguments.tokenizer:
        parser.error("--pairs needs --tokenizer")
    report = run(arguments)
    finish(report_markdown(report, command_line(argv)), arguments.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("inference_latency", main))
