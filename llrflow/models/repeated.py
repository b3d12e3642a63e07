"""Blocks that a network repeats, traced once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax

Remat = Literal["none", "blocks"]


class Tracing(NamedTuple):
    """How a network is traced: what a block's function depends on beside its owner and settings."""

    remat: Remat = "none"
    """With `blocks`, derivatives keep the inputs of repeated blocks, and no more of them."""
    for_cpu: bool = False
    """Whether convolutions are computed as XLA's CPU backend is fast at (`llrflow.models.convolution`)."""


PLAIN = Tracing()

_tracing: ContextVar[Tracing] = ContextVar("tracing", default=PLAIN)


@contextmanager
def traced_as(tracing: Tracing) -> Iterator[None]:
    """Networks are traced so in the block."""
    token = _tracing.set(tracing)
    try:
        yield
    finally:
        _tracing.reset(token)


def repeated(name: str, block: Callable[..., jax.Array], owner: Any, h: jax.Array, *settings: Hashable) -> Any:
    """`block(owner, h, *settings)`, its parameters below `name/`, inside a Haiku transform.

    Blocks of equal owner and settings on arrays of one shape share one jitted function, and with it its trace, its
    derivatives and its lowering: a step of a deep network is traced in the time of its different blocks.
    """
    init, apply = _functions(block, owner, _tracing.get(), *settings)
    variables, updater = hk.lift_with_state(init, name=name)
    params, state = variables(hk.next_rng_key() if hk.running_init() else None, h)
    out, state = apply(params, state, h)
    updater.update(state)
    return out


@functools.lru_cache(maxsize=256)
def _functions(block: Callable[..., jax.Array], owner: Any, tracing: Tracing, *settings: Hashable) -> tuple[Any, Any]:
    transformed = hk.transform_with_state(lambda h: block(owner, h, *settings))
    apply = jax.jit(lambda params, state, h: transformed.apply(params, state, None, h))
    return jax.jit(transformed.init), apply if tracing.remat == "none" else jax.checkpoint(apply)
