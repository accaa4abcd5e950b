"""Devices: the mesh, the mapping of a per-device function over it, and who feeds which rows.

`shard_map` under `jit` is the default, `pmap` the other; both map the same function and give the same bits.
Global row r of a batch of B belongs to device r // (B / devices), devices ordered by process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distil_jax.errors import UserError
from distil_jax.hf import release_pages
from distil_jax.training.step import AXIS


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run and the way functions are mapped over them."""

    mesh: Mesh
    mapping: str  # "shard_map" | "pmap"

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

    def replicate(self, tree: Any) -> Any:
        """Put a tree of host arrays on every device. The caller's arrays stay valid when the result is donated.

        Those that are views of a file on disk no longer take memory afterwards.
        """

        def place(x: Any) -> Any:
            return jax.make_array_from_callback(np.shape(x), self.replicated, lambda _: x)

        placed = jax.block_until_ready(jax.tree.map(place, tree))
        release_pages(jax.tree.leaves(tree))
        return placed

    @property
    def are_the_host(self) -> bool:
        """Whether the processor computes, no accelerator."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def steps_ahead(self) -> int:
        """Steps the host may be ahead of the devices: enough to hide its work, few enough to stop quickly.

        None where it is the host that computes, which would only hold the buffers of several steps at once.
        """
        return 0 if self.are_the_host else 2

    def shard_batch(self, rows: Any) -> Any:
        """This process's rows of a global batch, [b, ...] or a tree of them, as the mapped function takes them."""
        if self.mapping == "pmap":
            return jax.tree.map(lambda x: x.reshape(len(self.local), -1, *x.shape[1:]), rows)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)

    def placed_shapes(self, tree: Any) -> Any:
        """The shapes of a tree as `replicate` places it."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def sharded_shapes(self, rows: Any) -> Any:
        """The shapes of a global batch as `shard_batch` places it for `shard_map`."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), rows)

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
