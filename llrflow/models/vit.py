"""Vision transformer."""

from __future__ import annotations

from typing import ClassVar, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from llrflow.base.validation import raise_at
from llrflow.components.registry import register
from llrflow.models.network import SMALL, Logits, Network, layer_norm, pooled
from llrflow.models.repeated import repeated


@register("model", "vit")
class ViT(Network):
    """Vision transformer (Dosovitskiy et al. 2021), pre-norm, with learned positions.

    The defaults are ViT-S/16 (Touvron et al. 2021): 22,050,664 parameters for 1000 classes at 224 x 224. No dropout.
    An image whose side the patch does not divide is padded with zeros. Published with `activation: gelu`.
    """

    has_blocks: ClassVar[bool] = True

    patch: int = Field(default=16, ge=1)
    """Side of the square patches; 4 suits images of 32 x 32."""

    width: int = Field(default=384, ge=1)
    """Numbers in a token."""

    depth: int = Field(default=12, ge=1)
    """Transformer blocks."""

    heads: int = Field(default=6, ge=1)
    """Attention heads; they divide the width."""

    expansion: int = Field(default=4, ge=1)
    """Hidden units of a block's multilayer perceptron, in multiples of the width."""

    pool: Literal["token", "mean"] = "token"
    """What the logits are read from: a classification token, or the mean of all patches."""

    @model_validator(mode="after")
    def _whole_heads(self) -> ViT:
        if self.width % self.heads:
            raise_at(("heads",), self.heads, "heads", f"does not divide the width {self.width}; choose a divisor")
        return self

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        patches = hk.Conv2D(self.width, self.patch, stride=self.patch, w_init=SMALL, name="patches")(h)
        h = patches.reshape(len(h), -1, self.width)
        if self.pool == "token":
            token = hk.get_parameter("token", (1, 1, self.width), init=SMALL)
            h = jnp.concatenate([jnp.broadcast_to(token, (len(h), 1, self.width)), h], axis=1)
        h = h + hk.get_parameter("positions", (1, *h.shape[1:]), init=SMALL)
        for block in range(self.depth):
            h = repeated(f"block{block}", ViT._block, self, h)
        h = layer_norm(h, "final_norm")
        return Logits(classes, w_init=SMALL)(h[:, 0] if self.pool == "token" else pooled(h, 1))

    def _block(self, h: jax.Array) -> jax.Array:
        """Attention, then a multilayer perceptron, both on normed tokens and added; [B,T,W] -> [B,T,W]."""
        h = h + self._attention(layer_norm(h, "norm1"))
        out = self.act(hk.Linear(self.expansion * self.width, w_init=SMALL, name="expand")(layer_norm(h, "norm2")))
        return h + hk.Linear(self.width, w_init=SMALL, name="contract")(out)

    def _attention(self, h: jax.Array) -> jax.Array:
        """softmax(q k' / sqrt(d)) v over the tokens, d = width / heads; [B,T,W] -> [B,T,W]."""
        qkv = hk.Linear(3 * self.width, w_init=SMALL, name="qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(*h.shape[:2], 3, self.heads, -1), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", q, k) / jnp.sqrt(q.shape[-1]), axis=-1)
        out = jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(h.shape)
        return hk.Linear(self.width, w_init=SMALL, name="projection")(out)
