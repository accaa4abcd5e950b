"""Values that have the right type and sign, but that no run could have: a slip of a key, or a hostile file.

They are refused where a configuration is read, not when memory has run out or the loss is NaN. The bounds lie far
outside of what is used, so that they never stand in the way of an experiment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distil_jax.config.fields import fields_of
from distil_jax.errors import UserError

if TYPE_CHECKING:
    from distil_jax.config.schema import Config

# "section.key" -> (smallest, largest) sensible value. Sizes of models are those that a config.json may have.
SENSIBLE: dict[str, tuple[float, float]] = {
    "corpus.workers": (0, 4096),
    "model.num_layers": (1, 1 << 10),
    "model.hidden_size": (1, 1 << 16),
    "model.num_heads": (1, 1 << 10),
    "model.intermediate_size": (1, 1 << 18),
    "model.max_position_embeddings": (1, 1 << 20),
    "model.initializer_range": (1e-9, 100),
    "student.layers": (0, 1023),
    "task.doc_stride": (1, 65536),
    "task.max_question_length": (1, 65536),
    "task.max_answer_length": (1, 65536),
    "task.n_best": (1, 65536),
    "finetune.temperature": (1e-3, 1e4),
    "finetune.alpha_task": (0, 1e6),
    "finetune.alpha_ce": (0, 1e6),
    "finetune.alpha_cos": (0, 1e6),
    "finetune.buckets": (0, 65536),
    "finetune.evaluations_per_epoch": (1, 1_000_000),
    "study.seeds": (1, 10_000),
    "study.learning_rates": (1e-15, 1000),
    "study.epochs": (1, 1_000_000),
    "masking.probability": (1e-3, 1),
    "masking.smoothing": (0, 100),
    "objective.temperature": (1e-3, 1e4),
    "objective.alpha_ce": (0, 1e6),
    "objective.alpha_mlm": (0, 1e6),
    "objective.alpha_cos": (0, 1e6),
    "objective.alpha_mse": (0, 1e6),
    "objective.alpha_clm": (0, 1e6),
    "optimizer.learning_rate": (1e-15, 1000),
    "optimizer.epsilon": (1e-20, 1),
    "optimizer.weight_decay": (0, 1000),
    "training.epochs": (0, 1_000_000),
    "training.batch_size": (1, 1 << 24),
    "training.micro_batch_size": (1, 1 << 20),
    "evaluation.batch_size": (1, 1 << 20),
    "parallel.devices": (0, 1 << 20),
    "parallel.num_processes": (0, 1 << 20),
    "checkpoint.every_minutes": (0, 1e6),
    "checkpoint.keep": (1, 1_000_000),
}
MOST_WEIGHTS = 10**11  # of a model made from scratch; float32 with its two moments takes 12 bytes a weight
MOST_TOKENS = 2**31 - 1  # of a batch: its positions are counted in 32 bits
_VOCABULARY = 30522  # BERT's; the real one is not known before the tokenizer is read


def refuse_absurd(config: Config) -> None:
    """`UserError` naming key, value and range where a value, or several together, are beyond what can be run."""
    for name, (low, high) in SENSIBLE.items():
        section, _, key = name.partition(".")
        value: Any = getattr(getattr(config, section), key)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                allowed = fields_of(type(getattr(config, section)))[key].allowed
                raise UserError(f"{name} = {number}: must be {allowed}, within {low:.12g} and {high:.12g}")
    model, training = config.model, config.training
    layer = 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
    weights = model.num_layers * layer + (_VOCABULARY + model.max_position_embeddings) * model.hidden_size
    if weights > MOST_WEIGHTS:
        raise UserError(
            f"model.num_layers = {model.num_layers}, model.hidden_size = {model.hidden_size}, model.intermediate_size "
            f"= {model.intermediate_size} and model.max_position_embeddings = {model.max_position_embeddings} make a "
            f"model of {weights:.2g} weights; at most {MOST_WEIGHTS:.0e} are allowed"
        )
    tokens = training.batch_size * config.corpus.sequence_length
    if tokens > MOST_TOKENS:
        raise UserError(
            f"training.batch_size = {training.batch_size} x corpus.sequence_length = {config.corpus.sequence_length} "
            f"is {tokens} tokens a step; at most {MOST_TOKENS} are allowed"
        )
