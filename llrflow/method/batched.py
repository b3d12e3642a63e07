"""One number per example against arrays of one block per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def spread(per_example: jax.Array, ndim: int = 4) -> jax.Array:
    """[B] as [B,1,...] with `ndim` axes, by default those of images."""
    return per_example.reshape((-1,) + (1,) * (ndim - 1))


def choose(where: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Per example `new` where `where` [B], else `old`; both [B,...]."""
    return jnp.where(spread(where, new.ndim), new, old)
