"""MART: misclassification-aware adversarial training (Wang et al., ICLR 2020), a loss and a term."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from llrflow.registry import Component, register

# The guards of the authors' code: they keep the logarithms finite, and reference values depend on them.
ABOVE_ONE, ABOVE_TRUE, ABOVE_ZERO = 1.0001, 1.0000001, 1e-12


@register("term", "boosted_cross_entropy")
class BoostedCrossEntropy(Component):
    """-log q_y - log(1.0001 - max_{k != y} q_k), in nats, with q = softmax(f(x + delta))."""

    def __call__(self, probe, delta):
        """[B]."""
        q = jax.nn.softmax(probe.logits(delta))
        is_label = jax.nn.one_hot(probe.y, q.shape[-1], dtype=bool)
        likeliest_wrong = jnp.max(jnp.where(is_label, 0.0, q), axis=-1)
        return probe.loss(delta) - jnp.log(ABOVE_ONE - likeliest_wrong + ABOVE_ZERO)


@register("term", "weighted_kl")
class WeightedKL(Component):
    """KL(p || q) (1 - p_y), in nats, p = softmax(f(x)), q = softmax(f(x + delta)): heavier where the network errs."""

    needs_perturbation: ClassVar[bool] = True

    def __call__(self, probe, delta):
        """[B]."""
        p, q = jax.nn.softmax(probe.logits()), jax.nn.softmax(probe.logits(delta))
        divergence = jnp.sum(p * (jnp.log(p + ABOVE_ZERO) - jnp.log(q + ABOVE_ZERO)), axis=-1)
        return divergence * (ABOVE_TRUE - jnp.take_along_axis(p, probe.y[:, None], axis=-1)[:, 0])
