"""Augmentations that keep a part of an image: a resized window, or all but a square."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from llrflow.data.augment import Augmentation
from llrflow.registry import invalid, register

_TRIES = 10


@register("augmentation", "random_resized_crop")
class RandomResizedCrop(Augmentation):
    """Cut a window of random area and aspect ratio at a random place, and resize it to the size of the image.

    Szegedy et al. 2015 (arXiv:1409.4842, section 6), with the ranges that ImageNet training uses since. As usual, ten
    windows are drawn and the first that fits is taken; if none fits, the largest centred one of an allowed ratio. The
    window need not start at a whole pixel. Bilinear, with an antialiasing filter where it shrinks, as Pillow resizes.
    """

    scale: Annotated[tuple[float, float], Field(strict=False)] = (0.08, 1.0)
    """Smallest and largest area of the window, as shares of the image's."""

    ratio: Annotated[tuple[float, float], Field(strict=False)] = (0.75, 4 / 3)
    """Smallest and largest width by height of the window, drawn on a logarithmic scale."""

    @model_validator(mode="after")
    def _ranges(self) -> RandomResizedCrop:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise invalid("scale", "needs 0 < smallest <= largest <= 1 in `scale`; write for example [0.08, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise invalid("ratio", "needs 0 < smallest <= largest in `ratio`; write for example [0.75, 1.333]")
        return self

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The resized window [H, W, C]."""
        return resized_window(image_HWC, *self.window(image_HWC.shape[0], image_HWC.shape[1], key))

    def window(self, height: int, width: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(top, left, height, width) of the window in pixels, real numbers."""
        areas, ratios, places = jax.random.split(key, 3)
        area = height * width * jax.random.uniform(areas, (_TRIES,), minval=self.scale[0], maxval=self.scale[1])
        low, high = jnp.log(jnp.array(self.ratio))
        ratio = jnp.exp(jax.random.uniform(ratios, (_TRIES,), minval=low, maxval=high))
        tall, wide = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
        fits = (tall <= height) & (wide <= width)
        first = jnp.argmax(fits)
        allowed = min(max(width / height, self.ratio[0]), self.ratio[1])
        largest = min(height, width / allowed), min(width, height * allowed)
        tall = jnp.where(fits[first], tall[first], largest[0])
        wide = jnp.where(fits[first], wide[first], largest[1])
        share = jnp.where(fits[first], jax.random.uniform(places, (2,)), 0.5)
        return share[0] * (height - tall), share[1] * (width - wide), tall, wide


def resized_window(
    image_HWC: jax.Array, top: jax.Array, left: jax.Array, tall: jax.Array, wide: jax.Array
) -> jax.Array:
    """The window of an image, resized to the image's own size [H, W, C]; places and sizes in pixels."""
    height, width, _ = image_HWC.shape
    scale = jnp.stack([height / tall, width / wide])
    resized = jax.image.scale_and_translate(
        image_HWC, image_HWC.shape, (0, 1), scale, -jnp.stack([top, left]) * scale, method="linear", antialias=True
    )
    return jnp.clip(resized, 0, 1)


@register("augmentation", "cutout")
class Cutout(Augmentation):
    """Fill a square whose centre is a uniformly random pixel; what of it lies outside the image is left out.

    DeVries & Taylor 2017 (arXiv:1708.04552): size 16 for CIFAR-10, 8 for CIFAR-100. They fill with zeros after
    normalisation, that is with the mean of the dataset: give that as `fill` to follow them exactly.
    """

    size: int = Field(16, ge=1)
    """Side of the square in pixels."""

    fill: float = Field(0.0, ge=0, le=1)
    """Value of its pixels, in [0, 1]."""

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The image [H, W, C] with the square in it."""
        height, width, _ = image_HWC.shape
        row, column = (
            jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), (height, width), strict=True)
        )
        first = -(self.size // 2)
        rows = jnp.arange(height)[:, None] - row - first
        columns = jnp.arange(width)[None, :] - column - first
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return jnp.where(inside[..., None], self.fill, image_HWC)
