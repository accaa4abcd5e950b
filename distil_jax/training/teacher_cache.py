"""What a cache of a teacher's outputs is made of, and what it holds of each row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import Config
from distil_jax.data.corpus import Corpus, TeacherCache, open_teacher_cache
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig
from distil_jax.objectives import TeacherOutputs, TopTokens, active_terms, cached_parts, needs_all_logits
from distil_jax.training.text_step import TextModels


def cache_facts(config: Config, teacher: EncoderConfig, fingerprint: str, corpus: Corpus) -> dict[str, Any]:
    """Everything that a cache of this teacher for this run depends on, by name, as JSON has it.

    Raises:
        UserError: a term of the objective reads what no cache has.
    """
    objective = config.objective
    if "temperature" in config.objective.scheduled:
        raise UserError("teacher.cache: is of one temperature; leave it out of objective.schedules, or the cache")
    missing = [name for name, term in active_terms(objective).items() if term.reads_teacher and not term.cached]
    if missing:
        raise UserError(
            f"teacher.cache: has no {' or '.join(missing)}; objective.{missing[0]} needs the teacher itself: set it to "
            "0, or leave out teacher.cache"
        )
    if "top" in cached_parts(objective) and config.teacher.top_k >= teacher.vocab_size:
        raise UserError(
            f"teacher.top_k = {config.teacher.top_k}: the teacher has {teacher.vocab_size} tokens; give less"
        )
    return {
        "teacher.path": fingerprint,
        **{f"teacher's {name}": value for name, value in dataclasses.asdict(teacher).items()},
        "teacher.dtype": config.teacher.dtype,
        "teacher.top_k": config.teacher.top_k,
        "corpus.train": corpus.sha256,
        "run.seed": config.run.seed,
        **{f"masking.{name}": value for name, value in dataclasses.asdict(config.masking).items()},
        "objective.temperature": objective.temperature,
        "objective.restrict_kl_to_mask": objective.restrict_kl_to_mask,
        "training.batch_size": config.training.batch_size,
        "training.compute_dtype": config.training.compute_dtype,
    }


def open_cache(config: Config, made_of: dict[str, Any]) -> TeacherCache:
    """The cache of `teacher.cache`. Raises UserError where it is another one, or lacks what a term reads."""
    cache = open_teacher_cache(Path(config.teacher.cache))
    cache.refuse_other(made_of)
    for name, term in active_terms(config.objective).items():
        if term.cached and {"top": "ids"}.get(term.cached, term.cached) not in (cache.dtype.names or ()):
            raise UserError(
                f"teacher.cache = {cache.folder}: was made with objective.{name} = 0 and lacks what it reads; make "
                "another with distil-jax cache-teacher, or set it to 0"
            )
    return cache


def record_dtype(config: Config, models: TextModels, length: int) -> np.dtype:
    """One row's record: the names and types of `records_of`."""
    assert models.teacher is not None
    encoder, objective, count = models.teacher.config, models.objective, config.teacher.top_k
    places = length if needs_all_logits(objective) else models.rule.max_predictions(length)
    ids = "<u2" if encoder.vocab_size <= 1 << 16 else "<u4"
    top = [("ids", ids, (places, count)), ("ratios", "<f2", (places, count)), ("tail", "<f4", (places,))]
    hidden = [("hidden", "<f2", (length, encoder.hidden_size))]
    parts = cached_parts(objective)
    if not parts:
        raise UserError("objective: no term reads a teacher; set objective.kl or objective.cosine above 0")
    return np.dtype((top if "top" in parts else []) + (hidden if "hidden" in parts else []))


def records_of(outputs: TeacherOutputs) -> dict[str, Any]:
    """The arrays of a teacher's outputs by their name in a record of its cache."""
    top = {} if outputs.top is None else outputs.top._asdict()
    return top if outputs.hidden is None else {**top, "hidden": outputs.hidden}


def outputs_of(records: np.ndarray) -> TeacherOutputs:
    """The teacher's outputs in records [b] of its cache, on the host."""
    found: dict[str, Any] = {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}
    hidden = found.pop("hidden", None)
    return TeacherOutputs(TopTokens(**found) if found else None, hidden)
