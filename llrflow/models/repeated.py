"""Blocks that a network repeats, traced once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import haiku as hk
import jax

from llrflow.models.parts import in_force


def repeated(name: str, block: Callable[..., jax.Array], owner: Any, h: jax.Array, *settings: Hashable) -> Any:
    """`block(owner, h, *settings)`, its parameters below `name/`, inside a Haiku transform.

    Blocks of equal owner and settings on arrays of one shape share one jitted function, and with it its trace, its
    derivatives and its lowering: a step of a deep network is traced in the time of its different blocks.
    """
    init, apply = _functions(block, owner, in_force.get(), *settings)
    variables, updater = hk.lift_with_state(init, name=name)
    params, state = variables(hk.next_rng_key() if hk.running_init() else None, h)
    out, state = apply(params, state, h)
    updater.update(state)
    return out


@functools.lru_cache(maxsize=256)
def _functions(block: Callable[..., jax.Array], owner: Any, in_parts: bool, *settings: Hashable) -> tuple[Any, Any]:
    transformed = hk.transform_with_state(lambda h: block(owner, h, *settings))
    return jax.jit(transformed.init), jax.jit(lambda params, state, h: transformed.apply(params, state, None, h))
