"""Damage to checkpoints: named, put aside; the one before is used, or nothing (tests/test_damage.py: at random)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Optimizer
from distil_jax.errors import FaultError
from distil_jax.training.checkpoint import CORRUPT, FORMAT, Checkpoints
from distil_jax.training.integrity import DamagedError, leaf_hashes, refuse_damage, unreadable_part
from distil_jax.training.optimizer import make_optimizer
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import TrainState, init_state


def state_of(step: int) -> TrainState:
    noise = np.random.default_rng(step)
    params = {"encoder": {"kernel": noise.standard_normal((40, 30)).astype(np.float32)}, "head": {"bias": np.ones(7)}}
    state = init_state(params, make_optimizer(Optimizer(), 10), ("encoder", "head"))
    state = jax.tree.map(lambda x: np.asarray(x, np.float32) + np.float32(step), state)
    return make_devices("shard_map", 1).replicate(state.replace(step=np.int32(step)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(state_of(step), {"steps": 9, "at": step})
    checkpoints.close()
    return folder


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def check_resumed(folder: Path, what: str) -> bool:
    """Whether step 2 comes back as it was saved; otherwise step 1 must, with step 2 put aside."""
    found = Checkpoints(folder, keep=2).resume(state_of(0))
    assert found is not None, what
    state, metadata = found
    step = int(state.step)
    assert step in (1, 2), what
    assert metadata == {"steps": 9, "at": step, "format": FORMAT}, what
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=what)
    assert (folder / CORRUPT / "2").is_dir() == (step == 1), what
    return step == 2


def test_the_line_names_step_and_leaf(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    checkpoints = Checkpoints(folder, keep=2)
    restore = checkpoints._manager.restore

    def flipped(step: int, args: Any) -> Any:
        found = restore(step, args=args)
        if step == 2 and "params" in found:
            found["params"]["encoder"]["kernel"] = found["params"]["encoder"]["kernel"].at[3, 4].add(1e-6)
        return found

    monkeypatch.setattr(checkpoints._manager, "restore", flipped)
    with caplog.at_level(logging.WARNING, logger="distil_jax"):
        found = checkpoints.resume(state_of(0))
    assert found is not None
    assert int(found[0].step) == 1
    assert "step 2: encoder.kernel is not what was saved; moved to corrupt/" in caplog.text


def test_with_every_checkpoint_damaged_nothing_starts_anew(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in ("1", "2"):
        for path in files_of(folder / step):
            path.write_bytes(b"")
    with pytest.raises(FaultError, match=r"no checkpoint is whole \(step 2: .*step 1: "):
        Checkpoints(folder, keep=2).resume(state_of(0))
    assert sorted(path.name for path in (folder / CORRUPT).iterdir()) == ["1", "2"]


def test_a_checkpoint_without_hashes_is_not_trusted(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "2" / "hashes")
    assert not check_resumed(folder, "hashes removed")


def test_an_empty_folder_is_no_fault(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints", keep=1).resume(state_of(0)) is None


@pytest.mark.parametrize("change", ["value", "shape", "type", "missing", "more"])
def test_hashes_tell_every_change(change: str) -> None:
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    hashes = leaf_hashes(tree)
    other = dict(tree)
    if change == "value":
        other["a"] = np.array([[0, 0, 0], [0, 0, -0.0]], np.float32)
    elif change == "shape":
        other["a"] = np.zeros((3, 2), np.float32)
    elif change == "type":
        other["a"] = np.zeros((2, 3), np.int32)
    elif change == "missing":
        other.pop("b")
    else:
        other["c"] = np.zeros(1)
    with pytest.raises(DamagedError, match="step 5: [abc] is not"):
        refuse_damage(5, hashes, leaf_hashes(other))


@pytest.fixture
def step(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint."""
    return shutil.copytree(tiny_run / "checkpoints" / "2", tmp_path / "2")


def test_a_whole_one(step: Path) -> None:
    assert unreadable_part(step) is None


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("hashes/metadata", "hashes"),
        ("metadata/metadata", "metadata"),
        ("params/_METADATA", "params/_METADATA"),
        ("optimizer/_sharding", "optimizer/_sharding"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_file_is_named(file: str, part: str, damage: str, step: Path) -> None:
    if damage == "missing":
        (step / file).unlink()
    else:
        (step / file).write_text("{")
    found = unreadable_part(step)
    assert found is not None
    assert found[0] == part


def test_a_leaf_is_named(step: Path) -> None:
    """All data of the parameters are gone."""
    for path in (step / "params").rglob("d"):
        shutil.rmtree(path)
    found = unreadable_part(step)
    assert found is not None
    assert found[0].startswith(("encoder.", "mlm_head."))
