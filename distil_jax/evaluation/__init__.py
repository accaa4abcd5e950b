"""Held-out measures, scores on tasks, studies and their reports, the quickstart, checks of folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distil_jax.lazy import lazy_imports

if TYPE_CHECKING:
    from distil_jax.evaluation.ablation import run_ablation
    from distil_jax.evaluation.ablation_plan import task_names
    from distil_jax.evaluation.check import check_folder
    from distil_jax.evaluation.compare import compare_studies, comparison_markdown, write_comparison
    from distil_jax.evaluation.heldout import (
        LanguageModel,
        evaluate_model,
        evaluate_paths,
        fill_mask,
        load_language_model,
    )
    from distil_jax.evaluation.plot import plot_runs
    from distil_jax.evaluation.quickstart import make_quickstart
    from distil_jax.evaluation.report import measures_table
    from distil_jax.evaluation.run_report import try_report, write_report
    from distil_jax.evaluation.similarity import similarity_score
    from distil_jax.evaluation.study import run_study
    from distil_jax.evaluation.study_plan import for_task, is_study, plan_study
    from distil_jax.evaluation.task_scores import score_model, scores_table
else:
    __getattr__ = lazy_imports(__name__)
