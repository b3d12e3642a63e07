"""The processes that train one model together: what they must agree on, and what one hands to the others."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from llrflow.base.errors import SpecError
from llrflow.models.network import AXIS
from llrflow.program.devices import Devices

T = TypeVar("T")

LAG = 2
"""Steps between a vote and its count, so that no step waits for the one before it."""


class Group:
    """All processes that `jax.distributed` knows, or this one alone.

    Every process calls the same methods in the same order.
    """

    def __init__(self, devices: Devices) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self._devices = devices
        self._highest = devices.pmap(lambda vote: jax.lax.pmax(vote, AXIS))
        self._votes: deque[Any] = deque()

    def agree(self, parts: Mapping[str, str]) -> None:
        """Compare texts by name with those of the other processes. SpecError, in all of them, where one differs."""
        if self.count == 1:
            return
        sums = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32) for text in parts.values()]
        rows = np.asarray(multihost_utils.process_allgather(np.stack(sums)))
        differs = (rows != rows[0]).any(axis=-1)
        for process, part in np.argwhere(differs):
            self.leave()
            got = f"= {process} has another {list(parts)[part]} than process 0"
            raise SpecError("--process", got, "give every process the same spec, --set values, data and versions")

    def share(self, tree: T) -> T:
        """NumPy arrays of process 0, on all of them; the others give arrays of the same shapes."""
        return tree if self.count == 1 else multihost_utils.broadcast_one_to_all(tree)

    def stop_signal(self, mine: int | None) -> int | None:
        """The highest number of a signal that some process had got `LAG` calls ago; alone, its own at once."""
        if self.count == 1:
            return mine
        self._votes.append(self._highest(self._devices.replicate(np.int32(mine or 0))))
        return int(self._devices.fetch(self._votes.popleft())) or None if len(self._votes) > LAG else None

    def leave(self) -> None:
        """End the group, when all processes have come so far; each goes on alone."""
        if self.count > 1 and jax.distributed.is_initialized():
            jax.distributed.shutdown()
