"""Feature denoising: residual networks that average features over places that look alike."""

from __future__ import annotations

from typing import ClassVar, Literal

import haiku as hk
import jax
import jax.numpy as jnp

from llrflow.components.registry import register
from llrflow.models.network import norm_layer
from llrflow.models.residual import Layers
from llrflow.models.resnet import ResNetV1

TINY = hk.initializers.RandomNormal(0.01)
"""Weights of the last layer (Goyal et al. 2017, section 5.1) and of the embeddings at the start: the authors'."""


def non_local_mean(
    theta: jax.Array, phi: jax.Array, x: jax.Array, kind: Literal["gaussian", "dot_product"]
) -> jax.Array:
    """y_i = sum_j f(theta_i, phi_j) x_j / C_i over the N = H W places of each image (Xie et al. 2019, section 4.1).

    gaussian: f = exp(<theta_i, phi_j> / sqrt(d)), C_i = sum_j f, that is a softmax over j.
    dot_product: f = <theta_i, phi_j>, C_i = N.

    theta, phi [B,H,W,d] and x [B,H,W,C] -> [B,H,W,C].
    """
    depth, places = theta.shape[-1], x.shape[1] * x.shape[2]
    theta, phi, values = (a.reshape(len(x), places, -1) for a in (theta, phi, x))
    if kind == "gaussian":
        affinity = jax.nn.softmax(jnp.einsum("bid,bjd->bij", theta, phi) / jnp.sqrt(depth), axis=-1)
        out = jnp.einsum("bij,bjc->bic", affinity, values)
    else:
        # Products in the other order, d x C in place of N x N: the same sum, and less of it unless images are tiny.
        out = jnp.einsum("bid,bdc->bic", theta, jnp.einsum("bjd,bjc->bdc", phi, values)) / places
    return out.reshape(x.shape)


@register("model", "denoise_resnet")
class DenoiseResNet(ResNetV1):
    """`resnet_v1` with a denoising block after each stage (Xie et al. 2019, arXiv:1812.03411).

    A block is x + norm(conv1x1(non-local mean of x)), whose norm's scale starts at zero, so that it starts as the
    identity (without norm layers the convolution's weights do). The weights of the last layer start from N(0, 0.01^2).
    """

    logits_init: ClassVar[hk.initializers.Initializer | None] = TINY

    denoise: Literal["gaussian", "dot_product"] = "gaussian"
    """Affinity of two places: softmax of their scaled inner products, or the inner products over N places."""

    embed: bool = True
    """Take the affinity between two learned 1x1 convolutions of half the channels, or of the features themselves."""

    zero_init_residual: bool = True
    """Start every residual block as the identity: the last layer of its branch is zero, as in the authors' code."""

    def after_stage(self, layers: Layers, h: jax.Array, stage: int) -> jax.Array:
        """The denoising block."""
        name, channels, theta, phi = f"stage{stage}_denoise", h.shape[-1], h, h
        if self.embed:
            # Half the channels and no bias, as in the authors' code.
            theta, phi = (
                hk.Conv2D(channels // 2, 1, with_bias=False, w_init=TINY, name=f"{name}_{part}")(h)
                for part in ("theta", "phi")
            )
        out = non_local_mean(theta, phi, h, self.denoise)
        bare = self.norm == "none"
        out = hk.Conv2D(channels, 1, with_bias=bare, w_init=jnp.zeros if bare else layers.w_init, name=f"{name}_conv")(
            out
        )
        return h + norm_layer(self.norm, out, layers.batch_statistics, f"{name}_norm", zero=True)
