"""The speedup that a variant should have, from operations of matrix products and bytes that pass through memory.

The model is deliberately plain: seconds = operations / peak + bytes / bandwidth. Fusion, overlap and caches make it
wrong; the difference between prediction and measurement shows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distil_jax.config import Config
from distil_jax.models import EncoderConfig
from distil_jax.training.flops import encoder_flops

# Values of width H that a layer makes a token, and values a head and key, at two bytes each (Korthikanti et al. 2022,
# arXiv 2205.05198, equation 1: 34 s b h + 5 a s^2 b bytes).
_MADE_WIDE, _MADE_SCORES = 17.0, 2.5
_FORWARD_PASSES, _BACKWARD_PASSES = 2.0, 3.0  # written and read; read again, its gradient written and read
# Passes over [tokens, V] in float32, of student and teacher together: logits written and read by two matrix products
# and the softmaxes; the plain loss also writes and reads the log-softmax of both.
_LOGIT_PASSES = {"plain": 11.0, "fused": 7.0}
_OPTIMIZER_PASSES = 7.0  # reads parameter, gradient, two moments; writes parameter, two moments


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The counts of one step.

    Attributes:
        flops: operations of the model's formula.
        extra_flops: operations besides (rematerialisation).
        bytes_moved: through memory.
        fill: share of the positions that hold real tokens, 0 to 1.
    """

    flops: float
    extra_flops: float
    bytes_moved: float
    fill: float


def roofline_of_step(
    config: Config,
    student: EncoderConfig,
    teacher: EncoderConfig | None,
    *,
    flops: float,
    positions: int,
    length: int,
    vocabulary_positions: float,
    parameters: tuple[int, int],
    fill: float,
    accelerator: bool,
) -> Roofline:
    """The counts of one step of a device.

    Args:
        config: its settings.
        student: the model that learns.
        teacher: the model it learns from, or None.
        flops: operations by the model's formula.
        positions: tokens of the batch, padding included.
        length: tokens per row.
        vocabulary_positions: positions that go through the vocabulary; 0 in fine-tuning.
        parameters: of student and teacher.
        fill: share of the positions that is real.
        accelerator: whether attention = auto picks a kernel that writes no scores.
    """
    width = 2.0 if config.training.compute_dtype == "bfloat16" else 4.0
    remat = config.training.remat == "layer"
    attention = config.training.attention
    written = attention == "xla" or (attention == "auto" and not (accelerator and width == 2.0))

    def kept(encoder: EncoderConfig, *, learns: bool) -> float:
        """Bytes of the layers' activations; with dropout every kernel writes the scores."""
        wide = _MADE_WIDE * encoder.hidden_size
        scores = written or (learns and encoder.attention_dropout > 0)
        pairs = _MADE_SCORES * encoder.num_heads * length if scores else 0.0
        return encoder.num_layers * (wide + pairs) * width * positions

    passes = _FORWARD_PASSES * (2 if remat else 1) + _BACKWARD_PASSES
    learner = kept(student, learns=True)
    moved = passes * learner + (0.0 if teacher is None else _FORWARD_PASSES * kept(teacher, learns=False))
    logits = 4.0 * vocabulary_positions * student.vocab_size
    share = 1.0 if teacher is not None else 0.5
    moved += share * _LOGIT_PASSES[config.objective.vocabulary] * logits
    moved += 4.0 * _OPTIMIZER_PASSES * parameters[0] + width * (3 * parameters[0] + parameters[1])
    extra = encoder_flops(student, length) * positions if remat else 0.0
    return Roofline(flops, extra, moved, fill)


def predicted_seconds(work: Mapping[str, Any], flops_per_second: float, bytes_per_second: float) -> float:
    """Seconds of a step with these counts, `Roofline` (as a mapping), nothing overlapping."""
    return (work["flops"] + work["extra_flops"]) / flops_per_second + work["bytes_moved"] / bytes_per_second


def predicted_speedup(row: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Predicted ratio of real tokens a second, `row` over `reference`; both as the worker gives them.

    Each counts with the peak of its compute type.
    """

    def speed(one: Mapping[str, Any]) -> float:
        work = one["roofline"]
        return one["positions"] * work["fill"] / predicted_seconds(work, one["peak_measured"], one["bandwidth"])

    return speed(row) / speed(reference)
