"""Devices: who feeds which rows, how arrays are placed, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Optimizer, Parallel
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.training import parallel
from distil_jax.training.optimizer import make_optimizer
from distil_jax.training.parallel import check_batch, make_devices
from distil_jax.training.step import AXIS, FrozenInputs, init_state

SIZES = EncoderConfig("bert", 600, 256, 2, 4, 1024, 32, type_vocab_size=2)


class FakeDevice:
    """A device as far as its place in a cluster goes."""

    platform = "cpu"

    def __init__(self, number: int, process: int) -> None:
        self.id, self.process_index = number, process


class FakeMesh:
    """A mesh over devices that are not there."""

    def __init__(self, devices: np.ndarray, *_: Any, **__: Any) -> None:
        self.devices, self.size = devices, devices.size


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    """Three processes of two devices each, told in disorder; this is the middle one."""
    found = [FakeDevice(number, number // 2) for number in (4, 0, 3, 5, 1, 2)]
    monkeypatch.setattr(parallel, "Mesh", FakeMesh)
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return found


def test_a_process_feeds_the_rows_of_its_own_devices(cluster: list[FakeDevice]) -> None:
    devices = make_devices("shard_map")
    assert [device.id for device in devices.mesh.devices.flat] == [0, 1, 2, 3, 4, 5]
    assert [device.id for device in devices.local] == [2, 3]
    assert devices.process_part(24) == slice(8, 16)


def test_the_parts_of_all_processes_make_up_the_batch(
    cluster: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        part = make_devices("shard_map").process_part(18)
        rows += range(18)[part]
    assert rows == list(range(18))


def test_several_processes_use_all_their_devices(cluster: list[FakeDevice]) -> None:
    assert make_devices("shard_map", 6).count == 6
    with pytest.raises(UserError, match="parallel.devices = 2: with several processes all 6 devices are used"):
        make_devices("shard_map", 2)


def test_one_process_feeds_everything() -> None:
    devices = make_devices("shard_map")
    assert (devices.count, devices.process_part(32)) == (8, slice(0, 32))
    few = make_devices("pmap", 2)
    assert (few.count, few.local, few.process_part(32)) == (2, jax.devices()[:2], slice(0, 32))


def test_more_devices_than_there_are() -> None:
    with pytest.raises(UserError, match=re.escape("parallel.devices = 9: only 8 devices are there (cpu)")):
        make_devices("shard_map", 9)


def test_a_batch_is_shared_evenly() -> None:
    check_batch(96, 8)
    with pytest.raises(UserError, match="training.batch_size = 100 .* 8 devices"):
        check_batch(100, 8)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_rows_go_to_their_devices_and_results_are_on_all(mapping: str) -> None:
    """Row r of B belongs to device r // (B / devices), in both mappings."""
    devices = make_devices(mapping, 4)
    rows = np.arange(24, dtype=np.uint16).reshape(8, 3)

    def function(weight: Any, ids: Any) -> Any:
        assert ids.shape == (2, 3)
        mine = jnp.sum(ids.astype(jnp.float32)) * weight["scale"]
        return jax.lax.psum(jnp.zeros(4).at[jax.lax.axis_index(AXIS)].set(mine), AXIS)

    placed = devices.replicate({"scale": np.float32(0.5)})
    found = devices.map(function, replicated=1)(placed, devices.shard_batch(rows))
    np.testing.assert_array_equal(found, [0.5 * part.sum() for part in np.split(rows, 4)])
    assert len(found.sharding.device_set) == 4
    assert found.is_fully_replicated


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_what_was_replicated_outlives_the_donation_of_its_copies(mapping: str) -> None:
    devices = make_devices(mapping, 2)
    mine = np.arange(3, dtype=np.float32)
    step = devices.map(lambda state, rows: state + jnp.sum(rows), replicated=1, donate=(0,))
    # Rows of zeros: the result is equal on all devices without a reduction.
    state = devices.replicate(mine)
    assert (state.dtype, len(state.sharding.device_set)) == (np.float32, 2)
    for _ in range(2):
        state = step(state, devices.shard_batch(np.zeros((2, 3), np.float32)))
    np.testing.assert_array_equal(state, mine)
    np.testing.assert_array_equal(mine, [0, 1, 2])


def test_a_device_holds_an_eighth_of_what_is_cut() -> None:
    """Parameters and moments of a model whose biases are few, and a teacher; each by its own setting."""
    shapes = jax.eval_shape(lambda: MaskedLM(SIZES).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    state = init_state(params, make_optimizer(Optimizer(), 10), ("encoder", "mlm_head"))
    frozen = FrozenInputs(np.int32(0), params, np.zeros(SIZES.vocab_size, np.float32))

    def held(tree: Any) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    def whole(tree: Any) -> int:
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))

    for fsdp, teacher in ((True, "replicated"), (False, "fsdp"), (True, "fsdp")):
        devices = dataclasses.replace(make_devices("shard_map"), fsdp=fsdp, teacher=teacher)
        placed, constants, cut = devices.place(state, frozen)
        assert cut is not None
        assert held(placed) == pytest.approx(whole(state) / (8 if fsdp else 1), rel=0.1)
        assert held(constants.teacher) == pytest.approx(whole(params) / (8 if teacher == "fsdp" else 1), rel=0.1)
    assert make_devices("shard_map").place(state, frozen)[2] is None


def test_pmap_cuts_nothing() -> None:
    with pytest.raises(UserError, match=r"parallel\.mapping = pmap"):
        Parallel(mapping="pmap", fsdp=True)


def test_the_host_does_not_run_ahead_of_itself() -> None:
    """Every step that waits for its turn holds buffers of its own, and the host computes all of them."""
    assert make_devices("shard_map", 1).steps_ahead == 0


def test_the_callers_arrays_outlive_what_is_donated() -> None:
    devices = make_devices("shard_map", 1)
    for given in (jnp.ones((8, 4)), np.ones((8, 4), np.float32)):
        placed = devices.replicate({"x": given})["x"]
        jax.jit(lambda x: x + 1, donate_argnums=0)(placed)
        np.testing.assert_array_equal(given, np.ones((8, 4)))
