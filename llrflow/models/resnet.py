"""Residual networks."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.models.network import Network, NormType, Sizes, norm_layer
from llrflow.registry import register


@register("model", "resnet")
class ResNet(Network):
    """A small pre-activation residual network (He et al. 2016b): a 3x3 stem, then stages of two-convolution blocks.

    The first block of every stage after the first halves the resolution; a 1x1 convolution carries the
    shortcut wherever the shape changes. Global average pooling, then a linear layer.
    """

    widths: Sizes = (16, 32, 64)
    """Channels of each stage."""

    blocks: int = Field(default=1, ge=1)
    """Blocks in each stage."""

    norm: NormType = "batch"
    """Norm layer before each activation."""

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        bias = self.norm == "none"
        h = hk.Conv2D(self.widths[0], 3, with_bias=bias, name="stem")(h)
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                name, stride = f"stage{stage}_block{block}", 2 if stage > 0 and block == 0 else 1
                out = self.act(norm_layer(self.norm, h, batch_statistics, f"{name}_norm1"))
                if stride > 1 or h.shape[-1] != width:
                    h = hk.Conv2D(width, 1, stride=stride, with_bias=False, name=f"{name}_shortcut")(out)
                out = hk.Conv2D(width, 3, stride=stride, with_bias=bias, name=f"{name}_conv1")(out)
                out = self.act(norm_layer(self.norm, out, batch_statistics, f"{name}_norm2"))
                h = h + hk.Conv2D(width, 3, with_bias=bias, name=f"{name}_conv2")(out)
        h = self.act(norm_layer(self.norm, h, batch_statistics, "final_norm"))
        return hk.Linear(classes, name="logits")(jnp.mean(h, axis=(1, 2)))
