"""Terms of the loss gradient with respect to the image."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from llrflow.components.fields import Traced
from llrflow.components.registry import Component, register
from llrflow.method.probe import Probe
from llrflow.method.threat import unit


@register("term", "gradient_norm")
class GradientNorm(Component):
    """||grad l(x + delta)||_p per example, in nats per pixel unit; squared on request.

    At the clean image, p = 2 squared is the penalty of Ross & Doshi-Velez 2018.
    """

    p: Literal[1, 2, "inf"] = 2
    """Order of the norm."""

    squared: bool = False
    """Square the norm."""

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B]."""
        return norm(probe.input_gradient(delta), self.p, self.squared)


@register("term", "curvature")
class Curvature(Component):
    """||grad l(x + z) - grad l(x)||_2^2, z of length h along the gradient's sign (CURE, Moosavi-Dezfooli et al. 2019).

    z = h s / ||s||_2 with s = sign(grad l(x)), a constant to the derivative. At a perturbation, x + delta takes
    the place of x.
    """

    h: Annotated[float, Traced(gt=0)] = 0.6
    """||z||_2 in pixel units: 3 in inputs that are normalised by 0.2, as the authors' code for CIFAR-10 has it."""

    direction: Literal["sign", "gradient"] = "sign"
    """z along the sign of the gradient, or along the gradient."""

    squared: bool = True
    """Square the norm, as the paper does; the authors' code does not."""

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], in nats per pixel unit, squared by default."""
        gradient = probe.input_gradient(delta, constant=True)
        along = jnp.sign(gradient) if self.direction == "sign" else gradient
        z = self.h * unit(along)
        away = z if delta is None else delta + z
        return norm(probe.input_gradient(away) - probe.input_gradient(delta), 2, self.squared)


def norm(gradient: jax.Array, p: Literal[1, 2, "inf"], squared: bool = False) -> jax.Array:
    """||gradient||_p per example, [B,...] -> [B], squared on request; its derivative at 0 is 0."""
    flat = gradient.reshape(len(gradient), -1)
    if p == 2 and squared:
        return jnp.sum(flat**2, axis=1)
    length = optax.safe_norm(flat, 0.0, ord={"inf": jnp.inf}.get(p, p), axis=1)  # type: ignore[call-overload]
    return length**2 if squared else length
