"""Checkpoints: every bit and its placement come back, old ones go, half ones do not count."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Optimizer
from distil_jax.errors import UserError
from distil_jax.training.checkpoint import FORMAT, Checkpoints
from distil_jax.training.optimizer import make_optimizer
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import TrainState, init_state

METADATA = {"model_file": "ab" * 32, "note": "ß\n", "steps": 30}


def make_state(step: int, seed: int = 0) -> TrainState:
    """A state whose every leaf is drawn, on all devices, with odd values among the floats."""
    random = np.random.default_rng(seed)
    odd = np.array([np.nan, np.inf, -0.0, 1e-42], np.float32)
    params = {
        "encoder": {"kernel": np.zeros((3, 5), np.float32), "bias": odd},
        "mlm_head": {"bias": np.zeros(7, np.float32)},
    }
    state = init_state(params, make_optimizer(Optimizer(), 10), ("mlm_head",))

    def draw(leaf: Any) -> np.ndarray:
        values = random.standard_normal(np.shape(leaf)) * 100
        return odd if np.shape(leaf) == odd.shape else values.astype(np.asarray(leaf).dtype)

    drawn = jax.tree.map(draw, state)
    return make_devices("shard_map").replicate(drawn.replace(step=jnp.asarray(step, jnp.int32)))


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of steps 10, 20, 30, of which two are kept."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest_step() is None
    for step in (10, 20, 30):
        checkpoints.save(make_state(step, seed=step), {**METADATA, "at": step})
    checkpoints.close()
    return folder


def test_the_newest_are_kept_and_the_others_leave_nothing(saved: Path) -> None:
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.all_steps() == [20, 30]
    assert checkpoints.latest_step() == 30
    assert {entry.name for entry in saved.iterdir()} == {"20", "30"}


def test_a_state_comes_back_with_every_bit_and_its_placement(saved: Path) -> None:
    """NaN, infinities, -0 and denormals too; on all devices, whatever the state to be replaced holds."""
    restored = Checkpoints(saved, read_only=True).restore(20, make_state(0, seed=1))
    assert_same_bits(restored, make_state(20, seed=20))
    assert len(restored.params["encoder"]["kernel"].sharding.device_set) == 8


def test_a_state_can_be_restored_to_other_devices(saved: Path) -> None:
    few = make_devices("shard_map", 2).replicate(jax.tree.map(np.asarray, make_state(0)))
    restored = Checkpoints(saved, read_only=True).restore(30, few)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {2}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored), make_state(30, seed=30))


def test_a_state_that_is_cut_over_devices_is_one_for_every_layout(tmp_path: Path) -> None:
    """8 devices cut -> 1 whole, 2 cut, 8 whole, and back: every bit, its placement, the same hashes."""
    state = jax.tree.map(np.asarray, make_state(7))
    kernel = np.arange(48, dtype=np.float32).reshape(8, 6)
    state = state.replace(params={**state.params, "encoder": {"kernel": kernel}})
    layouts = [
        make_devices("shard_map", count).replicate(state, cut=cut) for count, cut in ((8, True), (1, False), (2, True))
    ]
    assert layouts[0].params["encoder"]["kernel"].addressable_shards[0].data.shape == (1, 6)
    hashes = []
    for number, placed in enumerate(layouts):
        checkpoints = Checkpoints(tmp_path / str(number))
        checkpoints.save(placed, METADATA)
        checkpoints.close()
        hashes.append((tmp_path / str(number) / "7" / "hashes" / "metadata").read_bytes())
        for like in layouts:
            assert_same_bits(Checkpoints(tmp_path / str(number), read_only=True).restore(7, like), like)
    assert hashes[0] == hashes[1] == hashes[2]


def test_parameters_and_metadata_without_the_rest(saved: Path) -> None:
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.metadata(30) == {**METADATA, "at": 30, "format": FORMAT}
    expected = make_state(20, seed=20).params
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), expected)
    params = checkpoints.params(20, like)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {here}


def test_reading_changes_nothing(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.all_steps() == [20, 30]
    checkpoints.metadata(30)
    checkpoints.close()
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_saves_and_deletions_that_were_killed_half_way_do_not_count(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "40.orbax-checkpoint-tmp" / "metadata")
    shutil.copytree(folder / "20", folder / "trash" / "5")
    shutil.rmtree(folder / "trash" / "5" / "params")
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest_step() == 30
    checkpoints.save(make_state(40, seed=40), METADATA)
    checkpoints.close()
    assert {entry.name for entry in folder.iterdir()} == {"30", "40"}
    assert_same_bits(Checkpoints(folder).restore(40, make_state(0)), make_state(40, seed=40))


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(make_state(1, seed=1), METADATA)
    checkpoints.save(make_state(1, seed=2), METADATA)
    checkpoints.close()
    assert_same_bits(Checkpoints(tmp_path / "checkpoints").restore(1, make_state(0)), make_state(1, seed=1))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing/checkpoints: no checkpoints here"):
        Checkpoints(tmp_path / "nothing" / "checkpoints", read_only=True)
    assert not (tmp_path / "nothing").exists()


def test_the_best_is_kept_besides_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step, best in ((10, 10), (20, 20), (30, 20), (40, 20)):
        checkpoints.save(make_state(step), METADATA, best=best)
    checkpoints.close()
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).all_steps() == [20, 40]
    resumed = Checkpoints(tmp_path / "checkpoints", keep=1)
    resumed.save(make_state(50), METADATA, best=50)
    resumed.close()
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).all_steps() == [50]


def test_a_file_where_the_checkpoints_belong(tmp_path: Path) -> None:
    """It is said at once, not at the first save."""
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(UserError, match="checkpoints: is a file, where the checkpoints belong; move it away"):
        Checkpoints(tmp_path / "checkpoints")
