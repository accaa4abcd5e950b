"""A checkpoint that is saved again, with what was measured since: one of both is there at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Optimizer
from distil_jax.training.checkpoint import SUPERSEDED, Checkpoints
from distil_jax.training.optimizer import make_optimizer
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import TrainState, init_state

BEFORE, AFTER = {"evaluations": {}, "steps": 9}, {"evaluations": {"3": {"score": 0.5}}, "steps": 9}


def state_of(step: int) -> TrainState:
    params = {"encoder": {"kernel": np.full((2, 3), step, np.float32)}}
    made: Any = init_state(params, make_optimizer(Optimizer(), 9), ("encoder",))
    return make_devices("shard_map", 2).replicate(made.replace(step=np.int32(step)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of checkpoints 1 and 3."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 3):
        checkpoints.save(state_of(step), BEFORE)
    checkpoints.close()
    return tmp_path / "checkpoints"


def assert_whole(folder: Path, metadata: dict[str, Any]) -> None:
    found = Checkpoints(folder, read_only=True)
    assert found.all_steps() == [1, 3]
    assert found.metadata(3)["evaluations"] == metadata["evaluations"]
    jax.tree.map(np.testing.assert_array_equal, found.restore(3, state_of(0)), state_of(3))


def test_the_same_state_with_other_metadata(folder: Path) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.replace(state_of(3), AFTER)
    assert not list((folder / SUPERSEDED).iterdir())
    checkpoints.close()
    assert_whole(folder, AFTER)


def test_one_that_was_put_aside_comes_back_where_the_process_was_killed(folder: Path) -> None:
    (folder / SUPERSEDED).mkdir()
    (folder / "3").rename(folder / SUPERSEDED / "3")
    Checkpoints(folder, keep=2).close()
    assert_whole(folder, BEFORE)


def test_one_that_was_saved_again_goes_where_the_process_was_killed(folder: Path, tmp_path: Path) -> None:
    other = Checkpoints(tmp_path / "other")
    other.save(state_of(3), AFTER)
    other.close()
    (folder / SUPERSEDED).mkdir()
    (folder / "3").rename(folder / SUPERSEDED / "3")
    (tmp_path / "other" / "3").rename(folder / "3")
    Checkpoints(folder, keep=2).close()
    assert_whole(folder, AFTER)
    assert not list((folder / SUPERSEDED).iterdir())
