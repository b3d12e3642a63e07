"""Sums of capped numbers brought to a goal: the one unknown behind projections onto balls, planes and the box.

All arrays are [B,D], goals and results [B]. XLA sorts slowly on CPU, so nothing here sorts: monotone functions are
inverted by Newton's method or by bisection.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

HUGE = 1e18
"""Beyond every corner, and finite: times a speed of 0 it is 0."""

ROUNDING = 8
"""How far `shrinkage` may leave a sum below its goal, in units of the float's resolution."""


def rise_evenly(speed: jax.Array, slope: jax.Array, room: jax.Array, goal: jax.Array) -> jax.Array:
    r"""min(t speed_i, room_i) with the least t such that \sum_i slope_i min(t speed_i, room_i) = goal.

    `room` where there is none, 0 where the speed is 0. Newton's method from t = 0: the sum is concave, so a tangent
    meets the goal at or before the solution, and t only grows. The sum is piecewise linear, so where no component is
    capped anew the tangent is the sum itself and t the solution: after at most D + 1 steps, in practice a dozen.
    """
    corner = room / jnp.where(speed > 0, speed, 1.0)
    cap, rate = slope * room, slope * speed

    def newton(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        t, free, _ = carry
        left = goal - jnp.sum(jnp.where(free, 0.0, cap), axis=1)
        total = jnp.sum(jnp.where(free, rate, 0.0), axis=1)
        t = jnp.where(total > 0, jnp.maximum(left / jnp.where(total > 0, total, 1.0), t), HUGE)
        still = free & (t[:, None] < corner)
        return t, still, jnp.any(still != free)

    start = jnp.zeros_like(goal), corner > 0, jnp.any(goal >= 0)  # true, and of each device as the others are
    t = jax.lax.while_loop(lambda carry: carry[2], newton, start)[0]
    return jnp.minimum(t[:, None] * speed, room)


def shrinkage(size: jax.Array, room: jax.Array, goal: jax.Array) -> jax.Array:
    r"""The least t >= 0 such that \sum_i min(max(size_i - t, 0), room_i) <= goal, all >= 0.

    Newton's method inside a bracket. The sum falls piecewise linearly but is neither convex nor concave, so every third
    step halves the bracket instead; it ends where the sum is the goal but for rounding, or the bracket is empty.
    """
    slack = ROUNDING * jnp.finfo(size.dtype).eps * goal

    def excess(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        left = size - t[:, None]
        free = (left > 0) & (left < room)
        return jnp.sum(jnp.minimum(jnp.maximum(left, 0.0), room), axis=1) - goal, jnp.sum(free, axis=1)

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, t, going, count = carry
        over, falling = excess(t)
        # Solved at or below the goal: what is found must be inside the ball.
        going = going & ~((over <= 0) & ((t <= 0) | (over >= -slack)))
        low, high = jnp.where(over > 0, t, low), jnp.where(over > 0, high, t)
        newton = t + (over + 0.5 * slack) / jnp.maximum(falling, 1)
        inside = (newton > low) & (newton < high) & (falling > 0) & (count % 3 < 2)
        next_t = jnp.where(inside, newton, 0.5 * (low + high))
        going = going & (next_t != t)
        return low, high, jnp.where(going, next_t, t), going, count + 1

    zero = jnp.zeros_like(goal)
    start = zero, jnp.max(size, axis=1), zero, goal >= 0, jnp.sum(zero, dtype=int)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[3]), step, start)[2]


def keep_above(values: jax.Array, weights: jax.Array, goal: jax.Array) -> jax.Array:
    """The largest t such that the values >= t weigh `goal` or more together; 0 where all of them weigh less.

    values, weights >= 0. Bisection over the bits of a float, which are ordered as the floats are: exact, and ten times
    as fast as a sort on CPU.
    """
    kind, most = (jnp.int32, 30) if values.dtype.itemsize == 4 else (jnp.int64, 62)
    bits = jax.lax.bitcast_convert_type(values, kind)

    def refine(index: jax.Array, found: jax.Array) -> jax.Array:
        higher = found | (jnp.ones((), kind) << (most - index).astype(kind))
        enough = jnp.sum(jnp.where(bits >= higher[:, None], weights, 0.0), axis=1) >= goal
        return jnp.where(enough, higher, found)

    found = jax.lax.fori_loop(0, most + 1, refine, jnp.zeros_like(bits[:, 0]))
    return jnp.where(goal > 0, jax.lax.bitcast_convert_type(found, values.dtype), jnp.inf)


def fill(value: jax.Array, room: jax.Array, price: jax.Array, goal: jax.Array) -> jax.Array:
    r"""The amounts a, 0 <= a <= room, with \sum_i price_i a_i = goal that take the largest values first.

    Components of one value share alike. `room` of every positive value where they do not come to the goal together.
    """
    cost = price * room
    last = keep_above(value, cost, goal)[:, None]
    before, tied = value > last, (value == last) & (last > 0)
    left = goal - jnp.sum(jnp.where(before, cost, 0.0), axis=1)
    share = jnp.clip(left / jnp.maximum(jnp.sum(jnp.where(tied, cost, 0.0), axis=1), 1e-30), 0.0, 1.0)
    return jnp.where(before, room, jnp.where(tied, share[:, None] * room, 0.0))
