"""Tasks: rows in, examples, batches, measures and predictions out. What a task is; training it is `training`.

Names are imported on first use, since the kinds of tasks are needed without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.tasks.augment import augment_ids, continuation_table, replace_words, whole_words, word_tokens
    from distil_jax.tasks.batches import (
        TaskBatch,
        choose_buckets,
        collate,
        collate_inputs,
        evaluation_plan,
        steps_per_epoch,
        training_plan,
    )
    from distil_jax.tasks.class_weights import chosen_weights
    from distil_jax.tasks.data.load import load_task
    from distil_jax.tasks.data.report import encoded_lines
    from distil_jax.tasks.encoded import Encoded, encoded_texts, with_unlabelled
    from distil_jax.tasks.examples import Example, TaskData, TaskSpec
    from distil_jax.tasks.kinds import KINDS, Logits, Predicted, Prediction, PredictionOptions, TaskKind, kind_of
    from distil_jax.tasks.measures import SCORE, details_of, validation_measures
    from distil_jax.tasks.metrics.scores import measure
    from distil_jax.tasks.registry import TASKS, glue_tasks, own_task, task_spec
    from distil_jax.tasks.requests import (
        Reading,
        Request,
        read_requests,
        reading_of,
        request,
        rows_to_predict,
        usual_reading,
        with_columns,
    )
else:
    __getattr__ = lazy_imports(__name__)
