"""Terms of the loss gradient at the clean image."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from llrflow.probe import Probe
from llrflow.registry import Component, register


@register("term", "gradient_norm")
class GradientNorm(Component):
    """||grad l(x)||_p per example, in nats per pixel unit; squared on request.

    Computed as <u, grad l(x)> with u the constant dual vector of the gradient (sign for p = 1, g/||g||_2 for
    p = 2, the signed largest coordinate for p = inf): value and parameter gradient are those of the norm,
    without double backpropagation. p = 2 squared is the penalty of Ross & Doshi-Velez 2018.
    """

    p: Literal[1, 2, "inf"] = 2
    """Order of the norm."""

    squared: bool = False
    """Square the norm."""

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B]; the perturbation is not used."""
        gradient = jax.lax.stop_gradient(probe.input_gradient())
        norm = probe.slope(_dual(gradient.reshape(len(gradient), -1), self.p).reshape(gradient.shape))
        return norm**2 if self.squared else norm


def _dual(gradient: jax.Array, p: int | str) -> jax.Array:
    if p == 1:
        return jnp.sign(gradient)
    if p == 2:
        return gradient / jnp.maximum(jnp.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)
    largest = jax.nn.one_hot(jnp.argmax(jnp.abs(gradient), axis=1), gradient.shape[1], dtype=gradient.dtype)
    return jnp.sign(gradient) * largest
