"""What settings leave to the program, chosen for the device: rows at a time, and whether layers are computed again.

The memory of a step is estimated from sizes alone, before anything is compiled. `distil-jax plan` has the compiler's
figures, from which the numbers below come (base size, H100, bfloat16, rows of 128 and 512; within 12 %).
"""

from __future__ import annotations

import dataclasses

from distil_jax.config import Config
from distil_jax.models import AttentionShape, EncoderConfig, choose_attention
from distil_jax.objectives import chunk_size, vocabulary_bytes
from distil_jax.target import target_device
from distil_jax.training.step import micro_batch_rows

DEFAULT_ROWS = 16  # on a CPU, and where the value of a term depends on the rows
_MOST_TOKENS = 1 << 16  # of a pass: products are as fast as they get, and summing up gradients costs next to nothing
_FEWEST_TOKENS = 1 << 11  # of a pass: below, products leave most of an accelerator idle, and computing again costs less
_SHARE = 0.85  # of the memory: the estimate errs, and evaluation needs some


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """What decides the memory of a step.

    Attributes:
        student: the model that learns.
        teachers: those it learns from.
        length: tokens a row.
        over_vocabulary: whether a loss term reads logits over the vocabulary.
        captured: arrays [L, H] and scores [N, L, L] that terms read of every layer, by name.
        devices: that parameters are cut over, where they are.
    """

    student: EncoderConfig
    teachers: tuple[EncoderConfig, ...]
    length: int
    over_vocabulary: bool = False
    captured: frozenset[str] = frozenset()
    devices: int = 1


def settled(config: Config, sizes: StepSizes) -> Config:
    """`config` with a number of rows and a choice of `remat` where it leaves them to the program.

    As many rows as fit, up to 65,536 tokens; layers are computed again where fewer than 2,048 tokens would fit. Without
    known memory, as on CPU: 16 rows, nothing computed again.
    """
    training, memory = config.training, target_device().memory
    remat, rows = training.remat, training.micro_batch_size
    if remat == "auto":
        few = memory and _rows_that_fit(config, sizes, "none", memory) * sizes.length < _FEWEST_TOKENS
        remat = "layer" if few else "none"
    if not rows and memory and not config.objective.similarity:
        rows = min(_rows_that_fit(config, sizes, remat, memory), max(1, _MOST_TOKENS // sizes.length))
    changed = dataclasses.replace(training, remat=remat, micro_batch_size=rows or DEFAULT_ROWS)
    return dataclasses.replace(config, training=changed)


def step_bytes(config: Config, sizes: StepSizes, rows: int) -> int:
    """Bytes that a device holds during a step with `rows` rows at a time, estimated."""
    return _fixed_bytes(config, sizes) + rows * _row_bytes(config, sizes, config.training.remat)


def memory_text(config: Config, sizes: StepSizes) -> tuple[tuple[str, str], ...]:
    """The row of the opening table on memory, where the device's is known; `config` is settled."""
    device, training = target_device(), config.training
    if not device.memory:
        return ()
    rows = micro_batch_rows(max(training.batch_size // sizes.devices, 1), training.micro_batch_size)
    needed, others = step_bytes(config, sizes, rows), choose_attention(training.attention, _shape(config, sizes))
    learns = "xla" if _writes_scores(config, sizes) else others
    attention = f"{learns} attention" if learns == others else f"{learns} attention ({others} without dropout)"
    parts = [f"about {needed / 2**30:.1f} of {device.memory / 2**30:.1f} GiB a device", attention]
    if sizes.over_vocabulary and config.objective.vocabulary == "fused":
        chunk = config.objective.chunk or chunk_size(rows * sizes.length, sizes.student.vocab_size)
        parts.append(f"vocabulary in chunks of {chunk:,} positions")
    if training.remat == "layer":
        parts.append("layers computed again")
    if needed > device.memory:
        parts.append("it may run out: lower training.micro_batch_size")
    return (("memory", ", ".join(parts)),)


def _rows_that_fit(config: Config, sizes: StepSizes, remat: str, memory: int) -> int:
    return max(1, int(_SHARE * memory - _fixed_bytes(config, sizes)) // _row_bytes(config, sizes, remat))


def _fixed_bytes(config: Config, sizes: StepSizes) -> int:
    """Parameters, gradients, two moments, teachers, and what a chunk of the vocabulary needs."""
    width = 2 if config.teacher.dtype == "bfloat16" else 4
    learned = 4 * 4 * _parameters(sizes.student) // (sizes.devices if config.parallel.fsdp else 1)
    read = width * sum(map(_parameters, sizes.teachers))
    read //= 1 if config.parallel.teacher == "replicated" else sizes.devices
    return learned + read + (vocabulary_bytes() if sizes.over_vocabulary else 0)


def _parameters(encoder: EncoderConfig) -> int:
    """Parameters in matrices, which are all but a thousandth."""
    width, rows = encoder.hidden_size, encoder.vocab_size + encoder.max_position_embeddings
    return encoder.num_layers * (4 * width**2 + 2 * width * encoder.intermediate_size) + rows * encoder.embedding_width


def _row_bytes(config: Config, sizes: StepSizes, remat: str) -> int:
    """Bytes of a row's activations.

    A layer keeps 8 arrays as wide as the model and one as wide as the feed-forward part for its gradients, and the
    probabilities of attention where no kernel computes them again. 12 and 2 such arrays more are at work at a time.
    """
    student, bytes_a_number = sizes.student, 2 if config.training.compute_dtype == "bfloat16" else 4
    layer = 8 * student.hidden_size + student.intermediate_size
    scores = student.num_heads * sizes.length if _writes_scores(config, sizes) else 0
    layer += scores
    if config.parallel.fsdp or config.parallel.teacher != "replicated":
        # What gathers cut models for each pass keeps all else, also what a layer alone would compute again.
        layer += 2 * student.intermediate_size + scores
    kept = student.num_layers * layer if remat == "none" else student.num_layers * student.hidden_size + layer
    widest = max((student, *sizes.teachers), key=lambda encoder: encoder.hidden_size)
    at_work = 12 * widest.hidden_size + 2 * widest.intermediate_size
    read = 0
    for encoder in (student, *sizes.teachers):
        arrays = len(sizes.captured - {"scores"}) * encoder.hidden_size
        matrices = 4 // bytes_a_number * encoder.num_heads * sizes.length if "scores" in sizes.captured else 0
        read += encoder.num_layers * (arrays + matrices)
    return sizes.length * bytes_a_number * (kept + at_work + read)


def _writes_scores(config: Config, sizes: StepSizes) -> bool:
    """Whether attention of the model that learns has its scores in memory."""
    kind = choose_attention(config.training.attention, _shape(config, sizes))
    drops = sizes.student.attention_dropout > 0
    return kind == "xla" or (drops and (config.training.exact_dropout or kind != "cudnn"))


def _shape(config: Config, sizes: StepSizes) -> AttentionShape:
    encoder = sizes.student
    dtype, is_biased = config.training.compute_dtype, bool(encoder.relative_buckets)
    return AttentionShape(target_device(), dtype, sizes.length, encoder.head_width, is_biased)
