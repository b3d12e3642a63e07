"""The only file that names pmap: replication, sharding, fetching, and one device per core on CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llrflow.errors import SpecError
from llrflow.models.network import AXIS

T = TypeVar("T")


class Devices:
    """The local devices that a program runs on, in one pmap axis."""

    def __init__(self, count: int | None = None) -> None:
        """`count` devices, or all; on CPU one per core, which must be settled before JAX's backend starts.

        Raises SpecError when fewer devices exist.
        """
        with contextlib.suppress(RuntimeError):  # raised once a backend runs: then its devices are what there is
            jax.config.update("jax_num_cpu_devices", max(count or 1, len(os.sched_getaffinity(0))))
        available = jax.local_devices()
        if count is not None and count > len(available):
            raise SpecError(
                "devices.count",
                f"= {count} but JAX started with {len(available)} {available[0].platform} device(s)",
                f"ask for at most {len(available)}, or for none to use all",
            )
        self.all = available[:count]
        self.platform = self.all[0].platform
        self._sharding = NamedSharding(Mesh(np.array(self.all), (AXIS,)), PartitionSpec(AXIS))

    def __len__(self) -> int:
        return len(self.all)

    def pmap(self, fn: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function on every device; arguments and results carry a leading device axis [D, ...]."""
        return jax.pmap(fn, axis_name=AXIS, devices=self.all, donate_argnums=donate)

    def replicate(self, tree: T) -> T:
        """Each array copied to every device: [...] -> [D, ...]."""
        return jax.tree.map(self._copies, tree)

    def shard(self, tree: T) -> T:
        """Host arrays split over devices: [B, ...] -> [D, B/D, ...]."""
        count = len(self)
        split = jax.tree.map(lambda a: a.reshape(count, len(a) // count, *a.shape[1:]), tree)
        return jax.device_put(split, self._sharding)

    def fetch(self, tree: T) -> T:
        """One copy of replicated arrays as NumPy: [D, ...] -> [...]."""
        return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data)[0], tree)

    def gather(self, tree: T) -> T:
        """Sharded arrays as NumPy: [D, B/D, ...] -> [B, ...]."""
        return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), tree)

    def _copies(self, array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.device_put(np.broadcast_to(array, (len(self), *array.shape)), self._sharding)
