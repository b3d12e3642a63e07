"""Changes of colour: functions of an image [H, W, C] in [0, 1] and a strength, and the jitter made of them.

The first four and `sharpness` blend the image with a version of it, clip((1 - f) * version + f * image): f = 1 leaves
it as it is, as in Pillow's ImageEnhance. The last four work on 256 levels or on channels as Pillow's ImageOps do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.components.registry import register
from llrflow.data.augment import Augmentation

Number = jax.Array | float

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def _blend(version: Number, image_HWC: jax.Array, factor: Number) -> jax.Array:
    return jnp.clip((1 - factor) * version + factor * image_HWC, 0, 1)


def _gray(image_HWC: jax.Array) -> jax.Array:
    """Brightness [H, W, 1]; of images that are not RGB the mean of the channels."""
    channels = image_HWC.shape[-1]
    weights = jnp.array(LUMA) if channels == 3 else jnp.full(channels, 1 / channels)
    return (image_HWC * weights).sum(-1, keepdims=True)


def brightness(image_HWC: jax.Array, factor: Number) -> jax.Array:
    """Blend with black."""
    return _blend(0.0, image_HWC, factor)


def contrast(image_HWC: jax.Array, factor: Number) -> jax.Array:
    """Blend with the mean brightness of the image."""
    return _blend(_gray(image_HWC).mean(), image_HWC, factor)


def saturation(image_HWC: jax.Array, factor: Number) -> jax.Array:
    """Blend with the gray image; images that are not RGB stay as they are."""
    return _blend(_gray(image_HWC), image_HWC, factor) if image_HWC.shape[-1] == 3 else image_HWC


def sharpness(image_HWC: jax.Array, factor: Number) -> jax.Array:
    """Blend with the smoothed image (3 x 3, weight 5 in the middle, sum 13); the outermost pixels stay."""
    height, width, _ = image_HWC.shape
    if min(height, width) < 3:
        return image_HWC
    around = sum(image_HWC[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth = image_HWC.at[1:-1, 1:-1].set((around + 4 * image_HWC[1:-1, 1:-1]) / 13)
    return _blend(smooth, image_HWC, factor)


def hue(image_HWC: jax.Array, turn: Number) -> jax.Array:
    """Turn the hue by a share of the colour circle, keeping HSV's saturation and value; only RGB has one."""
    if image_HWC.shape[-1] != 3:
        return image_HWC
    value, least = image_HWC.max(-1), image_HWC.min(-1)
    spread = value - least
    red, green, blue = jnp.moveaxis(image_HWC, -1, 0)
    safe = jnp.where(spread > 0, spread, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * turn
    # Channel n of HSV -> RGB: v - (v - least) * clip(min(k, 4 - k), 0, 1) with k = (n + sector) mod 6.
    k = (jnp.array([5.0, 3.0, 1.0]) + turned[..., None]) % 6
    return jnp.clip(value[..., None] - spread[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1), 0, 1)


def auto_contrast(image_HWC: jax.Array) -> jax.Array:
    """Stretch every channel to the whole range; a channel of one value stays."""
    low, high = image_HWC.min((0, 1)), image_HWC.max((0, 1))
    stretched = (image_HWC - low) / jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 1), image_HWC)


def equalize(image_HWC: jax.Array) -> jax.Array:
    """Give every channel a flat histogram over 256 levels, by the table that Pillow makes."""

    def one(channel_HW: jax.Array) -> jax.Array:
        levels = _levels(channel_HW)
        histogram = jnp.bincount(levels.ravel(), length=256)
        step = (levels.size - histogram[levels.max()]) // 255
        table = (jnp.cumsum(histogram) - histogram + step // 2) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.clip(table, 0, 255)[levels] / 255, channel_HW)

    return jax.vmap(one, in_axes=-1, out_axes=-1)(image_HWC)


def posterize(image_HWC: jax.Array, bits: int) -> jax.Array:
    """Keep the highest `bits` of each pixel's 8."""
    unit = 2 ** (8 - bits)
    return (_levels(image_HWC) // unit * unit) / 255


def solarize(image_HWC: jax.Array, threshold: Number) -> jax.Array:
    """Invert the pixels of level 256 * threshold and above; at 1 none."""
    return jnp.where(image_HWC * 255 < threshold * 256, image_HWC, 1 - image_HWC)


def _levels(image: jax.Array) -> jax.Array:
    """The nearest of 256 levels, int32."""
    return jnp.clip(jnp.rint(image * 255), 0, 255).astype(jnp.int32)


@register("augmentation", "color_jitter")
class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue, in this order, each by a random amount.

    The factors are uniform in [max(0, 1 - strength), 1 + strength], the hue turns by a uniform share in [-hue, hue] of
    the colour circle: torchvision's ColorJitter, which also shuffles the order. Gray images keep to the first two.
    """

    brightness: float = Field(0.4, ge=0)
    """Strength of the change of brightness; 0 leaves it alone."""

    contrast: float = Field(0.4, ge=0)
    """Strength of the change of contrast."""

    saturation: float = Field(0.4, ge=0)
    """Strength of the change of saturation."""

    hue: float = Field(0.1, ge=0, le=0.5)
    """Largest turn of the hue, as a share of the colour circle."""

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The image [H, W, C] in other colours."""
        keys = jax.random.split(key, 4)
        parts = ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))
        for own, (change, strength) in zip(keys[:3], parts, strict=True):
            if strength:
                factor = jax.random.uniform(own, minval=max(0.0, 1 - strength), maxval=1 + strength)
                image_HWC = change(image_HWC, factor)
        if self.hue:
            image_HWC = hue(image_HWC, jax.random.uniform(keys[3], minval=-self.hue, maxval=self.hue))
        return image_HWC
