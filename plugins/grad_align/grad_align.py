"""GradAlign (Andriushchenko & Flammarion, NeurIPS 2020, arXiv:2007.02617): aligned gradients."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from llrflow.plugin import Component, register


@register("term", "grad_align")
class GradAlign(Component):
    """1 - cos(grad l(x), grad l(x + eta)), eta ~ U(-epsilon, epsilon), not cut to the pixel box; 0 where one vanishes.

    The gradient at x is a constant, as in the authors' code. They average over the examples whose gradients do not
    vanish; here the others add 0 to the mean over all.
    """

    def __call__(self, probe, delta):
        """[B], without unit; the perturbation is not used."""
        return self.misalignment(probe, probe.threat.uniform(probe.keys("grad_align"), probe.x))

    def misalignment(self, probe, eta):
        """The term at given eta [B,H,W,C]: its parameter gradient costs one directional derivative at x + eta."""
        clean = probe.input_gradient(constant=True).reshape(len(probe.x), -1)
        other = probe.input_gradient(eta).reshape(clean.shape)
        alive = jnp.any(clean != 0, axis=1) & jnp.any(other != 0, axis=1)
        return jnp.where(alive, 1 - optax.losses.cosine_similarity(other, clean, epsilon=1e-12), 0.0)
