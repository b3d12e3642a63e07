"""ELLE: efficient local linearity regularization (Abad Rocamora et al., ICLR 2024, arXiv:2401.11618).

A loss that is linear along a segment takes at a point of it the interpolated value of its ends. Two random
points of the ball and one between them need three forward passes, no search and no input gradient.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from llrflow.plugin import Answer, Component, Traced, register


@register("term", "elle")
class Elle(Component):
    """(l(x_c) - (1 - a) l(x_a) - a l(x_b))^2, in nats squared.

    x_a, x_b = x + U(-epsilon, epsilon), not cut to the pixel box, x_c = (1 - a) x_a + a x_b, a ~ U(0, 1).
    """

    def __call__(self, probe, delta):
        """[B]; the perturbation is not used."""
        alpha = jax.vmap(lambda key: jax.random.uniform(key, (), probe.x.dtype))(probe.keys("elle alpha"))
        ends = (probe.threat.uniform(probe.keys(f"elle {end}"), probe.x) for end in "ab")
        return self.error(probe, *ends, alpha)

    def error(self, probe, a, b, alpha):
        """The squared error at given ends a, b [B,H,W,C] and alpha [B]."""
        share = alpha[:, None, None, None]
        middle = probe.loss((1 - share) * a + share * b)
        return (middle - (1 - alpha) * probe.loss(a) - alpha * probe.loss(b)) ** 2


@register("term", "elle_a")
class ElleA(Elle):
    """ELLE-A: the error times a factor in [0, 1] that jumps to 1 when the loss turns non-linear, and decays.

    The factor of the first step is 0. After a step whose batch mean exceeds mean + sensitivity * std of all
    earlier ones (at least three), it is 1; else it is multiplied by `decay`. The weight is the paper's lambda_max.
    """

    sensitivity: Annotated[float, Traced(ge=0)] = 2.0
    """Standard deviations above the mean that count as non-linear."""

    decay: Annotated[float, Traced(ge=0, le=1)] = 0.99
    """Factor of the factor after every other step."""

    def init_state(self):
        """Factor, and number, mean and summed squared deviation of the errors so far (Welford 1962)."""
        return {name: jnp.zeros(()) for name in ("factor", "count", "mean", "deviation")}

    def __call__(self, probe, delta, state):
        """[B]; logs `factor` and the `error` without it."""
        error = super().__call__(probe, delta)
        batch = probe.batch_mean(error)
        spread = jnp.sqrt(state["deviation"] / jnp.maximum(state["count"], 1))
        jumps = (state["count"] > 2) & (batch > state["mean"] + self.sensitivity * spread)
        count = state["count"] + 1
        mean = state["mean"] + (batch - state["mean"]) / count
        after = {
            "factor": jnp.where(jumps, 1.0, self.decay * state["factor"]),
            "count": count,
            "mean": mean,
            "deviation": state["deviation"] + (batch - state["mean"]) * (batch - mean),
        }
        return Answer(state["factor"] * error, {"factor": state["factor"], "error": error}, after)
