"""AWP: adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv:2004.05884), for any objective."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from llrflow.plugin import Component, Traced, register, weights_of


@register("gradient", "awp")
class AdversarialWeightPerturbation(Component):
    """The gradient at w + v with v = gamma ||w|| g / ||g||, g the objective's gradient at w; per weight tensor.

    Biases and scales of norm layers stay where they are. The adversarial images are found once, at w, as in the
    authors' code; the update is applied to w, and so is weight decay. Costs a second objective, without its searches.
    """

    gamma: Annotated[float, Traced(ge=0)] = 0.01
    """Relative size of v: 0.01 for adversarial training, 0.005 for TRADES in the paper; a schedule warms it up."""

    def __call__(self, gradient, params):
        """The Gradient that the step applies."""
        uphill = gradient(params)
        moved = jax.tree.map(self.moved, params, uphill.value, weights_of(params))
        return gradient(moved, uphill.perturbations)

    def moved(self, weights, slope, is_weight):
        """w + v of one tensor, or what is no weight of a layer as it is."""
        if not is_weight:
            return weights
        return weights + self.gamma * jnp.linalg.norm(weights) * slope / (jnp.linalg.norm(slope) + 1e-20)
