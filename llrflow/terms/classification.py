"""Terms of the logits at one point."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from llrflow.probe import Probe
from llrflow.registry import Component, Traced, register


@register("term", "cross_entropy")
class CrossEntropy(Component):
    """l(x + delta) = -sum_k q_k log softmax(f(x + delta))_k, in nats.

    q = (1 - s) onehot(y) + s / K with label smoothing s (Szegedy et al. 2016); s = 0 gives -log p_y.
    """

    label_smoothing: Annotated[float, Traced(ge=0, lt=1)] = 0.0
    """Share s of the label's probability spread evenly over all K classes."""

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], in nats."""
        uniform = -jnp.mean(jax.nn.log_softmax(probe.logits(delta)), axis=-1)
        return (1.0 - self.label_smoothing) * probe.loss(delta) + self.label_smoothing * uniform


@register("term", "margin")
class Margin(Component):
    """max_{k != y} f_k(x + delta) - f_y(x + delta), in logit units: positive when misclassified.

    The "difference between logits" of the LLR author response, which it found a stronger attack than
    cross-entropy (Carlini & Wagner 2017).
    """

    def __call__(self, probe: Probe, delta: jax.Array | None) -> jax.Array:
        """[B], in logits."""
        return margin(probe.logits(delta), probe.y)


def margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """max_{k != y} logits_k - logits_y, [B,K], [B] -> [B]."""
    is_label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - jnp.max(jnp.where(is_label, logits, -jnp.inf), axis=-1)
