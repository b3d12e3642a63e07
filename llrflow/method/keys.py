"""Random keys by seed, purpose and example: the same for an example wherever it stands in a batch."""

from __future__ import annotations

import zlib
from typing import Any

import jax


def purpose_key(seed: Any, purpose: str) -> jax.Array:
    """A key for one use of randomness, independent of all others."""
    return keyed(jax.random.key(seed), purpose)


def keyed(key: jax.Array, purpose: str) -> jax.Array:
    """As purpose_key, of a key in place of a seed."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def example_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """One key per example, [B]."""
    return jax.vmap(lambda example: jax.random.fold_in(key, example))(ids)
