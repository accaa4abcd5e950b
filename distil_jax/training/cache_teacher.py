"""`cache-teacher`: what a teacher says of every batch of a distillation, written before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import Config
from distil_jax.data.corpus import CacheWriter, Corpus, TeacherCache
from distil_jax.errors import writing
from distil_jax.runs import Progress, SaveClock, Watchdog, broadcast, fingerprint, first_process_in, lock_folder
from distil_jax.training.device_settings import settled
from distil_jax.training.distill import distillation
from distil_jax.training.parallel import Devices, check_batch, devices_of
from distil_jax.training.step import FrozenInputs
from distil_jax.training.teacher_cache import cache_facts, record_dtype, records_of
from distil_jax.training.text_run import (
    check_text,
    check_vocabulary,
    frozen_inputs,
    matching_tokenizer,
    open_corpora,
    planned_steps,
    read_model,
    step_sizes,
    text_batches,
    text_models,
)
from distil_jax.training.text_step import TextModels, make_teacher_step


def cache_teacher(config: Config) -> TeacherCache | None:
    """The cache in `teacher.cache` of all steps of the run that `config` describes; None but in the first process.

    What the folder holds already is not computed again.

    Raises:
        UserError: settings, corpus, teacher or the folder do not fit each other; before anything is compiled.
    """
    with Watchdog(config) as watchdog:
        corpora = open_corpora(config)
        corpus = corpora.train
        teacher, params = read_model(config.teacher.path)
        matching_tokenizer(config.corpus.tokenizer or config.teacher.path, corpus)
        check_vocabulary("teacher.path", teacher, corpus)
        made_of = cache_facts(config, teacher, fingerprint(params), corpus)
        training, steps = distillation(config, teacher, params), planned_steps(config, corpus)
        check_text(config, training, corpora)
        devices = devices_of(config.parallel)
        check_batch(config.training.batch_size, devices.count)
        config = settled(config, step_sizes(training, corpus, devices.count))
        models = text_models(config, training, corpus)
        dtype = record_dtype(config, models, corpus.sequence_length)
        with first_process_in(partial(_opened, config, made_of, dtype)) as writer:
            start = int(broadcast("" if writer is None else str(writer.cache.steps)))
            if start < steps:
                frozen = frozen_inputs(config, training, corpus)
                _write(config, corpus, models, frozen, range(start, steps), devices, writer, watchdog)
        return None if writer is None else writer.cache


@contextlib.contextmanager
def _opened(config: Config, made_of: Mapping[str, Any], dtype: np.dtype) -> Iterator[CacheWriter]:
    """The writer of the cache in `teacher.cache`; this process owns the folder during the block."""
    folder = Path(config.teacher.cache)
    with writing(f"teacher.cache = {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "teacher.cache"):
        yield CacheWriter(folder, made_of, config.training.batch_size, dtype)


def _write(
    config: Config,
    corpus: Corpus,
    models: TextModels,
    frozen: FrozenInputs,
    steps: range,
    devices: Devices,
    writer: CacheWriter | None,
    watchdog: Watchdog,
) -> None:
    per_device = make_teacher_step(models, config.training.micro_batch_size, config.teacher.top_k)
    teacher_step, frozen = devices.map(per_device, replicated=2), devices.replicate(frozen)
    mode = config.logging.progress if writer is not None else "none"
    saves = SaveClock(config)

    def commit() -> str:
        if writer is not None:
            writer.commit()
        return f"{config.teacher.cache} has {writer.cache.steps if writer is not None else 0} steps"

    with Progress("cache-teacher", steps.stop, start=steps.start, mode=mode) as progress:
        for number, ids in zip(steps, text_batches(config, corpus, None, steps, devices), strict=True):
            with watchdog.preemption.interruptible(commit):
                rows = devices.shard_batch(ids)
                watchdog.go()
            found: Any = teacher_step(frozen, np.int32(number), rows)
            if writer is not None:
                writer.add({name: np.asarray(values) for name, values in records_of(found).items()})
            watchdog.stall.progressed(f"step {number + 1}")
            progress.update(number + 1, amount=config.training.batch_size * corpus.sequence_length)
            if saves.due(number + 1):
                commit()
                saves.saved()
        commit()
