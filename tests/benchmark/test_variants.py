from __future__ import annotations

import math
from typing import Any

import pytest

from distil_jax.benchmark.variants import CONFIGURED, VARIANTS, cells, stage_of
from distil_jax.config import BenchmarkArguments, Config, load_config, with_overrides
from distil_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("distilbert_base_uncased", "distill"),
        ("minilm_l3", "distill"),
        ("study_minilm_l3", "distill"),
        ("quickstart", "distill"),
        ("quickstart_teacher", "pretrain"),
        ("minilm_l3_teacher", "pretrain"),
        ("finetune", "finetune"),
        ("glue", "finetune"),
        ("minilm_tasks", "finetune"),
    ],
)
def test_every_shipped_configuration_tells_its_stage(name: str, stage: str) -> None:
    assert stage_of(load_config(name), "auto", given=True) == stage
    assert stage_of(load_config(name), "pretrain", given=True) == "pretrain"


def test_without_a_configuration_it_is_distillation() -> None:
    assert stage_of(Config(), "auto", given=False) == "distill"


def test_cells_are_lengths_times_variants_and_carry_their_settings() -> None:
    given = BenchmarkArguments(lengths=(16, 1024), variants=("packed", "padded"))
    found = cells(Config(), "distill", given, "cpu")
    assert [(cell.length, cell.variant) for cell in found] == [
        (16, "packed"),
        (16, "padded"),
        (1024, "packed"),
        (1024, "padded"),
    ]
    assert [cell.config.corpus.pack for cell in found] == [True, False, True, False]
    assert [cell.config.corpus.sequence_length for cell in found] == [16, 16, 1024, 1024]
    assert found[-1].config.model.max_position_embeddings == 1024


def test_as_configured_changes_nothing() -> None:
    config = load_config("minilm_l3")
    (cell,) = cells(config, "distill", BenchmarkArguments(), "cpu")
    assert (cell.variant, cell.config) == (CONFIGURED, config)
    for task, length in (("squad", 384), ("mrpc", 128), ("", 128)):
        config = load_config("finetune", {"task.name": task})
        (cell,) = cells(config, "finetune", BenchmarkArguments(), "cpu")
        assert (cell.config, cell.length) == (config, length)
        (cell,) = cells(config, "finetune", BenchmarkArguments(lengths=(64,)), "cpu")
        assert (cell.config.task.max_length, cell.length) == (64, 64)


def test_all_holds_what_the_hardware_and_the_stage_have() -> None:
    def names(stage: str, platform: str) -> set[str]:
        return {cell.variant for cell in cells(Config(), stage, BenchmarkArguments(variants=("all",)), platform)}  # type: ignore[arg-type]

    assert names("distill", "cpu") >= {CONFIGURED, "packed", "padded", "bfloat16", "masked-kl"}
    assert "attention-cudnn" not in names("distill", "cpu")
    assert "attention-cudnn" in names("distill", "gpu")
    assert not names("finetune", "cpu") & {"packed", "padded", "masked-kl"}
    assert "masked-kl" not in names("pretrain", "cpu")


def test_own_variants_are_settings() -> None:
    text = "training.compute_dtype=bfloat16+training.micro_batch_size=8+student.layers=[1, 3]"
    (cell,) = cells(Config(), "distill", BenchmarkArguments(variants=(text,)), "cpu")
    assert cell.config.training.compute_dtype == "bfloat16"
    assert cell.config.training.micro_batch_size == 8
    assert cell.config.student.layers == (1, 3)


@pytest.mark.parametrize(
    ("stage", "variant", "said"),
    [
        ("distill", "quick", "not one of all, configured, plain"),
        ("finetune", "packed", "no effect on finetune"),
        ("distill", "kernel", "not one of all, configured, plain"),
        ("pretrain", "masked-kl", "no effect on pretrain"),
        ("distill", "trainin.steps=3", "trainin"),
    ],
)
def test_variants_that_are_none(stage: str, variant: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cells(Config(), stage, BenchmarkArguments(variants=(variant,)), "cpu")  # type: ignore[arg-type]


def test_a_variant_of_another_version_is_left_out_of_all_and_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "future", {"training.warp": True})
    assert "future" not in {c.variant for c in cells(Config(), "distill", BenchmarkArguments(variants=("all",)), "cpu")}
    with pytest.raises(UserError, match="no training.warp"):
        cells(Config(), "distill", BenchmarkArguments(variants=("future",)), "cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"repeats": 1}, {"steps": -1}, {"vocabulary": 3}, {"lengths": (4,)}, {"output": "."}),
        *({"memory": number, "fill": True} for number in (-1.0, math.nan, math.inf)),
        {"memory": 8.0},
    ],
)
def test_arguments_out_of_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        BenchmarkArguments(**wrong)


def test_changes_of_settings_keep_the_rest() -> None:
    config = with_overrides(Config(), {"run.seed": 7})
    (cell,) = cells(config, "distill", BenchmarkArguments(lengths=(64,)), "cpu")
    assert cell.config.run.seed == 7
