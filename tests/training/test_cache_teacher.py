"""Distillation from a cached teacher against the live one, and what a cache is refused for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import Config
from distil_jax.data.corpus import open_teacher_cache
from distil_jax.errors import UserError
from distil_jax.evaluation import check_folder
from distil_jax.runs import read_metrics
from distil_jax.training.cache_teacher import cache_teacher
from distil_jax.training.distill import distill

TOP = 52  # of the 53 tokens of the tiny world
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def cached(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of all tokens but one of the tiny world for the whole run, made in two goes on different devices."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    for steps, devices in ((5, 1), (12, 2)):
        changes = {"teacher.cache": str(folder), "teacher.top_k": TOP, "training.steps": steps}
        found = cache_teacher(tiny_config(Path(""), {**changes, "parallel.devices": devices}))
        assert found is not None and found.steps == steps
    return folder


def losses(folder: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row["metrics"] for row in read_metrics(folder, "train")}


def test_a_run_from_the_cache_is_the_run_next_to_the_teacher(
    cached: Path, tiny_config: Make, whole_run: Any, tmp_path: Path
) -> None:
    """The masks are the same ones; one token is not written, and float16 holds the hidden states."""
    distill(tiny_config(tmp_path / "run", {"teacher.cache": str(cached), "teacher.top_k": TOP}))
    found, expected = losses(tmp_path / "run"), losses(whole_run.folder)
    assert found.keys() == expected.keys()
    for step, row in found.items():
        for name, tolerance in (("loss_mlm", 1e-3), ("loss_cosine", 2e-3), ("loss_kl", 2e-3)):
            assert row[name] == pytest.approx(expected[step][name], rel=tolerance), (step, name)
    evaluations = read_metrics(tmp_path / "run", "validation")
    assert "mlm_loss" in evaluations[-1]["metrics"] and "kl" not in evaluations[-1]["metrics"]


def test_records_are_what_the_teacher_says_of_the_masked_rows(cached: Path, tiny_config: Make) -> None:
    cache = open_teacher_cache(cached)
    records = np.concatenate([cache.read(step, slice(0, 8)) for step in range(12)])
    ratios, tail = records["ratios"].astype(np.float64), records["tail"]
    assert (ratios[..., 0] == 1).all() and (np.diff(ratios, axis=-1) <= 0).all()
    assert (tail > 0).all() and (tail < 1).all()
    assert all(len(set(ids)) == TOP for ids in records["ids"].reshape(-1, TOP))
    assert [item.damaged for item in check_folder(cached)] == [False]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run.seed": 3}, "run.seed"),
        ({"training.batch_size": 16}, "training.batch_size"),
        ({"masking.probability": 0.3}, "masking.probability"),
        ({"objective.temperature": 1.0}, "objective.temperature"),
        ({"teacher.top_k": 20}, "teacher.top_k"),
        ({"objective.hidden": 1.0}, "objective.hidden"),
        ({"objective.logit_mse": 1.0}, "objective.logit_mse"),
        ({"training.steps": 13}, "12 steps"),
        ({"teacher.cache": "nowhere"}, "nowhere"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_cache_of_something_else_is_refused(
    cached: Path, tiny_config: Make, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    config = tiny_config(tmp_path / "run", {"teacher.cache": str(cached), "teacher.top_k": TOP, **changes})
    with pytest.raises(UserError, match=named):
        distill(config)
    assert not (tmp_path / "run").exists()


def test_another_cache_in_the_folder_is_refused_and_left_alone(cached: Path, tiny_config: Make) -> None:
    before = (cached / "teacher.json").read_bytes()
    with pytest.raises(UserError, match=r"run\.seed"):
        cache_teacher(tiny_config(Path(""), {"teacher.cache": str(cached), "teacher.top_k": TOP, "run.seed": 1}))
    assert (cached / "teacher.json").read_bytes() == before


def test_rows_that_the_teacher_does_not_take_are_refused(
    tiny_config: Make, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    changes = {"teacher.path": model_folder(max_position_embeddings=16), "teacher.top_k": 8}
    with pytest.raises(UserError, match="rows of 24 tokens"):
        cache_teacher(tiny_config(Path(""), {**changes, "teacher.cache": str(tmp_path / "cache")}))
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_predicted_positions_and_no_hidden_states(tiny_config: Make, tmp_path: Path) -> None:
    changes = {"objective.restrict_kl_to_mask": True, "objective.cosine": 0.0, "training.steps": 2}
    changes |= {"teacher.cache": str(tmp_path / "cache"), "teacher.top_k": 8, "parallel.mapping": "pmap"}
    found = cache_teacher(tiny_config(Path(""), {**changes, "parallel.devices": 2}))
    assert found is not None and found.dtype["ids"].shape == (4, 8) and "hidden" not in (found.dtype.names or ())
    with pytest.raises(UserError, match=r"objective\.cosine"):
        distill(tiny_config(tmp_path / "other", {**changes, "objective.cosine": 1.0}))
