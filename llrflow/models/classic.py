"""Plain networks: a multilayer perceptron and a small convolutional net."""

from __future__ import annotations

import haiku as hk
import jax
from pydantic import Field, model_validator

from llrflow.base.validation import raise_at
from llrflow.components.registry import register
from llrflow.models.network import Convolutional, Logits, Network, NormType, Sizes, edges, norm_layer


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
        return Logits(classes, name="linear")(h)


@register("model", "cnn")
class CNN(Convolutional):
    """Convolutions, then a dense layer.

    `channels: [16, 32], kernel: 4, strides: [2, 2], dense: 100` is the small network of Wong & Kolter 2018.
    """

    channels: Sizes = (32, 64)
    """Channels of each convolution."""

    kernel: int = Field(default=3, ge=1)
    """Side of the square filters."""

    strides: Sizes | None = None
    """Stride of each convolution; default 1 for the first and 2 for the others."""

    dense: int = 128
    """Units of the dense layer before the logits; 0 leaves it out."""

    norm: NormType = "none"
    """Norm layer after each convolution."""

    @model_validator(mode="after")
    def _one_stride_each(self) -> CNN:
        if self.strides is not None and len(self.strides) != len(self.channels):
            raise_at(
                ("strides",), list(self.strides), "length", f"needs {len(self.channels)} values, one per convolution"
            )
        return self

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        strides = self.strides or (1, *(2 for _ in self.channels[1:]))
        for stage, (channels, stride) in enumerate(zip(self.channels, strides, strict=True)):
            padding = edges(self.padding, self.kernel, stride)
            h = hk.Conv2D(channels, self.kernel, stride, padding=padding, with_bias=self.norm == "none")(h)
            h = self.act(norm_layer(self.norm, h, batch_statistics, f"norm_{stage}"))
        h = hk.Flatten()(h)
        if self.dense:
            h = self.act(hk.Linear(self.dense)(h))
        return Logits(classes, name="linear")(h)
