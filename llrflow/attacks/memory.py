"""How many examples an attack takes at a time: as many as fit in memory."""

from __future__ import annotations

from typing import Any, Literal

import jax

from llrflow.attacks.network import Examples, Placement
from llrflow.attacks.program import AttackProgram
from llrflow.attacks.search import WINDOW
from llrflow.base.errors import SpecError


def fitting_batch(
    program: AttackProgram,
    size: int,
    variables: Any,
    searched: Any,
    example: Examples,
    budget: int | Literal["auto"],
) -> int:
    """The largest batch, `size` halved as often as needed, whose attack stays within `budget` bytes on all devices.

    `auto` is half of what is free. Restarts and targets never add to it: they follow one another, or share a batch.
    Raises SpecError when one example a device does not fit.
    """
    placement = program.placement
    limit = free_bytes(placement) // 2 if budget == "auto" else budget
    while True:
        one_device, batch = program.prepare(size, variables, searched, example)
        needed = one_device * placement.count + (WINDOW - 1) * batch
        if needed <= limit:
            return size
        if size // 2 < placement.count:
            got = f"{limit:,} bytes are too few: {program.attack.label()} needs {needed:,} for one example a device"
            raise SpecError("evaluate.memory", got, "allow more, or free some")
        size = size // 2 // placement.count * placement.count


def free_bytes(placement: Placement) -> int:
    """Memory free for arrays: of the host on CPU, of all its devices together elsewhere."""
    if placement.platform == "cpu":
        import psutil

        return psutil.virtual_memory().available
    stats = [device.memory_stats() for device in jax.local_devices()[: placement.count]]
    return sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
