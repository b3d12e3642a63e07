"""ConvNeXt: a convolutional network with layer norm only."""

from __future__ import annotations

from typing import ClassVar

import haiku as hk
import jax
from pydantic import Field, model_validator

from llrflow.base.validation import raise_at
from llrflow.components.registry import register
from llrflow.models.network import SMALL, Convolutional, Logits, Sizes, edges, layer_norm, pooled
from llrflow.models.repeated import repeated


@register("model", "convnext")
class ConvNeXt(Convolutional):
    """ConvNeXt (Liu et al. 2022): 7x7 depthwise convolutions and pointwise layers of four times the width.

    The defaults are ConvNeXt-T, 28,589,128 parameters for 1000 classes; atto is `depths: [2, 2, 6, 2], widths:
    [40, 80, 160, 320]`, femto the same with `widths: [48, 96, 192, 384]`. Layer norm, so that no prediction and no
    gradient depends on batch-mates. No stochastic depth. Published with `activation: gelu`.
    """

    has_blocks: ClassVar[bool] = True

    depths: Sizes = (3, 3, 9, 3)
    """Blocks of each stage."""

    widths: Sizes = (96, 192, 384, 768)
    """Channels of each stage; a 2x2 convolution of stride 2 leads from one to the next."""

    patch: int = Field(default=4, ge=1)
    """Side and stride of the first convolution: 4 as published; 1 or 2 suit images of 32 x 32."""

    layer_scale: float = 1e-6
    """What every residual branch is multiplied by at the start, a learned number per channel."""

    @model_validator(mode="after")
    def _one_width_each(self) -> ConvNeXt:
        if len(self.widths) != len(self.depths):
            raise_at(("widths",), list(self.widths), "length", f"needs {len(self.depths)} values, one per stage")
        return self

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K]."""
        h = self._shrunk(h, self.widths[0], self.patch, "stem")
        h = layer_norm(h, "stem_norm")
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                h = layer_norm(h, f"stage{stage}_downsample_norm")
                h = self._shrunk(h, width, 2, f"stage{stage}_downsample")
            for block in range(depth):
                h = repeated(f"stage{stage}_block{block}", ConvNeXt._block, self, h)
        return Logits(classes, w_init=SMALL)(layer_norm(pooled(h, (1, 2)), "final_norm"))

    def _shrunk(self, h: jax.Array, width: int, size: int, name: str) -> jax.Array:
        padding = edges(self.padding, size, size)
        return hk.Conv2D(width, size, stride=size, padding=padding, w_init=SMALL, name=name)(h)

    def _block(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        depthwise = hk.Conv2D(width, 7, w_init=SMALL, feature_group_count=width, name="depthwise")
        out = layer_norm(depthwise(h), "norm")
        out = self.act(hk.Linear(4 * width, w_init=SMALL, name="expand")(out))
        out = hk.Linear(width, w_init=SMALL, name="contract")(out)
        scale = hk.get_parameter("scale", (width,), init=hk.initializers.Constant(self.layer_scale))
        return h + scale * out
