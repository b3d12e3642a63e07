"""A model as attacks see it: how it is queried, on which devices, and what is known of the clean images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    def to_host(tree: Any) -> Any:
        return jax.tree.map(np.asarray, tree)

    return Placement(jax.jit, lambda tree: tree, lambda tree: tree, to_host, jax.default_backend())


class Examples(NamedTuple):
    """What is attacked: images [B,H,W,C] in [0,1], labels [B], ids [B] that key the randomness, run numbers [B]."""

    x: Any
    y: Any
    ids: Any
    run: Any


def example_of(image_shape: tuple[int, ...]) -> Examples:
    """One example of a dataset, in kind: float32 images, int32 labels and ids."""
    image, number = np.zeros(image_shape, np.float32), np.int32(0)
    return Examples(image, number, number, np.uint32(0))


class Start(NamedTuple):
    """What an attack needs to know of its examples besides themselves."""

    reference: Reference
    keys: Any
    """Raw random keys, one per example and run."""


def querying(network: Network, variables: Any, keys: jax.Array, at: Any, eot: int) -> ApplyFn:
    """The network in one query; a stochastic one draws anew at each step `at`, and is averaged over `eot` draws."""
    if not network.stochastic:
        return lambda images: (network.predict(variables, images), None)
    drawn = restart_keys(restart_keys(keys, NOISE), at)

    def apply(images: jax.Array) -> tuple[jax.Array, None]:
        draws = [network.predict(variables, images, restart_keys(drawn, draw)) for draw in range(eot)]
        return sum(draws[1:], draws[0]) / len(draws), None

    return apply


def reference_of(network: Network, variables: Any, examples: Examples, keys: jax.Array, eot: int) -> Reference:
    """Loss, logits and input gradient of the clean images; 2F."""
    apply = querying(network, variables, keys, NOISE, eot)

    def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = apply(x)[0]
        loss = cross_entropy(logits, examples.y)
        return jnp.sum(loss), (loss, logits)

    gradient, (loss, logits) = jax.grad(total, has_aux=True)(examples.x)
    return Reference(loss, logits, gradient)


@functools.lru_cache(maxsize=32)
def look_phase(network: Network, placement: Placement, eot: int) -> Callable[[Any, Examples, Any], Start]:
    """(variables, examples, key) -> Start, compiled once for all attacks on a network."""

    def look(variables: Any, examples: Examples, key: jax.Array) -> Start:
        keys = restart_keys(example_keys(jax.random.wrap_key_data(key), examples.ids), examples.run)
        return Start(reference_of(network, variables, examples, keys, eot), jax.random.key_data(keys))

    return placement.wrap(look)
