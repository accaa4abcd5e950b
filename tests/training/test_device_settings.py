"""Rows at a time and what is computed again, against the memory plans of compiled steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from distil_jax.config import Config, with_overrides
from distil_jax.models import EncoderConfig
from distil_jax.objectives import chunk_size
from distil_jax.target import Device, traced_for
from distil_jax.training.device_settings import DEFAULT_ROWS, StepSizes, memory_text, settled, step_bytes

GIB = 1 << 30
TEACHER = EncoderConfig("bert", 30522, 768, 12, 12, 3072, 512)
STUDENT = EncoderConfig("distilbert", 30522, 768, 6, 12, 3072, 512)
H100 = Device("cuda", (9, 0), 59 * GIB)
BASE = {"training.compute_dtype": "bfloat16", "teacher.dtype": "bfloat16", "training.batch_size": 4096}


def sizes(length: int = 512, **changes: Any) -> StepSizes:
    return StepSizes(STUDENT, (TEACHER,), length, over_vocabulary=True, **changes)


def config(**changes: Any) -> Config:
    return with_overrides(Config(), {**BASE, **{name.replace("__", "."): value for name, value in changes.items()}})


# GiB by `distil-jax plan --on h100 --config distilbert_base_uncased`, with what is named changed.
PLANNED = {
    ("none", True, 512, 128): 14.673,
    ("none", True, 512, 32): 5.251,
    ("none", True, 128, 512): 12.189,
    ("none", False, 512, 512): 34.366,
    ("layer", True, 512, 1024): 39.291,
}


@pytest.mark.parametrize("case", PLANNED, ids=str)
def test_the_estimate_is_near_the_compilers_plan(case: tuple[str, bool, int, int]) -> None:
    remat, exact, length, rows = case
    given = config(training__remat=remat, training__exact_dropout=exact)
    with traced_for(H100):
        assert step_bytes(given, sizes(length), rows) / GIB == pytest.approx(PLANNED[case], rel=0.15)


def test_cut_models_keep_more_for_their_gradients() -> None:
    """By `distil-jax plan --on h100:8` of BERT-large to 12 of its layers, 64 rows of 512 at a time."""
    teacher = EncoderConfig("bert", 30522, 1024, 24, 16, 4096, 512)
    of = StepSizes(dataclasses.replace(teacher, num_layers=12), (teacher,), 512, over_vocabulary=True, devices=8)
    given = config(parallel__fsdp=True, parallel__teacher="fsdp", training__remat="none")
    with traced_for(H100):
        assert step_bytes(given, of, 64) / GIB == pytest.approx(31.489, rel=0.1)


def test_as_many_rows_as_fit_up_to_where_more_bring_nothing() -> None:
    for memory, expected in ((59, 128), (8, 49), (2, 3)):
        with traced_for(Device("cuda", (9, 0), memory * GIB)):
            found = settled(config(training__remat="none"), sizes())
            assert found.training.micro_batch_size == pytest.approx(expected, abs=3)
            if memory > 2:
                assert step_bytes(found, sizes(), found.training.micro_batch_size) <= memory * GIB


def test_layers_are_computed_again_only_where_hardly_anything_fits() -> None:
    for memory, expected in ((59, "none"), (16, "none"), (1.8, "layer")):
        with traced_for(Device("cuda", (9, 0), int(memory * GIB))):
            assert settled(config(), sizes()).training.remat == expected


def test_what_is_set_stays() -> None:
    with traced_for(H100):
        found = settled(config(training__micro_batch_size=7, training__remat="layer"), sizes())
    assert (found.training.micro_batch_size, found.training.remat) == (7, "layer")


def test_without_known_memory_and_where_rows_count_the_choice_is_the_same_everywhere() -> None:
    assert settled(config(), sizes()).training.micro_batch_size == DEFAULT_ROWS
    assert settled(config(), sizes()).training.remat == "none"
    with traced_for(H100):
        assert settled(config(objective__similarity=1.0), sizes()).training.micro_batch_size == DEFAULT_ROWS


def test_cut_models_leave_more_room() -> None:
    large = EncoderConfig("bert", 30522, 1024, 24, 16, 4096, 512)
    of = StepSizes(large, (large,), 128, devices=8)
    kept = config(training__remat="none")
    with traced_for(Device("cuda", (9, 0), 8 * GIB)):
        whole = settled(kept, of).training.micro_batch_size
        cut = settled(with_overrides(kept, {"parallel.fsdp": True, "parallel.teacher": "fsdp"}), of)
    assert cut.training.micro_batch_size > 2 * whole


def test_what_was_chosen_is_shown() -> None:
    with traced_for(H100):
        found = settled(config(), sizes())
        ((name, text),) = memory_text(found, sizes())
        chunk = chunk_size(128 * 512, 30522)
    assert name == "memory"
    for fact in ("of 59.0 GiB", "xla attention (cudnn without dropout)", f"chunks of {chunk:,} positions"):
        assert fact in text
    with traced_for(Device("tpu", memory=2 * GIB)):
        assert "run out" in memory_text(config(training__micro_batch_size=512), sizes())[0][1]
    assert memory_text(config(), sizes()) == ()
