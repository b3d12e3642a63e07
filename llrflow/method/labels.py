"""What a label is to a loss: a class of each example, [B], or probabilities of the classes, [B,K] (soft labels).

A loss of soft labels q is the expectation over k ~ q of the loss of class k; where q is one-hot that is the loss of its
class. MixUp and CutMix make such labels (`llrflow.data.mix`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """-log softmax(logits)_y, or -sum_k q_k log softmax(logits)_k; in nats, [B,K], [B] or [B,K] -> [B]."""
    if y.ndim == 1:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return at_label(-jax.nn.log_softmax(logits), y)


def at_label(values: jax.Array, y: jax.Array) -> jax.Array:
    """values_y, or sum_k q_k values_k: each example's value at its label, [B,K], [B] or [B,K] -> [B].

    A class without probability adds nothing, whatever its value.
    """
    if y.ndim == 1:
        return jnp.take_along_axis(values, y[:, None], axis=-1)[:, 0]
    return jnp.sum(y * jnp.where(y > 0, values, 0.0), axis=-1)


def largest_other(values: jax.Array) -> jax.Array:
    """max_{j != k} values_j for every class k, [B,K] -> [B,K]."""
    (largest, second), (at, _) = (jnp.moveaxis(part, -1, 0)[..., None] for part in jax.lax.top_k(values, 2))
    return jnp.where(jnp.arange(values.shape[-1]) == at, second, largest)


def likeliest(y: jax.Array) -> jax.Array:
    """The class of an example, or the one with the largest share of it, [B] or [B,K] -> [B]."""
    return y if y.ndim == 1 else jnp.argmax(y, axis=-1)


def probabilities(y: jax.Array, classes: int) -> jax.Array:
    """One-hot labels, [B] -> [B,K]; soft ones as they are."""
    return jax.nn.one_hot(y, classes) if y.ndim == 1 else y
