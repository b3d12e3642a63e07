"""One search in several balls at once: each example is in one of them, the network is asked once a step for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from llrflow.method.ascent import Carry, ProbeFactory, Search, gradient_over_draws, prefer, repeat, restart_keys
from llrflow.method.batched import choose
from llrflow.method.threat import Threat


class Member(NamedTuple):
    """A search that takes part, with its ball."""

    search: Search
    ball: Threat
    keys: jax.Array
    """Those of its start, [B]."""


def drawn(keys: jax.Array, members: int) -> jax.Array:
    """Which of so many members each example has, [B]: uniformly, by its key [B]."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, members))(keys)


def maximise_mixed(
    members: Sequence[Member], probes: ProbeFactory, which: jax.Array, by: Literal["unroll", "scan"]
) -> jax.Array:
    """delta [B,H,W,C] that member `which` [B] finds for each example, as it would alone; a constant to any derivative.

    Members maximise the same term with as many restarts. A step costs what it costs one of them, 2F, and there are as
    many as the longest member takes: starts, increments and projections, which are cheap, are made in every ball.
    """
    first = members[0].search

    def picked(carries: Sequence[Carry], field: Callable[[Carry], jax.Array]) -> jax.Array:
        each = enumerate(map(field, carries))
        return reduce(lambda known, new: (new[0], choose(which == new[0], new[1], known[1])), each)[1]

    def one(carries: list[Carry], index: int | jax.Array) -> list[Carry]:
        delta = picked(carries, lambda carry: carry.delta)
        seen = gradient_over_draws(probes, first.judge, delta)

        def moved(member: Member, carry: Carry) -> Carry:
            new = member.search.stepped(probes, member.ball, carry, index, *seen)
            return jax.tree.map(lambda a, b: jnp.where(index < member.search.steps, a, b), new, carry)

        return list(map(moved, members, carries))

    outcome = None
    for restart in range(first.restarts):
        carries = [m.search.begin(probes, m.ball, restart_keys(m.keys, restart), restart) for m in members]
        carries = repeat(one, carries, 0, max(m.search.steps for m in members), by)
        delta = picked(carries, lambda carry: carry.delta)
        value, wrong = first.judge(probes(), delta)
        carries = [m.search.settle(carry, value, wrong) for m, carry in zip(members, carries, strict=True)]
        best, value, wrong = (
            picked(carries, f) for f in (lambda c: c.best, lambda c: c.best_value, lambda c: c.best_wrong)
        )
        carry = Carry(delta, (), best, value, wrong)
        outcome = carry if outcome is None else prefer(outcome, carry, "value")
    assert outcome is not None
    return jax.lax.stop_gradient(outcome.best)
