"""A model as attacks see it: how it is queried, on which devices, and what is known of the clean images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llrflow.base.compilations import keep_compilations
from llrflow.data.batches import padded_chunks
from llrflow.method.ascent import restart_keys
from llrflow.method.keys import example_keys
from llrflow.method.labels import cross_entropy
from llrflow.method.probe import ApplyFn, Reference

NOISE = 2**31
"""Numbers from here on name the draws of a stochastic model outside the steps, which count from 0."""


class Network(NamedTuple):
    """A model as attacks see it."""

    predict: Callable[..., jax.Array]
    """(variables, images [B,H,W,C]) -> logits [B,K]; a stochastic model is given random keys [B] as a third."""
    stochastic: bool = False

    def draws(self, eot: int) -> int:
        """Draws that a gradient takes."""
        return eot if self.stochastic else 1


class Placement(NamedTuple):
    """How functions and arrays get onto devices."""

    wrap: Callable[[Any], Any]
    """Compiles a pure function of arrays."""
    shard: Callable[[Any], Any]
    """Host arrays [B,...] as its arguments."""
    replicate: Callable[[Any], Any]
    """An array that every example shares, as its argument."""
    gather: Callable[[Any], Any]
    """Its results as NumPy [B,...]."""
    platform: str
    lead: tuple[int, ...] = ()
    """The axis of devices that its arguments carry before their own, if they do."""

    @property
    def count(self) -> int:
        """Number of devices."""
        return self.lead[0] if self.lead else 1


@functools.cache
def one_device() -> Placement:
    """Plain `jax.jit` on the default device."""
    keep_compilations()

    def to_host(tree: Any) -> Any:
        return jax.tree.map(np.asarray, tree)

    return Placement(jax.jit, lambda tree: tree, lambda tree: tree, to_host, jax.default_backend())


class Examples(NamedTuple):
    """What is attacked: images [B,H,W,C] in [0,1], labels [B], ids [B] that key the randomness, run numbers [B]."""

    x: Any
    y: Any
    ids: Any
    run: Any
    epsilon: Any = None
    """Radius of the ball of each, [B]; None where it is the threat's."""


def example_of(image_shape: tuple[int, ...]) -> Examples:
    """One example of a dataset, in kind: float32 images, int32 labels and ids."""
    image, number = np.zeros(image_shape, np.float32), np.int32(0)
    return Examples(image, number, number, np.uint32(0))


class Start(NamedTuple):
    """What an attack needs to know of its examples besides themselves."""

    reference: Reference
    keys: Any
    """Raw random keys, one per example and run."""


def querying(network: Network, variables: Any, keys: jax.Array, at: Any, draw: int) -> ApplyFn:
    """The network in one query; a stochastic one differs from step to step (`at`) and from `draw` to draw in a step."""
    if not network.stochastic:
        return lambda images: (network.predict(variables, images), None)
    drawn = restart_keys(restart_keys(restart_keys(keys, NOISE), at), draw)
    return lambda images: (network.predict(variables, images, drawn), None)


def reference_of(network: Network, variables: Any, examples: Examples, keys: jax.Array, eot: int) -> Reference:
    """Loss and logits of the clean images in one draw, and their input gradient, the mean over all draws; 2F each."""

    def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        applies = [querying(network, variables, keys, NOISE, draw) for draw in range(network.draws(eot))]
        drawn = [apply(x)[0] for apply in applies]
        losses = [cross_entropy(logits, examples.y) for logits in drawn]
        return jnp.sum(jnp.stack(losses)) / len(losses), (losses[0], drawn[0])

    gradient, (loss, logits) = jax.grad(total, has_aux=True)(examples.x)
    return Reference(loss, logits, gradient)


def quick_options(platform: str) -> dict[str, Any] | None:
    """Options of XLA for what runs once a batch and is compiled longer than it ever runs."""
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None


class Look:
    """(variables, examples, key) -> Start, compiled once for all attacks on a network, ahead of its first call."""

    def __init__(self, phase: Any, platform: str) -> None:
        """`phase` is the function as its placement wraps it."""
        self.phase, self._platform = phase, platform
        self._compiled: dict[Any, Any] = {}

    def prepare(self, variables: Any, examples: Examples, key: Any) -> Callable[..., Start]:
        """The program for such arguments, of which shapes and types alone count."""
        leaves, structure = jax.tree.flatten((variables, examples, key))
        kind = structure, tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
        if kind not in self._compiled:
            lowered = self.phase.lower(variables, examples, key)
            self._compiled[kind] = lowered.compile(quick_options(self._platform))
        return self._compiled[kind]

    def __call__(self, variables: Any, examples: Examples, key: Any) -> Start:
        """What attacks need to know of the examples."""
        return self.prepare(variables, examples, key)(variables, examples, key)


@functools.lru_cache(maxsize=32)
def look_phase(network: Network, placement: Placement, eot: int) -> Look:
    """The look at the clean images that all attacks on a network share."""

    def look(variables: Any, examples: Examples, key: jax.Array) -> Start:
        keys = restart_keys(example_keys(jax.random.wrap_key_data(key), examples.ids), examples.run)
        return Start(reference_of(network, variables, examples, keys, eot), jax.random.key_data(keys))

    return Look(placement.wrap(look), placement.platform)


def looked_at(
    network: Network, placement: Placement, variables: Any, examples: Examples, key: Any, size: int
) -> Reference:
    """Loss, logits and input gradient [N,...] of examples in NumPy, of one draw, in batches of `size`."""
    look, found = look_phase(network, placement, 1), []
    for rows, mask in padded_chunks(np.arange(len(examples.y)), size):
        batch = placement.shard(jax.tree.map(lambda field, rows=rows: field[rows], examples))
        made = placement.gather(look(variables, batch, key).reference)
        found.append(jax.tree.map(lambda field, mask=mask: field[mask], made))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
