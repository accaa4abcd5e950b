"""What is minimised, and where the student starts: losses as (sum, count), their weighted total, the layer map."""

from distil_jax.objectives.distillation import (
    Denominators,
    MicroBatch,
    evaluation_sums,
    is_causal,
    needs_all_logits,
    objective_loss,
    uses_teacher,
)
from distil_jax.objectives.losses import SumCount
from distil_jax.objectives.student import every_other_layer, student_config, student_params

__all__ = [
    "Denominators",
    "MicroBatch",
    "SumCount",
    "evaluation_sums",
    "every_other_layer",
    "is_causal",
    "needs_all_logits",
    "objective_loss",
    "student_config",
    "student_params",
    "uses_teacher",
]
