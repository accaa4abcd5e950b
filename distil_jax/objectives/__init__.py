"""What is minimised, and where the student starts: losses as (sum, count), their weighted total, the layer map."""

from distil_jax.objectives.compared import Compared, most_sequences
from distil_jax.objectives.distillation import (
    MicroBatch,
    TeacherOutputs,
    Totals,
    evaluation_sums,
    objective_loss,
    teacher_outputs,
)
from distil_jax.objectives.losses import SumCount, cross_entropy, distillation_kl
from distil_jax.objectives.schedules import temperature_at, weights_at
from distil_jax.objectives.student import (
    principal_directions,
    start_layers,
    student_config,
    student_params,
    student_sizes,
)
from distil_jax.objectives.terms import (
    PROJECTIONS,
    TERMS,
    LossTerm,
    activation_terms,
    active_activation_terms,
    active_terms,
    at_predictions,
    cached_parts,
    capture_of,
    check_terms,
    initial_projections,
    needs_all_logits,
    uses_teacher,
    uses_vocabulary,
)
from distil_jax.objectives.vocabulary import chunk_size, vocabulary_bytes
from distil_jax.objectives.vocabulary_terms import TopTokens
