"""The norms that a threat can have: what a ball, its projection and its steepest direction are in each."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from llrflow.base.norms import NormName
from llrflow.method.batched import spread
from llrflow.method.greedy import fill, keep_above, rise_evenly, shrinkage


class Norm:
    """One norm ||.||_p of perturbations in the box [0, 1]; everything is per example, flat [B,D] or images [B,...]."""

    largest: ClassVar[float] = math.inf
    """The largest radius that means anything, where there is one."""

    def length(self, flat: jax.Array) -> jax.Array:
        """||flat||_p, [B]."""
        raise NotImplementedError

    def dual_length(self, vectors: jax.Array) -> jax.Array:
        """||v||_q of vectors [...,D]: <v, delta> <= ||v||_q ||delta||_p; a hyperplane's distance is measured by it."""
        raise NotImplementedError

    def project(self, delta: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """delta [B,...] brought into the ball of `radius` (broadcast against it) and the box around x."""
        raise NotImplementedError

    def steepest(self, gradient: jax.Array, radius: jax.Array | float) -> jax.Array:
        """The direction of unit norm in which to go along a gradient [B,...]; zero stays zero. radius [B] or one."""
        raise NotImplementedError

    def unblocked(self, gradient: jax.Array, delta: jax.Array, x: jax.Array) -> jax.Array:
        """The gradient at x + delta without what would waste a step on the edge of the box."""
        return gradient

    def gain(self, gradient: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """What the ball allows a linear function of that gradient to grow, [B]; radius [B]."""
        return radius * self.dual_length(gradient.reshape(len(gradient), -1))

    def least(self, slope: jax.Array, room: jax.Array, gap: jax.Array) -> jax.Array:
        r"""argmin ||a||_p over 0 <= a <= room with \sum_i slope_i a_i = gap; `room` where that is out of reach.

        slope, room >= 0 [B,D], gap [B]; 0 where the slope is.
        """
        raise NotImplementedError

    def uniform(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """One draw, uniform in the unit ball."""
        raise NotImplementedError

    def direction(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """One draw whose direction is to be used, its length not."""
        return jax.random.normal(key, shape, dtype)

    def diameter(self, pixels: int) -> float:
        """The longest perturbation that fits the box."""
        raise NotImplementedError


class LInf(Norm):
    """max_i |delta_i|."""

    largest = 1.0

    def length(self, flat: jax.Array) -> jax.Array:
        """[B]."""
        return jnp.max(jnp.abs(flat), axis=1)

    def dual_length(self, vectors: jax.Array) -> jax.Array:
        """sum_i |v_i|."""
        return jnp.sum(jnp.abs(vectors), axis=-1)

    def project(self, delta: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """Clipped; the nearest point of both sets."""
        return clip_to_box(jnp.clip(delta, -radius, radius), x)

    def steepest(self, gradient: jax.Array, radius: jax.Array | float) -> jax.Array:
        """sign(g)."""
        return jnp.sign(gradient)

    def least(self, slope: jax.Array, room: jax.Array, gap: jax.Array) -> jax.Array:
        """min(t, room_i) with the t that closes the gap (Croce & Hein 2020, arXiv:1907.02044, eq. 7)."""
        return rise_evenly(jnp.sign(slope), slope, room, gap)

    def uniform(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Each component uniform in [-1, 1]."""
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0)

    def direction(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Uniform in the ball."""
        return self.uniform(key, shape, dtype)

    def diameter(self, pixels: int) -> float:
        """1."""
        return 1.0


class L2(Norm):
    """(sum_i delta_i^2)^(1/2)."""

    def length(self, flat: jax.Array) -> jax.Array:
        """[B]."""
        return jnp.sqrt(jnp.sum(flat**2, axis=1))

    def dual_length(self, vectors: jax.Array) -> jax.Array:
        """The length itself."""
        # Scaled first: squares of tiny gradients leave float32, and a boundary in reach would seem out of it.
        largest = jnp.max(jnp.abs(vectors), axis=-1)
        scale = jnp.where(largest > 0, largest, 1.0)
        return scale * jnp.sqrt(jnp.sum((vectors / scale[..., None]) ** 2, axis=-1))

    def project(self, delta: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """Scaled down to the ball, then clipped to the box.

        Clipping x + delta only shrinks |delta|: the result is in both sets, and projecting again changes nothing.
        """
        length = spread(self.length(delta.reshape(len(delta), -1)), delta.ndim)
        return clip_to_box(delta * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-12)), x)

    def steepest(self, gradient: jax.Array, radius: jax.Array | float) -> jax.Array:
        """g / ||g||_2."""
        return unit(gradient)

    def least(self, slope: jax.Array, room: jax.Array, gap: jax.Array) -> jax.Array:
        """min(t slope_i, room_i) with the t that closes the gap (Croce & Hein 2020, arXiv:1907.02044, eq. 6)."""
        return rise_evenly(slope, slope, room, gap)

    def uniform(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """A normal direction, at a distance whose D-th power is uniform."""
        direction_key, radius_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, shape, dtype)
        radius = jax.random.uniform(radius_key, (), dtype) ** (1.0 / math.prod(shape))
        return radius * direction / jnp.maximum(jnp.sqrt(jnp.sum(direction**2)), 1e-12)

    def diameter(self, pixels: int) -> float:
        """sqrt(D)."""
        return math.sqrt(pixels)


class L1(Norm):
    """sum_i |delta_i|: a few pixels may change a lot."""

    def length(self, flat: jax.Array) -> jax.Array:
        """[B]."""
        return jnp.sum(jnp.abs(flat), axis=1)

    def dual_length(self, vectors: jax.Array) -> jax.Array:
        """max_i |v_i|."""
        return jnp.max(jnp.abs(vectors), axis=-1)

    def project(self, delta: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """The nearest point of ball and box together (Croce & Hein 2021, arXiv:2103.01208, prop. 2.1).

        sign(delta_i) min(max(|delta_i| - t, 0), room_i) with the least t >= 0 that fits the ball. One projection after
        the other would end far inside: what the box cuts off is lost to the ball.
        """
        size = jnp.abs(delta)
        room = jnp.where(delta > 0, 1.0 - x, x)
        flat, radii = size.reshape(len(size), -1), jnp.broadcast_to(jnp.ravel(radius), len(size))
        t = shrinkage(flat, room.reshape(flat.shape), radii.astype(flat.dtype))
        inside = clip_to_box(jnp.sign(delta) * jnp.maximum(size - spread(t, size.ndim), 0.0), x)
        length = spread(self.length(inside.reshape(flat.shape)), size.ndim)
        return inside * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-30))  # small differences of large numbers

    def steepest(self, gradient: jax.Array, radius: jax.Array | float) -> jax.Array:
        """The signs of the ceil(radius) largest components, each with the same share of the norm.

        The largest alone has the largest inner product, but a pixel changes by at most 1: no fewer use up the ball.
        Sparse signs are the step of Tramer & Boneh 2019 (arXiv:1904.13000, section 4.1), who take a share of all
        components, and of Maini et al. 2020 (arXiv:1909.04068), who draw 5 to 20 of them for radii of 10 and 12.
        """
        flat = gradient.reshape(len(gradient), -1)
        return sparse_sign(flat, jnp.broadcast_to(jnp.ceil(radius), len(flat))).reshape(gradient.shape)

    def unblocked(self, gradient: jax.Array, delta: jax.Array, x: jax.Array) -> jax.Array:
        """Zero where x + delta is at the edge of the box that the gradient points to: sparse steps are too few."""
        at = x + delta
        return jnp.where(jnp.where(gradient > 0, at < 1.0, at > 0.0), gradient, 0.0)

    def gain(self, gradient: jax.Array, x: jax.Array, radius: jax.Array) -> jax.Array:
        """In the box as well, [B]: without it a pixel could change by all of the radius."""
        slope = jnp.abs(gradient).reshape(len(gradient), -1)
        room = jnp.where(gradient > 0, 1.0 - x, x).reshape(slope.shape)
        return jnp.sum(slope * fill(slope, room, jnp.ones_like(slope), radius), axis=1)

    def least(self, slope: jax.Array, room: jax.Array, gap: jax.Array) -> jax.Array:
        """All of the room of the steepest components, until the gap is closed."""
        return fill(slope, room, slope, gap)

    def uniform(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Laplace draws over the sum of their sizes and one more exponential (Barthe et al. 2005)."""
        draw_key, more_key = jax.random.split(key)
        draw = jax.random.laplace(draw_key, shape, dtype)
        return draw / (jnp.sum(jnp.abs(draw)) + jax.random.exponential(more_key, (), dtype))

    def diameter(self, pixels: int) -> float:
        """D."""
        return float(pixels)


NORMS: dict[NormName, Norm] = {"linf": LInf(), "l2": L2(), "l1": L1()}


def sparse_sign(flat: jax.Array, count: jax.Array) -> jax.Array:
    """The signs of the `count` [B] largest components of flat [B,D] (more where some tie) over their number."""
    size = jnp.abs(flat)
    signs = jnp.where(size >= keep_above(size, jnp.ones_like(size), count)[:, None], jnp.sign(flat), 0.0)
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs), axis=1, keepdims=True), 1.0)


def unit(vector: jax.Array) -> jax.Array:
    """vector / ||vector||_2 per example, [B,...]; zero stays zero."""
    # Scaled first: squares of tiny or huge gradients leave float32, and the attack would stall.
    largest = spread(jnp.max(jnp.abs(vector.reshape(len(vector), -1)), axis=1), vector.ndim)
    vector = vector / jnp.where(largest > 0, largest, 1.0)
    return vector / jnp.maximum(spread(NORMS["l2"].length(vector.reshape(len(vector), -1)), vector.ndim), 1e-12)


def clip_to_box(delta: jax.Array, x: jax.Array) -> jax.Array:
    """delta [B,H,W,C] with x + delta cut to [0, 1]."""
    return jnp.clip(delta, -x, 1.0 - x)
