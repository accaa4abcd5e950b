"""What a run is about, in a table before its first step, and where its measures began and ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from distil_jax.config import Config
from distil_jax.data.corpus import Corpus
from distil_jax.models import EncoderConfig
from distil_jax.objectives import PROJECTIONS
from distil_jax.training.parallel import Devices
from distil_jax.training.step import micro_batch_rows

About = tuple[tuple[str, str], ...]  # (what, text) rows of the table
_MEASURES = {
    "mlm_loss": "held-out loss {:.3f}",
    "perplexity": "perplexity {:.1f}",
    "accuracy": "accuracy {:.1%}",
    "kl": "KL to teacher {:.3f}",
    "agreement": "agreement {:.1%}",
}
_UNSHOWN = ("predictions",)


def model_text(encoder: EncoderConfig, params: Mapping[str, Any]) -> str:
    """A model in a line: "distilbert, 6 layers of width 768, 66.4 M parameters"."""
    count = sum(leaf.size for name in params if name != PROJECTIONS for leaf in jax.tree.leaves(params[name]))
    layers = "layer" if encoder.num_layers == 1 else "layers"
    size = f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"
    return f"{encoder.family}, {encoder.num_layers} {layers} of width {encoder.hidden_size}, {size} parameters"


def corpus_text(corpus: Corpus) -> str:
    """A corpus in a line: "1,234 tokens in 5 rows of 512 (98.7 % filled)"."""
    rows = f"{corpus.num_rows:,} rows of {corpus.sequence_length}"
    return f"{corpus.num_tokens:,} tokens in {rows} ({corpus.fill:.1%} filled)"


def opening_lines(config: Config, about: About, steps: int, devices: Devices, start: int | None) -> list[str]:
    """The table: what is trained from what, how long, on what, and from which step it continues."""
    training, kind, rate = config.training, devices.local[0].device_kind, config.optimizer.learning_rate
    at_once = micro_batch_rows(training.batch_size // devices.count, training.micro_batch_size)
    rows = (
        *about,
        (
            "training",
            f"{steps:,} steps of {training.batch_size} rows, learning rate {rate:g}",
        ),
        ("devices", f"{devices.count} x {kind}, {at_once} rows at a time, {training.compute_dtype}"),
        ("folder", config.run.output),
        ("resumed", f"from step {start:,}" if start else ""),
    )
    return [f"  {name:<9} {text}" for name, text in rows if text]


def loss_text(weights: Mapping[str, float]) -> str:
    """The loss terms in a line: "5 kl + 2 mlm + 1 cosine"."""
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())


def measures_text(measures: Mapping[str, float], before: Mapping[str, float] | None = None) -> str:
    """Held-out measures in a line: "held-out loss 3.210, perplexity 24.8"; with those `before`, "loss 9.2 -> 3.2"."""
    parts = []
    for name in (name for name in measures if name not in _UNSHOWN):
        words, _, form = _MEASURES.get(name, f"{name} {{:.4g}}").rpartition(" ")
        values = [of[name] for of in (before or {}, measures) if name in of]
        parts.append(f"{words} {' -> '.join(map(form.format, values))}")
    return ", ".join(parts)


def ends_text(evaluations: Mapping[int, Mapping[str, float]], step: int) -> str:
    """The first and the chosen evaluation of a run: "held-out loss 9.212 -> 3.210, ..."; "" where there is none."""
    if step not in evaluations:
        return ""
    first = min(evaluations)
    return measures_text(evaluations[step], evaluations[first] if first != step else None)
