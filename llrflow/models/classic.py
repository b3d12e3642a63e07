"""Plain networks: a multilayer perceptron and a small convolutional net."""

from __future__ import annotations

import haiku as hk
import jax

from llrflow.models.network import Network, NormType, Sizes, norm_layer
from llrflow.registry import register


@register("model", "mlp")
class MLP(Network):
    """Fully connected layers on flattened images."""

    widths: Sizes = (256, 256)
    """Units of each hidden layer."""

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        h = hk.Flatten()(h)
        for width in self.widths:
            h = self.act(hk.Linear(width)(h))
        return hk.Linear(classes)(h)


@register("model", "cnn")
class CNN(Network):
    """3x3 convolutions, each stage after the first halving the resolution, then a dense layer."""

    channels: Sizes = (32, 64)
    """Channels of each convolution."""

    dense: int = 128
    """Units of the dense layer before the logits; 0 leaves it out."""

    norm: NormType = "none"
    """Norm layer after each convolution."""

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        for stage, channels in enumerate(self.channels):
            h = hk.Conv2D(channels, 3, stride=1 if stage == 0 else 2, with_bias=self.norm == "none")(h)
            h = self.act(norm_layer(self.norm, h, batch_statistics, f"norm_{stage}"))
        h = hk.Flatten()(h)
        if self.dense:
            h = self.act(hk.Linear(self.dense)(h))
        return hk.Linear(classes)(h)
