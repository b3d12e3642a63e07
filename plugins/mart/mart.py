"""MART: misclassification-aware adversarial training (Wang et al., ICLR 2020), a loss and a term."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from llrflow.plugin import Component, at_label, largest_other, register

# The guards of the authors' code: they keep the logarithms finite, and reference values depend on them.
ABOVE_ONE, ABOVE_TRUE, ABOVE_ZERO = 1.0001, 1.0000001, 1e-12


@register("term", "boosted_cross_entropy")
class BoostedCrossEntropy(Component):
    """-log q_y - log(1.0001 - max_{k != y} q_k), in nats, with q = softmax(f(x + delta))."""

    def __call__(self, probe, delta):
        """[B]."""
        q = jax.nn.softmax(probe.logits(delta))
        return probe.loss(delta) - at_label(jnp.log(ABOVE_ONE - largest_other(q) + ABOVE_ZERO), probe.y)


@register("term", "weighted_kl")
class WeightedKL(Component):
    """KL(p || q) (1 - p_y), in nats, p = softmax(f(x)), q = softmax(f(x + delta)): heavier where the network errs."""

    needs_perturbation: ClassVar[bool] = True

    def __call__(self, probe, delta):
        """[B]."""
        p, q = jax.nn.softmax(probe.logits()), jax.nn.softmax(probe.logits(delta))
        divergence = jnp.sum(p * (jnp.log(p + ABOVE_ZERO) - jnp.log(q + ABOVE_ZERO)), axis=-1)
        return divergence * (ABOVE_TRUE - at_label(p, probe.y))
