"""The plugin that docs/plugins.md writes: a confidence penalty (Pereyra et al. 2017, arXiv:1701.06548)."""

import jax
import jax.numpy as jnp

from llrflow.plugin import Component, register


@register("term", "confidence")
class Confidence(Component):
    """sum_k p_k log p_k, the negative entropy of the prediction p = softmax(f(x + delta) / temperature), in nats."""

    temperature: float = 1.0
    """Divides the logits."""

    def __call__(self, probe, delta):
        """[B]."""
        log_p = jax.nn.log_softmax(probe.logits(delta) / self.temperature)
        return jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
