"""Augmentations that keep a part of an image: a resized window, or all but a square."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from llrflow.base.validation import invalid
from llrflow.components.registry import register
from llrflow.data.augment import Augmentation

TRIES = 10
"""Windows that are drawn for an image, of which the first that fits is taken."""


@register("augmentation", "random_resized_crop")
class RandomResizedCrop(Augmentation):
    """Cut a window of random area and aspect ratio at a random place, and resize it to the size of the image.

    Szegedy et al. 2015 (arXiv:1409.4842, section 6), with the ranges that ImageNet training uses since. As usual, ten
    windows are drawn and the first that fits is taken; if none fits, the largest centred one of an allowed ratio. The
    window need not start at a whole pixel. Bilinear, with an antialiasing filter where it shrinks, as Pillow resizes.

    Of images that vary in size the window is cut out of the original while it is decoded, at whole pixels; then this
    must be the first augmentation.
    """

    cuts_originals: ClassVar[bool] = True

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

    def window(self, height: int, width: int, key: jax.Array) -> Any:
        """(top, left, height, width) of the window in pixels, real numbers."""
        areas, ratios, places = jax.random.split(key, 3)
        uniform = jax.random.uniform
        return self.window_of(
            height, width, uniform(areas, (TRIES,)), uniform(ratios, (TRIES,)), uniform(places, (2,)), jnp
        )

    def window_of(self, height: int, width: int, areas: Any, ratios: Any, places: Any, np: Any) -> Any:
        """As `window`, from uniform draws in [0, 1): `TRIES` of areas and of ratios, and 2 of places.

        `np` is NumPy or jax.numpy, whichever the draws belong to.
        """
        area = height * width * (self.scale[0] + areas * (self.scale[1] - self.scale[0]))
        low, high = np.log(np.array(self.ratio, areas.dtype))
        ratio = np.exp(low + ratios * (high - low))
        tall, wide = np.sqrt(area / ratio), np.sqrt(area * ratio)
        fits = (tall <= height) & (wide <= width)
        first = np.argmax(fits)
        allowed = min(max(width / height, self.ratio[0]), self.ratio[1])
        largest = min(height, width / allowed), min(width, height * allowed)
        tall = np.where(fits[first], tall[first], largest[0])
        wide = np.where(fits[first], wide[first], largest[1])
        share = np.where(fits[first], places, 0.5)
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
