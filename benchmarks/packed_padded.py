"""Packed rows against padded ones on real text: how many real tokens a second the same model learns from.

    python benchmarks/packed_padded.py --text enwiki_valid.txt.xz --tokenizer bert-base-uncased-vocab.txt \
        --lengths 128 512 --output packed.md

The same lines are prepared both ways; `distil-jax benchmark` then measures the same step on either. Also said is how
full batches would be that hold lines of like lengths padded to their longest, as the original DistilBERT code does it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import command_line, exit_status, finish, footer, output_file, positive, say

from distil_jax.benchmark.run import run_benchmark
from distil_jax.config import BenchmarkArguments, Config, config_to_toml, load_config, with_overrides
from distil_jax.tables import markdown

FORMS = {"packed": True, "padded": False}


def prepare_both(config: Config, tokenizer: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """Prepare the text in both forms below `folder`; what each has become."""
    from distil_jax.data.corpus import prepare_splits

    found = {}
    for form, pack in FORMS.items():
        settings = with_overrides(config, {"corpus.pack": pack, "corpus.folder": str(folder / form)}).corpus
        corpus = prepare_splits(settings, tokenizer)["train"]
        found[form] = {"rows": corpus.num_rows, "tokens": corpus.num_tokens, "fill": corpus.fill}
        if form == "padded":
            ids = corpus.row_range(0, corpus.num_rows)
            found["grouped"] = {"fill": grouped_fill((ids != corpus.pad_id).sum(axis=1), config.training.batch_size)}
    return found


def grouped_fill(lengths: np.ndarray, batch_size: int) -> float:
    """Share of real tokens in batches of lines of like lengths, each padded to its longest."""
    ordered = np.sort(lengths)
    padded = sum(
        int(ordered[first : first + batch_size].max()) * len(ordered[first : first + batch_size])
        for first in range(0, len(ordered), batch_size)
    )
    return float(ordered.sum() / padded)


def compare(arguments: argparse.Namespace, length: int) -> dict[str, Any]:
    """Both forms at one length of rows: fill and real tokens a second."""
    from distil_jax.hf import load_tokenizer

    given = load_config(arguments.config) if arguments.config else Config()
    tokenizer = load_tokenizer(arguments.tokenizer)
    sizes = {"training.batch_size": arguments.rows, "training.micro_batch_size": arguments.rows}
    text = {"corpus.train": (arguments.text,), "corpus.validation": (), "corpus.max_documents": arguments.documents}
    config = with_overrides(given, {**text, **sizes, "corpus.sequence_length": length, "parallel.devices": 1})
    options = BenchmarkArguments(
        repeats=arguments.repeats, steps=arguments.steps, warm_start=False, vocabulary=tokenizer.vocab_size
    )
    report: dict[str, Any] = {"length": length}
    with tempfile.TemporaryDirectory() as temporary:
        report["forms"] = prepare_both(config, tokenizer, Path(temporary))
        for form, pack in FORMS.items():
            changed = with_overrides(config, {"corpus.pack": pack, "corpus.folder": str(Path(temporary) / form)})
            measured = run_benchmark(changed, "distill", options, say=partial(say, form))
            report["forms"][form] |= {"row": measured["rows"][0], "notes": measured["notes"]}
            report["machine"] = measured["machine"]
    report["config"] = config_to_toml(config)
    return report


def real_speed(form: dict[str, Any]) -> float | None:
    """Real tokens a second: places a second, which what they hold does not change, filled as the whole text's are.

    The few batches that are timed may be fuller or emptier. None: they do not fit into memory.
    """
    if not form["row"]["fits"]:
        return None
    return form["row"]["positions"] / form["row"]["median"] * form["fill"]


def report_markdown(reports: list[dict[str, Any]], command: str) -> str:
    """A table of all lengths, machine and command."""
    rows, notes = [], []
    for report in reports:
        forms = report["forms"]
        padded = real_speed(forms["padded"])
        for form in FORMS:
            row, speed = forms[form]["row"], real_speed(forms[form])
            speeds = ["does not fit", "-"] if speed is None else [f"{speed:,.0f}", f"{100 * row['spread']:.1f}"]
            ratio = "-" if speed is None or padded is None else f"{speed / padded:.2f}"
            name = f"{form}, {report['length']}"
            rows.append([name, f"{forms[form]['fill']:.1%}", f"{forms[form]['rows']:,}", *speeds, ratio])
            notes += [f"{name}: {note}" for note in forms[form]["notes"]]
        rows.append([f"lines of like lengths, {report['length']}", f"{forms['grouped']['fill']:.1%}", *["-"] * 4])
    header = ["rows", "filled", "rows of the text", "real tokens/s", "± %", "times padded"]
    return f"{markdown(header, rows)}\n\n{footer(notes, reports[0]['machine'], command)}"


def main(argv: list[str] | None = None) -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="file of lines, or a glob")
    parser.add_argument("--tokenizer", required=True, help="folder, vocab.txt or tokenizer.json")
    parser.add_argument("--config", default="", help="configuration of the model; empty: base size")
    parser.add_argument("--lengths", nargs="+", type=positive, default=[128, 512])
    parser.add_argument("--rows", type=positive, default=4, help="per batch")
    parser.add_argument("--documents", type=int, default=500, help="of the text; 0: all")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=2)
    parser.add_argument("--output", type=output_file, default="")
    arguments = parser.parse_args(argv)
    reports = [compare(arguments, length) for length in arguments.lengths]
    finish(report_markdown(reports, command_line(argv)), arguments.output, reports)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("packed_padded", main))
