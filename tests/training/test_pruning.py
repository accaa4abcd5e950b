"""Magnitude pruning: the schedule, the masks, and the same bits after a resumption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Config, Pruning, with_overrides
from distil_jax.errors import UserError
from distil_jax.training.finetune import finetune
from distil_jax.training.pruning import magnitude_constraint, sparsity_at, steps_before_pruned

SETTINGS: dict[str, Any] = {"sparsity": 0.75, "begin": 0.1, "end": 0.6, "every_steps": 5}


def pruning(**more: Any) -> Config:
    return with_overrides(Config(), {f"pruning.{name}": value for name, value in {**SETTINGS, **more}.items()})


def test_the_schedule_is_the_papers() -> None:
    """s_t = s_f (1 - (1 - (t - t_0) / (n Dt))^3), with an initial sparsity of 0."""
    settings = Pruning(**SETTINGS)
    steps = np.arange(120)
    found = np.array([float(sparsity_at(settings, 100, int(step))) for step in steps])
    inside = np.clip((steps - 10) / 50, 0, 1)
    np.testing.assert_allclose(found, 0.75 * (1 - (1 - inside) ** 3), atol=1e-6)


def params(random: np.random.Generator) -> dict[str, Any]:
    def dense(*shape: int) -> dict[str, Any]:
        drawn = (random.standard_normal(size) for size in (shape, shape[1:]))
        return dict(zip(("kernel", "bias"), (jnp.asarray(x, jnp.float32) for x in drawn), strict=True))

    encoder = {"layer_0": {"query": dense(8, 8), "ffn_in": dense(8, 16)}, "pooler": dense(8, 8)}
    return {"encoder": encoder, "task_head": {"output": dense(8, 2)}}


def test_the_smallest_weights_go_and_stay_away() -> None:
    constrain = magnitude_constraint(pruning(), 100)
    assert constrain is not None
    constrain, random = jax.jit(constrain), np.random.default_rng(0)
    state = params(random)
    gone_before, shares = None, []
    for step in range(100):
        moved = jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape).astype(np.float32), state)
        after = constrain(jnp.int32(step), state, moved)
        kernel, free = (tree["encoder"]["layer_0"]["ffn_in"]["kernel"] for tree in (after, moved))
        gone = np.asarray(kernel == 0)
        if gone_before is not None:
            assert (gone | ~gone_before).all()  # nothing comes back
        np.testing.assert_array_equal(kernel, np.where(gone, 0, free))
        if step % 5 == 0 and 10 < step <= 60:  # the smallest of those that were left
            target = int(float(sparsity_at(Pruning(**SETTINGS), 100, step)) * gone.size)
            assert gone.sum() == target
            new = gone & ~(gone_before if gone_before is not None else False)
            if new.any():
                assert np.abs(free)[new].max() <= np.abs(free)[~gone].min()
        shares.append(gone.mean())
        for untouched in ("task_head", ("encoder", "pooler"), ("encoder", "layer_0", "query", "bias")):
            path = (untouched,) if isinstance(untouched, str) else untouched
            one, other = after, moved
            for name in path:
                one, other = one[name], other[name]
            jax.tree.map(np.testing.assert_array_equal, one, other)
        state, gone_before = after, gone
    assert shares[9] == 0 and shares[60] == shares[-1] == 0.75


def test_nothing_is_pruned_unless_asked_for() -> None:
    assert magnitude_constraint(Config(), 100) is None
    assert float(sparsity_at(Pruning(sparsity=0.5, begin=0.9, end=0.5), 100, 50)) == 0.5
    for changes in ({"model.initial": "x", "model.freeze_encoder": True}, {"parallel.fsdp": True}):
        with pytest.raises(UserError, match=[*changes][-1]):
            with_overrides(pruning(), changes)


def test_the_best_checkpoint_has_all_zeros(task_config: Callable[..., Config], tmp_path: Path) -> None:
    changes = {f"pruning.{name}": value for name, value in {**SETTINGS, "every_steps": 1}.items()}
    changes |= {"training.steps": 6, "evaluation.every_steps": 1, "optimizer.learning_rate": 1e-9}
    found = finetune(task_config("classification", tmp_path / "run", changes)).result
    assert found.best_step > steps_before_pruned(Pruning(**SETTINGS), 6) > 0
    assert float(sparsity_at(Pruning(**SETTINGS), 6, found.best_step - 1)) == 0.75


def test_a_resumed_run_has_the_same_bits_and_masks(task_config: Callable[..., Config], tmp_path: Path) -> None:
    more = {f"pruning.{name}": value for name, value in {**SETTINGS, "every_steps": 1}.items()}
    more |= {"checkpoint.every_steps": 2, "checkpoint.keep": 10, "finetune.keep": "last", "training.steps": 8}
    config = task_config("classification", tmp_path / "run", more)
    whole = finetune(config).result.state.params
    shares = [
        np.mean(np.asarray(leaf) == 0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(whole["encoder"])
        if path[0].key.startswith("layer_") and path[-1].key == "kernel"
    ]
    np.testing.assert_allclose(shares, 0.75, atol=0.01)
    for step in ("6", "8"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    (tmp_path / "run" / "result.json").unlink()
    again = finetune(config).result
    assert again.resumed_from == 4
    jax.tree.map(np.testing.assert_array_equal, again.state.params, whole)
