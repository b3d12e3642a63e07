"""The threat model: which perturbations an adversary may add to an image in [0, 1]."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import model_validator

from llrflow.base.errors import ThreatError
from llrflow.base.validation import raise_at
from llrflow.components.fields import Traced
from llrflow.components.registry import Component
from llrflow.method.batched import spread

TOLERANCE = 1e-5
"""Slack, in pixel units relative to epsilon, when an attack's output is re-checked in float32."""


class Threat(Component):
    """The ball B = {delta : ||delta||_p <= epsilon, 0 <= x + delta <= 1} around each image.

    All methods are per example: x and delta are [B, H, W, C], pixels in [0, 1]; norms are [B]. So may epsilon be, in
    `llrflow.attack`.
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball: `linf` or `l2`."""

    epsilon: Annotated[float, Traced(gt=0, schedule=False)]
    """Radius in pixel units, for example 8/255."""

    @model_validator(mode="after")
    def _pixel_scale(self) -> Threat:
        if self.norm == "linf" and self.epsilon > 1:
            raise_at(
                ("epsilon",),
                self.epsilon,
                "out_of_bounds",
                f"is larger than the pixel range [0, 1]; write {self.epsilon:g}/255",
            )
        return self

    def radius(self, ndim: int = 4) -> Any:
        """epsilon against arrays of one block per example: a number, or [B,1,...] with `ndim` axes."""
        return spread(jnp.asarray(self.epsilon), ndim) if np.ndim(self.epsilon) else self.epsilon

    def distance(self, delta: jax.Array) -> jax.Array:
        """||delta||_p of each example, [B]."""
        flat = delta.reshape(len(delta), -1)
        return jnp.max(jnp.abs(flat), axis=1) if self.norm == "linf" else _l2(flat)

    def project(self, delta: jax.Array, x: jax.Array) -> jax.Array:
        """The point of the ball and the box that a clipping projection reaches from delta.

        For l2 the ball comes first: clipping x + delta to [0, 1] afterwards only shrinks |delta|, so the
        result is in both sets and projecting again changes nothing.
        """
        if self.norm == "linf":
            delta = jnp.clip(delta, -self.radius(delta.ndim), self.radius(delta.ndim))
        else:
            length = spread(_l2(delta.reshape(len(delta), -1)), delta.ndim)
            delta = delta * jnp.minimum(1.0, self.radius(delta.ndim) / jnp.maximum(length, 1e-12))
        return clip_to_box(delta, x)

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """The unit-norm direction with the largest inner product: sign(g) for linf, g / ||g||_2 for l2."""
        return jnp.sign(gradient) if self.norm == "linf" else unit(gradient)

    def uniform(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Perturbations uniform in the ball (before the box), one key per example."""

        def one(key: jax.Array, image: jax.Array) -> jax.Array:
            if self.norm == "linf":
                return jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0)
            direction_key, radius_key = jax.random.split(key)
            direction = jax.random.normal(direction_key, image.shape, image.dtype)
            radius = jax.random.uniform(radius_key, (), image.dtype) ** (1.0 / image.size)
            return radius * direction / jnp.maximum(jnp.sqrt(jnp.sum(direction**2)), 1e-12)

        return self.radius(x.ndim) * jax.vmap(one)(keys, x)

    def check(self, delta: Any, x: Any) -> None:
        """Raise ThreatError when a concrete perturbation leaves the ball or the box (or is not finite)."""
        delta, x = np.asarray(delta), np.asarray(x)  # on the host: JAX would compile for every number of examples
        flat = delta.reshape(len(delta), -1)
        distance = np.abs(flat).max(axis=1) if self.norm == "linf" else np.linalg.norm(flat.astype(np.float64), axis=1)
        radius = np.broadcast_to(self.epsilon, distance.shape)
        inside = bool(np.all(distance <= radius * (1 + TOLERANCE) + 1e-7))
        low, high = float(np.min(x + delta, initial=0.0)), float(np.max(x + delta, initial=1.0))
        if not (inside and low >= -TOLERANCE and high <= 1 + TOLERANCE):
            worst = int(np.argmax(distance - radius))
            raise ThreatError(
                f"an attack left the threat model: {self.norm} distance {distance[worst]:g} of {radius[worst]:g}, "
                f"pixels in [{low:g}, {high:g}]"
            )


def unit(vector: jax.Array) -> jax.Array:
    """vector / ||vector||_2 per example, [B,...]; zero stays zero."""
    # Scaled first: squares of tiny or huge gradients leave float32, and the attack would stall.
    largest = spread(jnp.max(jnp.abs(vector.reshape(len(vector), -1)), axis=1), vector.ndim)
    vector = vector / jnp.where(largest > 0, largest, 1.0)
    return vector / jnp.maximum(spread(_l2(vector.reshape(len(vector), -1)), vector.ndim), 1e-12)


def clip_to_box(delta: jax.Array, x: jax.Array) -> jax.Array:
    """delta [B,H,W,C] with x + delta cut to [0, 1]."""
    return jnp.clip(delta, -x, 1.0 - x)


def _l2(flat: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(flat**2, axis=1))
