"""The Local Linearity Regularizer (Qin et al. 2019, arXiv:1907.02610): its two terms.

|l(x + delta) - l(x)| <= g(delta; x) + |<delta, grad l(x)>|: together they bound how much the loss can grow.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from llrflow.components.registry import Component, register
from llrflow.method.probe import Probe


@register("term", "local_linearity")
class LocalLinearity(Component):
    """g(delta; x) = |l(x + delta) - l(x) - <delta, grad l(x)>|, in nats (Qin et al. 2019, Eq. 5).

    Its maximum over the ball is the local linearity measure gamma(epsilon, x). Its gradient is zero at delta = 0 (where
    examples are independent of each other), so a search that maximises it must start inside the ball.
    """

    needs_perturbation: ClassVar[bool] = True
    flat_at_zero: ClassVar[bool] = True

    def __call__(self, probe: Probe, delta: jax.Array) -> jax.Array:
        """[B], in nats."""
        return jnp.abs(probe.loss(delta) - probe.loss() - probe.slope(delta))


@register("term", "gradient_inner_product")
class GradientInnerProduct(Component):
    """|<delta, grad l(x)>|, in nats: the predicted change of the loss along delta (Qin et al. 2019, Eq. 8)."""

    needs_perturbation: ClassVar[bool] = True
    flat_at_zero: ClassVar[bool] = True

    def __call__(self, probe: Probe, delta: jax.Array) -> jax.Array:
        """[B], in nats."""
        return jnp.abs(probe.slope(delta))
