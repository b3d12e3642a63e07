"""What residual networks are made of: layers under one policy, stems, residual blocks, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import haiku as hk
import jax
import jax.numpy as jnp

from llrflow.models.network import Convolutional, Logits, NormType, Padding, edges, norm_layer, pooled
from llrflow.models.repeated import repeated

HE = hk.initializers.VarianceScaling(2.0, "fan_out", "normal")
"""Weights of convolutions at the start (He et al. 2015), as the authors of the networks here have them."""

Stem = Literal["cifar", "imagenet"]
Block = Callable[["Layers", jax.Array, int, int], jax.Array]
"""(layers, features [B,H,W,C], width, stride) -> features: one of the block methods of `Layers`."""

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage by depth (He et al. 2016a, table 1); from depth 50 on they are bottlenecks."""

EXPANSION = 4
"""Channels that leave a bottleneck, in multiples of its width."""


@dataclass(frozen=True)
class Layers:
    """Convolutions and norm layers of one network on one pass."""

    norm: NormType
    act: Callable[[jax.Array], jax.Array]
    batch_statistics: bool
    zero_last: bool = False
    """Whether the last layer of every residual branch starts at zero, which makes a block the identity."""
    w_init: hk.initializers.Initializer | None = HE
    padding: Padding = "same"
    raw_shortcut: bool = False
    """Whether the 1x1 convolution of a pre-activation block is given its input before norm and activation."""

    def conv(self, h: jax.Array, channels: int, kernel: int, name: str, stride: int = 1, last: bool = False):
        """A square convolution, [B,H,W,C] -> [B,ceil(H/stride),ceil(W/stride),channels]; `last` of its branch."""
        w_init = jnp.zeros if last and self.zero_last else self.w_init
        bias, padding = self.norm == "none", edges(self.padding, kernel, stride)
        return hk.Conv2D(channels, kernel, stride, padding=padding, with_bias=bias, w_init=w_init, name=name)(h)

    def shortcut(self, h: jax.Array, channels: int, stride: int, name: str) -> jax.Array:
        """The 1x1 convolution of a block that changes the shape; without a bias, which its branch has."""
        return hk.Conv2D(channels, 1, stride=stride, with_bias=False, w_init=self.w_init, name=name)(h)

    def normed(self, h: jax.Array, name: str, last: bool = False) -> jax.Array:
        """The norm layer; `last` of its branch."""
        return norm_layer(self.norm, h, self.batch_statistics, name, zero=last and self.zero_last)

    def activated(self, h: jax.Array, name: str) -> jax.Array:
        """Norm layer, then activation."""
        return self.act(self.normed(h, name))

    def pre_basic(self, h: jax.Array, width: int, stride: int, prefix: str = "") -> jax.Array:
        """Two 3x3 convolutions, each after norm and activation (He et al. 2016b)."""
        out = self.activated(h, f"{prefix}norm1")
        if stride > 1 or h.shape[-1] != width:
            h = self.shortcut(h if self.raw_shortcut else out, width, stride, f"{prefix}shortcut")
        out = self.conv(out, width, 3, f"{prefix}conv1", stride)
        out = self.activated(out, f"{prefix}norm2")
        return h + self.conv(out, width, 3, f"{prefix}conv2", last=True)

    def pre_bottleneck(self, h: jax.Array, width: int, stride: int, prefix: str = "") -> jax.Array:
        """1x1, 3x3 and 1x1 convolutions, each after norm and activation; the 3x3 one has the stride."""
        out = self.activated(h, f"{prefix}norm1")
        if stride > 1 or h.shape[-1] != EXPANSION * width:
            h = self.shortcut(h if self.raw_shortcut else out, EXPANSION * width, stride, f"{prefix}shortcut")
        out = self.activated(self.conv(out, width, 1, f"{prefix}conv1"), f"{prefix}norm2")
        out = self.activated(self.conv(out, width, 3, f"{prefix}conv2", stride), f"{prefix}norm3")
        return h + self.conv(out, EXPANSION * width, 1, f"{prefix}conv3", last=True)

    def post_basic(self, h: jax.Array, width: int, stride: int, prefix: str = "") -> jax.Array:
        """Two 3x3 convolutions, each before its norm; the second activation follows the sum (He et al. 2016a)."""
        out = self.activated(self.conv(h, width, 3, f"{prefix}conv1", stride), f"{prefix}norm1")
        out = self._last(out, width, 3, f"{prefix}conv2", f"{prefix}norm2")
        return self._sum(h, out, stride, prefix)

    def post_bottleneck(self, h: jax.Array, width: int, stride: int, prefix: str = "") -> jax.Array:
        """1x1, 3x3 and 1x1 convolutions, each before its norm.

        The 3x3 one has the stride ("v1.5", Goyal et al. 2017, section 5.1), not the first as in He et al. 2016a.
        """
        out = self.activated(self.conv(h, width, 1, f"{prefix}conv1"), f"{prefix}norm1")
        out = self.activated(self.conv(out, width, 3, f"{prefix}conv2", stride), f"{prefix}norm2")
        out = self._last(out, EXPANSION * width, 1, f"{prefix}conv3", f"{prefix}norm3")
        return self._sum(h, out, stride, prefix)

    def _last(self, h: jax.Array, channels: int, kernel: int, conv: str, norm: str) -> jax.Array:
        """Convolution and norm that end a branch; zero at the start in the scale, or in the weights without one."""
        h = self.conv(h, channels, kernel, conv, last=self.norm == "none")
        return self.normed(h, norm, last=True)

    def _sum(self, h: jax.Array, out: jax.Array, stride: int, prefix: str) -> jax.Array:
        if stride > 1 or h.shape[-1] != out.shape[-1]:
            h = self.normed(self.shortcut(h, out.shape[-1], stride, f"{prefix}shortcut"), f"{prefix}shortcut_norm")
        return self.act(h + out)

    def staged(
        self,
        h: jax.Array,
        block: Block,
        widths: Sequence[int],
        counts: Sequence[int],
        after: Callable[[jax.Array, int], jax.Array] = lambda h, stage: h,
    ) -> jax.Array:
        """Blocks `stage{S}_block{N}`; the first of every stage but stage 0 halves the resolution."""
        for stage, number, width, stride in positions(widths, counts):
            h = repeated(f"stage{stage}_block{number}", block, self, h, width, stride)
            if number == counts[stage] - 1:
                h = after(h, stage)
        return h


def positions(widths: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(stage, block, width, stride) of every block: stride 2 for the first one of each stage but stage 0."""
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for number in range(count):
            yield stage, number, width, 2 if stage > 0 and number == 0 else 1


def pooled_logits(h: jax.Array, classes: int, w_init: hk.initializers.Initializer | None = None) -> jax.Array:
    """Global average pooling, then a linear layer: [B,H,W,C] -> [B,K]."""
    return Logits(classes, w_init=w_init)(pooled(h, (1, 2)))


class ResidualNetwork(Convolutional):
    """Base of the published residual networks."""

    has_blocks: ClassVar[bool] = True

    norm: NormType = "batch"
    """Norm layers; with `none` convolutions have a bias."""

    stem: Stem = "cifar"
    """First layers: a 3x3 convolution, or a 7x7 one of stride 2 and 3x3 max pooling of stride 2."""

    zero_init_residual: bool = False
    """Start every residual block as the identity: the last layer of its branch is zero (Goyal et al. 2017)."""

    def layers(self, batch_statistics: bool) -> Layers:
        """The layers of a pass."""
        return Layers(self.norm, self.act, batch_statistics, self.zero_init_residual, padding=self.padding)

    def stemmed(self, h: jax.Array, layers: Layers, channels: int, activated: bool) -> jax.Array:
        """The stem; `activated` with norm and activation before any pooling, as post-activation networks have it."""
        imagenet = self.stem == "imagenet"
        h = layers.conv(h, channels, 7 if imagenet else 3, "stem", stride=2 if imagenet else 1)
        if activated:
            h = layers.activated(h, "stem_norm")
        return max_pool(h, self.padding) if imagenet else h


def max_pool(h: jax.Array, padding: Padding) -> jax.Array:
    """Maxima of 3x3 windows with a stride of 2."""
    found = edges(padding, 3, 2)
    if not isinstance(found, str):
        h, found = jnp.pad(h, ((0, 0), *found, (0, 0)), constant_values=-jnp.inf), "VALID"
    return hk.max_pool(h, (3, 3, 1), (2, 2, 1), found)
