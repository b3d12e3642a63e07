"""The only file that names pmap: replication, sharding, fetching, and one device per core on CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llrflow.base.compilations import keep_compilations
from llrflow.base.errors import LlrflowError, SpecError
from llrflow.models.network import AXIS

T = TypeVar("T")


class Devices:
    """The devices that a program runs on, in one pmap axis: this process's own, or those of all processes of a group.

    Arrays are this process's part always: their leading axis is that of its own devices, or of its own examples.
    """

    def __init__(self, count: int | None = None, together: bool = False) -> None:
        """`count` devices, or all; on CPU one per core, which must be settled before JAX's backend starts.

        `together` takes as many from every process that `jax.distributed` knows, which must have equally many.
        Raises SpecError when fewer devices exist.
        """
        keep_compilations()
        with contextlib.suppress(RuntimeError):  # raised once a backend runs: then its devices are what there is
            jax.config.update("jax_num_cpu_devices", max(count or 1, len(os.sched_getaffinity(0))))
        available = jax.local_devices()
        if count is not None and count > len(available):
            raise SpecError(
                "devices.count",
                f"= {count} but JAX started with {len(available)} {available[0].platform} device(s)",
                f"ask for at most {len(available)}, or for none to use all",
            )
        self.own = available[:count]
        self.all = _of_every_process(count) if together else self.own
        self.platform = self.own[0].platform
        self._sharding = NamedSharding(Mesh(np.array(self.own), (AXIS,)), PartitionSpec(AXIS))

    def __len__(self) -> int:
        """Devices of all processes."""
        return len(self.all)

    def alone(self) -> Devices:
        """This process's devices without those of the others."""
        return self if self.all == self.own else Devices(len(self.own))

    def pmap(self, fn: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function on every device; arguments and results carry a leading axis of this process's devices.

        Raises LlrflowError for the devices of several processes where JAX has no pmap.
        """
        if jax.process_count() > 1 and self.all == self.own:
            return self._mapped(fn, donate)
        if not hasattr(jax, "pmap"):
            if self.all != self.own:
                raise LlrflowError(f"JAX {jax.__version__} has no pmap, which several processes train by; use an older")
            return self._mapped(fn, donate)
        return jax.pmap(fn, axis_name=AXIS, devices=self.all, donate_argnums=donate)

    def replicate(self, tree: T) -> T:
        """Each array copied to every device of this process: [...] -> [D, ...]."""
        return jax.tree.map(self._copies, tree)

    def shard(self, tree: T) -> T:
        """Host arrays split over devices of this process: [B, ...] -> [D, B/D, ...]."""
        count = len(self.own)
        split = jax.tree.map(lambda a: a.reshape(count, len(a) // count, *a.shape[1:]), tree)
        return jax.device_put(split, self._sharding)

    def ended(self, tree: T) -> T:
        """The arrays; on several devices of a CPU, once the computation that makes them has ended.

        What computes means over devices is given these. There at most 32 calls may be on their way to a device, and
        when one device is that far ahead of another, XLA lets neither go on.
        """
        return jax.block_until_ready(tree) if self.platform == "cpu" and len(self.own) > 1 else tree

    def fetch(self, tree: T) -> T:
        """One copy of replicated arrays as NumPy: [D, ...] -> [...]."""
        # All copies are begun before one is waited for.
        first = jax.device_get(jax.tree.map(lambda a: a.addressable_shards[0].data, tree))
        return jax.tree.map(lambda a: a[0], first)

    def gather(self, tree: T) -> T:
        """Sharded arrays as NumPy: [D, B/D, ...] -> [B, ...]."""
        return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), tree)

    def _mapped(self, fn: Callable[..., Any], donate: tuple[int, ...]) -> Callable[..., Any]:
        """What pmap does, which with several processes cannot be lowered for abstract arguments."""

        def on_each(*arguments: Any) -> Any:
            result = fn(*jax.tree.map(lambda a: a[0], arguments))
            return jax.tree.map(lambda a: a[None], result)

        spec, mesh = self._sharding.spec, self._sharding.mesh
        mapped = jax.shard_map(on_each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        where = self._sharding
        return jax.jit(mapped, donate_argnums=donate, in_shardings=where, out_shardings=where)

    def _copies(self, array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.device_put(np.broadcast_to(array, (len(self.own), *array.shape)), self._sharding)


def _of_every_process(count: int | None) -> list[Any]:
    """The first `count` devices of every process, or all, process after process."""
    found = [[d for d in jax.devices() if d.process_index == process] for process in range(jax.process_count())]
    sizes = [len(devices[:count]) for devices in found]
    if len(set(sizes)) > 1:
        got = f"= none takes all, but the processes have {', '.join(map(str, sizes))}"
        raise SpecError("devices.count", got, f"set it to {min(sizes)}, for each process")
    return [device for devices in found for device in devices[:count]]
