"""Devices: the mesh, the mapping of a per-device function over it, and who feeds which rows.

`shard_map` under `jit` is the default, `pmap` the other; both map the same function and give the same bits. Under
`shard_map` parameters may be cut over the devices (FSDP; Rajbhandari et al. 2020, ZeRO-3): see `cut_axis`.
Global row r of a batch of B belongs to device r // (B / devices), devices ordered by process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distil_jax.config import Parallel
from distil_jax.errors import UserError
from distil_jax.hf import release_pages
from distil_jax.training.step import AXIS, WHOLE, Cut, FrozenInputs, TrainState, TrainStep


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run and the way functions are mapped over them."""

    mesh: Mesh
    mapping: str  # "shard_map" | "pmap"
    fsdp: bool = False  # whether the train state is cut over them
    teacher: str = "replicated"  # or "fsdp"

    @classmethod
    def of(cls, devices: Sequence[Any], mapping: str) -> Devices:
        """These devices, in this order."""
        return cls(Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)), mapping)

    @property
    def count(self) -> int:
        """Devices over all processes."""
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def local(self) -> list[Any]:
        """This process's devices, in mesh order."""
        return [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]

    def process_part(self, batch_size: int) -> slice:
        """Rows of a global batch that this process feeds."""
        per_device = batch_size // self.count
        mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == jax.process_index()]
        return slice(mine[0] * per_device, (mine[-1] + 1) * per_device)

    def replicate(self, tree: Any, *, cut: bool = False) -> Any:
        """Put a tree of arrays on every device. The caller's arrays stay valid when the result is donated.

        With `cut`, a device gets its part only of every array that has a `cut_axis`. Arrays that are views of a file on
        disk no longer take memory afterwards.
        """

        def place(path: Any, x: Any) -> Any:
            sharding = self._sharding(path, np.shape(x), cut=cut)
            if isinstance(x, jax.Array):
                x = np.array(x)  # else it might be placed as it is, and be donated with the result
            if sharding.is_fully_replicated:
                return jax.make_array_from_callback(np.shape(x), sharding, lambda _: x)
            return jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__)

        placed = jax.block_until_ready(jax.tree_util.tree_map_with_path(place, tree))
        release_pages(jax.tree.leaves(tree))
        return placed

    def place(
        self, state: TrainState, frozen: FrozenInputs, *, shapes: bool = False
    ) -> tuple[TrainState, FrozenInputs, Cut | None]:
        """A train state and what its steps read on the devices, and how they are cut; None where all is whole.

        With `shapes`, the trees are of shapes, and so are the results.
        """
        put = self.placed_shapes if shapes else self.replicate
        state, others = put(state, cut=self.fsdp), put(frozen._replace(teacher=None))
        frozen = others._replace(teacher=put(frozen.teacher, cut=self.teacher == "fsdp"))
        cut = Cut(cut_axes(state), cut_axes(frozen))
        return state, frozen, cut if any(axis != WHOLE for axis in jax.tree.leaves(cut)) else None

    @property
    def are_the_host(self) -> bool:
        """Whether the processor computes, no accelerator."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def steps_ahead(self) -> int:
        """Steps the host may be ahead of the devices: enough to hide its work, few enough to stop quickly.

        0 where it is the host that computes, which would only hold the buffers of several steps at once.
        """
        return 0 if self.are_the_host else 2

    def shard_batch(self, rows: Any) -> Any:
        """This process's rows of a global batch, [b, ...] or a tree of them, as the mapped function takes them."""
        if self.mapping == "pmap":
            return jax.tree.map(lambda x: x.reshape(len(self.local), -1, *x.shape[1:]), rows)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)

    def placed_shapes(self, tree: Any, *, cut: bool = False) -> Any:
        """The shapes of a tree as `replicate` places it."""

        def placed(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding(path, x.shape, cut=cut))

        return jax.tree_util.tree_map_with_path(placed, tree)

    def _sharding(self, path: Any, shape: tuple[int, ...], *, cut: bool) -> NamedSharding:
        return NamedSharding(self.mesh, _spec(cut_axis(path, shape, self.count) if cut else WHOLE))

    def sharded_shapes(self, rows: Any) -> Any:
        """The shapes of a global batch as `shard_batch` places it for `shard_map`."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), rows)

    def map_step(self, function: TrainStep, cut: Cut | None) -> Callable[..., Any]:
        """Map a train step over a state and frozen inputs that are cut like this; it donates the state."""
        if cut is None:
            return self.map(function, replicated=2, donate=(0,))
        state, frozen = (jax.tree.map(_spec, tree) for tree in cut)
        specs, results = (state, frozen, PartitionSpec(AXIS)), (state, PartitionSpec())
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=results, check_vma=False)
        return jax.jit(mapped, donate_argnums=0)

    def map(self, function: Callable[..., Any], *, replicated: int, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """Map `function(*replicated arguments, rows [b, ...])` over the devices; its results are equal on all of them.

        Args:
            function: per-device function; uses the axis name "data".
            replicated: how many arguments come before the rows.
            donate: arguments whose buffers the result may reuse.
        """
        if self.mapping == "pmap":
            axes = (None,) * replicated + (0,)
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=axes,
                out_axes=None,  # type: ignore[arg-type]
                devices=list(self.mesh.devices.flat),
                donate_argnums=donate,
            )
        specs = (PartitionSpec(),) * replicated + (PartitionSpec(AXIS),)
        # Replication is not checked so that gradients stay local until the one psum, as they do under pmap.
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return jax.jit(mapped, donate_argnums=donate)


# Which arrays are cut, by the last name of their path. LayerNorms and biases are a thousandth of a model.
_CUT = ("kernel", "embedding")


def cut_axis(path: Any, shape: tuple[int, ...], devices: int) -> int:
    """The axis of a parameter, or of its moments, that is cut over the devices: the first that they divide.

    `WHOLE` where there is none, or one device, or the parameter is not one that is cut.
    """
    name = getattr(path[-1], "key", "") if path else ""
    if devices == 1 or name not in _CUT:
        return WHOLE
    return next((axis for axis, size in enumerate(shape) if size % devices == 0), WHOLE)


def cut_axes(tree: Any) -> Any:
    """The axis over which every array of a placed tree is cut, `WHOLE` for none: a tree of int."""

    def axis(x: Any) -> int:
        spec = tuple(x.sharding.spec)
        return spec.index(AXIS) if AXIS in spec else WHOLE

    return jax.tree.map(axis, tree)


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis == WHOLE else PartitionSpec(*[None] * axis, AXIS)


def devices_of(parallel: Parallel) -> Devices:
    """The devices of a run by its settings. Raises as `make_devices`."""
    return dataclasses.replace(
        make_devices(parallel.mapping, parallel.devices), fsdp=parallel.fsdp, teacher=parallel.teacher
    )


def make_devices(mapping: str, count: int = 0) -> Devices:
    """All devices, or the first `count`, ordered by process.

    Raises:
        UserError: more devices asked for than there are.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count > len(found):
        raise UserError(f"parallel.devices = {count}: only {len(found)} devices are there ({found[0].platform})")
    if count and jax.process_count() > 1 and count != len(found):
        raise UserError(
            f"parallel.devices = {count}: with several processes all {len(found)} devices are used; leave it 0"
        )
    return Devices.of(found[: count or len(found)], mapping)


def check_batch(batch_size: int, devices: int) -> None:
    """Refuse a batch that the devices cannot share evenly."""
    if batch_size % devices:
        raise UserError(
            f"training.batch_size = {batch_size} is not a multiple of the {devices} devices; change it, or "
            "parallel.devices"
        )
