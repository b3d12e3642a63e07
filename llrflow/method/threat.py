"""The threat model: which perturbations an adversary may add to an image in [0, 1]."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import model_validator

from llrflow.base.errors import ThreatError
from llrflow.base.norms import ORDERS, NormName
from llrflow.base.validation import raise_at
from llrflow.components.fields import Traced
from llrflow.components.registry import Component
from llrflow.method.batched import spread
from llrflow.method.norms import NORMS, Norm, clip_to_box, unit

__all__ = ["TOLERANCE", "Threat", "clip_to_box", "unit"]

TOLERANCE = 1e-5
"""Slack, in pixel units relative to epsilon, when an attack's output is re-checked in float32."""


class Threat(Component):
    """The ball B = {delta : ||delta||_p <= epsilon, 0 <= x + delta <= 1} around each image.

    All methods are per example: x and delta are [B, H, W, C], pixels in [0, 1]; norms are [B]. So may epsilon be, in
    `llrflow.attack`.
    """

    norm: NormName = "linf"
    """Norm of the ball: `linf`, `l2` or `l1`."""

    epsilon: Annotated[float, Traced(gt=0, schedule=False)]
    """Radius in pixel units, for example 8/255."""

    @model_validator(mode="after")
    def _pixel_scale(self) -> Threat:
        if self.epsilon > self.geometry.largest:
            raise_at(
                ("epsilon",),
                self.epsilon,
                "out_of_bounds",
                f"is larger than the pixel range [0, 1]; write {self.epsilon:g}/255",
            )
        return self

    def of_radius(self, epsilon: Any) -> Threat:
        """The ball of another radius: a number, or one for each example [B], which may be traced."""
        return self.model_copy(update={"epsilon": epsilon})

    @property
    def geometry(self) -> Norm:
        """What its norm is."""
        return NORMS[self.norm]

    def radius(self, ndim: int = 4) -> Any:
        """epsilon against arrays of one block per example: a number, or [B,1,...] with `ndim` axes."""
        return spread(jnp.asarray(self.epsilon), ndim) if np.ndim(self.epsilon) else self.epsilon

    def distance(self, delta: jax.Array) -> jax.Array:
        """||delta||_p of each example, [B]."""
        return self.geometry.length(delta.reshape(len(delta), -1))

    def project(self, delta: jax.Array, x: jax.Array) -> jax.Array:
        """A point of the ball and the box near delta: for linf and l1 the nearest.

        For l2 the ball comes first: clipping x + delta to [0, 1] afterwards only shrinks |delta|, so the
        result is in both sets and projecting again changes nothing.
        """
        return self.geometry.project(delta, x, self.radius(delta.ndim))

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """The unit-norm direction to go: sign(g) for linf, g / ||g||_2 for l2, a few signs for l1."""
        return self.geometry.steepest(gradient, self.epsilon)

    def uniform(self, keys: jax.Array, x: jax.Array) -> jax.Array:
        """Perturbations uniform in the ball (before the box), one key per example."""
        return self.radius(x.ndim) * jax.vmap(lambda key, image: self.geometry.uniform(key, image.shape, image.dtype))(
            keys, x
        )

    def check(self, delta: Any, x: Any) -> None:
        """Raise ThreatError when a concrete perturbation leaves the ball or the box (or is not finite)."""
        delta, x = np.asarray(delta), np.asarray(x)  # on the host: JAX would compile for every number of examples
        flat = delta.reshape(len(delta), -1)
        distance = np.linalg.norm(flat.astype(np.float64), ORDERS[self.norm], axis=1)
        radius = np.broadcast_to(self.epsilon, distance.shape)
        inside = bool(np.all(distance <= radius * (1 + TOLERANCE) + 1e-7))
        low, high = float(np.min(x + delta, initial=0.0)), float(np.max(x + delta, initial=1.0))
        if not (inside and low >= -TOLERANCE and high <= 1 + TOLERANCE):
            worst = int(np.argmax(distance - radius))
            raise ThreatError(
                f"an attack left the threat model: {self.norm} distance {distance[worst]:g} of {radius[worst]:g}, "
                f"pixels in [{low:g}, {high:g}]"
            )
