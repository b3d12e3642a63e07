"""Blocks that a network repeats, traced once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import haiku as hk
import jax

from llrflow.models.parts import in_force

Remat = Literal["none", "blocks"]

_remat: ContextVar[Remat] = ContextVar("remat", default="none")


@contextmanager
def rematerialised(policy: Remat) -> Iterator[None]:
    """With `blocks`, derivatives of networks traced in here keep the inputs of repeated blocks, and no more of them."""
    token = _remat.set(policy)
    try:
        yield
    finally:
        _remat.reset(token)


def repeated(name: str, block: Callable[..., jax.Array], owner: Any, h: jax.Array, *settings: Hashable) -> Any:
    """`block(owner, h, *settings)`, its parameters below `name/`, inside a Haiku transform.

    Blocks of equal owner and settings on arrays of one shape share one jitted function, and with it its trace, its
    derivatives and its lowering: a step of a deep network is traced in the time of its different blocks.
    """
    init, apply, recomputing = _functions(block, owner, in_force.get(), *settings)
    variables, updater = hk.lift_with_state(init, name=name)
    params, state = variables(hk.next_rng_key() if hk.running_init() else None, h)
    out, state = (apply if _remat.get() == "none" else recomputing)(params, state, h)
    updater.update(state)
    return out


@functools.lru_cache(maxsize=256)
def _functions(
    block: Callable[..., jax.Array], owner: Any, in_parts: bool, *settings: Hashable
) -> tuple[Any, Any, Any]:
    transformed = hk.transform_with_state(lambda h: block(owner, h, *settings))
    apply = jax.jit(lambda params, state, h: transformed.apply(params, state, None, h))
    return jax.jit(transformed.init), apply, jax.checkpoint(apply)
