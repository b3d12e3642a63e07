"""Memory of a training step, estimated from one forward pass, and in how many parts its batch fits into a device's."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from llrflow.base.errors import SpecError
from llrflow.base.memory_size import amount


class Memory(NamedTuple):
    """Bytes on one device."""

    parameters: int
    """Parameters, their gradient, its sum over the parts of a batch, and their moving average."""
    optimizer: int
    """State of the optimizer."""
    images: int
    activations: int
    """What the passes of the objective keep for their derivatives; the largest part, and the least certain."""


class Parts(NamedTuple):
    """The parts that a batch is cut into, so that a step fits."""

    count: int
    why: str


def memory(program: Any) -> Memory:
    """Memory of a program's step, its batch taken in the `train.accumulate` parts of its spec.

    A slope keeps as much again as its pass. Against XLA's own figure for four small networks and four objectives the
    whole is between 0.7 and 1.25 of it (CPU).
    """
    return _in_parts(_whole(program), _bytes(program.abstract_state().params), program.spec.train.parts)


def fitting_parts(program: Any, limit: int) -> Parts:
    """The smallest number of equal parts of each device's share with which a step takes at most `limit` bytes.

    `program` takes the batch as a whole. Raises SpecError naming `devices.memory` where not even single images fit.
    """
    whole, parameters = _whole(program), _bytes(program.abstract_state().params)
    share = program.spec.train.batch_size // len(program.devices)
    fewer = ""
    for count in (n for n in range(1, share + 1) if share % n == 0):
        needed = sum(_in_parts(whole, parameters, count))
        if needed <= limit:
            why = f"{amount(needed)} a device are estimated, devices.memory = {amount(limit)}"
            return Parts(count, f"{why}{fewer}")
        fewer = f", and {count} part(s) would take {amount(needed)}"
    got = f"= {amount(limit)} is less than the {amount(needed)} estimated for one image at a time"
    raise SpecError("devices.memory", got, "allow more, or take a smaller network")


def kept_passes(program: Any) -> int:
    """Passes whose residuals an objective keeps at once: those differentiated, and those along input gradients."""
    probes = program.probes(program.stand_in())
    return max(sum(made.differentiated + made.derivative for made in probe.passes.values()) for probe in probes)


def _whole(program: Any) -> Memory:
    """Memory of a step that takes each device's share of the batch at once."""
    state = program.abstract_state()
    parameters = _bytes(state.params)
    _, residuals = program.training_pass()
    # Weights are among the residuals; they are counted once, as parameters.
    activations = max(0, _bytes(residuals) // len(program.devices) - parameters)
    share = program.spec.train.batch_size // len(program.devices)
    images, kept = share * int(np.prod(program.image_shape)) * 4, kept_passes(program)
    return Memory(2 * parameters + _bytes(state.ema), _bytes(state.optimizer_state), images, kept * activations)


def _in_parts(whole: Memory, parameters: int, parts: int) -> Memory:
    """The same with the share cut into parts; several have a sum of their gradients besides the one at hand."""
    if parts == 1:
        return whole
    images, activations = -(-whole.images // parts), -(-whole.activations // parts)
    return whole._replace(parameters=whole.parameters + parameters, images=images, activations=activations)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
