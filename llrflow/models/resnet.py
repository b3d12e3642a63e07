"""Residual networks."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import haiku as hk
import jax
from pydantic import Field, field_validator

from llrflow.base.validation import invalid
from llrflow.components.registry import register
from llrflow.models.network import Convolutional, NormType, Sizes
from llrflow.models.residual import STAGES, Layers, ResidualNetwork, Stem, pooled_logits, positions


@register("model", "resnet")
class ResNet(Convolutional):
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
        layers = Layers(self.norm, self.act, batch_statistics, w_init=None, padding=self.padding)
        h = layers.conv(h, self.widths[0], 3, "stem")
        for stage, block, width, stride in positions(self.widths, [self.blocks] * len(self.widths)):
            h = layers.pre_basic(h, width, stride, f"stage{stage}_block{block}_")
        return pooled_logits(layers.activated(h, "final_norm"), classes)


@register("model", "wide_resnet")
class WideResNet(ResidualNetwork):
    """Wide residual network WRN-depth-width (Zagoruyko & Komodakis 2016): 28-8, 28-10, 34-10, 40-8, 70-16.

    Three stages of (depth - 4) / 6 pre-activation blocks, 16, 32 and 64 times `width` channels; no dropout.
    WRN-28-10 has 36,479,194 parameters for 10 classes.
    """

    depth: int = 28
    """Layers with weights on the longest path: 6 n + 4."""

    width: int = Field(default=10, ge=1)
    """Multiplies the channels of every stage."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth < 10 or depth % 6 != 4:
            raise invalid("depth", "is no depth of a wide residual network; give 6 n + 4, such as 28, 34, 40, 70")
        return depth

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        layers = self.layers(batch_statistics)
        h = self.stemmed(h, layers, 16, activated=False)
        widths = [self.width * channels for channels in (16, 32, 64)]
        h = layers.staged(h, Layers.pre_basic, widths, [(self.depth - 4) // 6] * 3)
        return pooled_logits(layers.activated(h, "final_norm"), classes)


class _StagedResNet(ResidualNetwork):
    pre: ClassVar[bool]
    """Whether norm and activation come before a convolution, or after it."""

    logits_init: ClassVar[hk.initializers.Initializer | None] = None
    """Weights of the last layer at the start; None for Haiku's default."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    """Layers with weights on the longest path."""

    stem: Stem = "imagenet"
    """First layers: a 3x3 convolution, or a 7x7 one of stride 2 and 3x3 max pooling of stride 2."""

    width: int = Field(default=64, ge=1)
    """Channels of the first stage's 3x3 convolutions; they double with every stage. Published: 64."""

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        layers = self.layers(batch_statistics)
        basic, bottleneck = (
            (Layers.pre_basic, Layers.pre_bottleneck) if self.pre else (Layers.post_basic, Layers.post_bottleneck)
        )
        h = self.stemmed(h, layers, self.width, activated=not self.pre)
        h = layers.staged(
            h,
            basic if self.depth < 50 else bottleneck,
            [self.width * 2**stage for stage in range(4)],
            STAGES[self.depth],
            lambda h, stage: self.after_stage(layers, h, stage),
        )
        return pooled_logits(self.ended(layers, h), classes, self.logits_init)

    def ended(self, layers: Layers, h: jax.Array) -> jax.Array:
        """What follows the last stage: nothing here."""
        return h

    def after_stage(self, layers: Layers, h: jax.Array, stage: int) -> jax.Array:
        """What follows a stage's last block: nothing here."""
        return h


@register("model", "resnet_v2")
class ResNetV2(_StagedResNet):
    """Pre-activation residual network (He et al. 2016b): norm and activation before every convolution.

    Depths 18 and 34 are made of two 3x3 convolutions, the others of bottlenecks with the stride in the 3x3
    convolution. The last stage is followed by a norm layer and an activation.
    """

    pre: ClassVar[bool] = True

    final_norm: Annotated[bool, Field(exclude_if=lambda final: final)] = True
    """Whether the last stage is followed by a norm layer and an activation."""

    shortcut: Annotated[Literal["activated", "raw"], Field(exclude_if=lambda of: of == "activated")] = "activated"
    """What the 1x1 convolution of a block reads: its input after norm and activation, or before."""

    def layers(self, batch_statistics: bool) -> Layers:
        """The layers of a pass."""
        return dataclasses.replace(super().layers(batch_statistics), raw_shortcut=self.shortcut == "raw")

    def ended(self, layers: Layers, h: jax.Array) -> jax.Array:
        """Norm and activation."""
        return layers.activated(h, "final_norm") if self.final_norm else h


@register("model", "preact_resnet")
class PreActResNet(ResNetV2):
    """`resnet_v2` as it is used on CIFAR-10: by default depth 18, a 3x3 stem, 11,172,170 parameters for 10 classes."""

    depth: Literal[18, 34, 50] = 18
    """Layers with weights on the longest path."""

    stem: Stem = "cifar"
    """First layers: a 3x3 convolution, or a 7x7 one of stride 2 and 3x3 max pooling of stride 2."""


@register("model", "resnet_v1")
class ResNetV1(_StagedResNet):
    """Post-activation residual network (He et al. 2016a), "v1.5": bottlenecks have their stride in the 3x3 convolution.

    Depths 18 and 34 are made of two 3x3 convolutions, the others of bottlenecks. For 1000 classes depth 50 has
    25,557,032 parameters and depth 152 60,192,808.
    """

    pre: ClassVar[bool] = False
