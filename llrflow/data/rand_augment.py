"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): a few operations, drawn at random, at one strength for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from pydantic import Field

from llrflow.base.validation import invalid
from llrflow.components.registry import register
from llrflow.data.augment import Augmentation
from llrflow.data.color import (
    auto_contrast,
    brightness,
    contrast,
    equalize,
    posterize,
    saturation,
    sharpness,
    solarize,
)

Operation = Literal[
    "identity",
    "auto_contrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
]

ALL: tuple[Operation, ...] = Operation.__args__  # type: ignore[attr-defined]
"""The fourteen operations of the paper, in its order."""

STRONGEST = 30
"""The largest magnitude."""


_product = partial(jnp.einsum, precision="highest")
"""Places are sums of products, and rounded to bfloat16, which TPUs do unasked, they are pixels away."""


def affine(image_HWC: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """The image whose pixel at p = (row, column) is the image's value at matrix @ p + shift; bilinear, black outside.

    A pixel's place is that of its centre, (row + 1/2, column + 1/2).
    """
    height, width, _ = image_HWC.shape
    rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    places = _product("ij,jhw->ihw", matrix, jnp.stack([rows, columns])) + shift[:, None, None] - 0.5

    def one(channel_HW: jax.Array) -> jax.Array:
        return map_coordinates(channel_HW, list(places), order=1, mode="constant", cval=0.0)

    return jnp.clip(jax.vmap(one, in_axes=-1, out_axes=-1)(image_HWC), 0, 1)


def rotate(image_HWC: jax.Array, degrees: jax.Array | float) -> jax.Array:
    """Turn the image counter-clockwise about its centre."""
    angle = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cosine, sine], [-sine, cosine]])
    centre = jnp.array(image_HWC.shape[:2]) / 2
    return affine(image_HWC, matrix, centre - _product("ij,j->i", matrix, centre))


def shear_x(image_HWC: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Move every row to the left by `amount` times its distance from the top edge."""
    return affine(image_HWC, jnp.array([[1.0, 0.0], [amount, 1.0]]), jnp.zeros(2))


def shear_y(image_HWC: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Move every column up by `amount` times its distance from the left edge."""
    return affine(image_HWC, jnp.array([[1.0, amount], [0.0, 1.0]]), jnp.zeros(2))


def translate(image_HWC: jax.Array, down: jax.Array | float, right: jax.Array | float) -> jax.Array:
    """Move the image by numbers of pixels."""
    return affine(image_HWC, jnp.eye(2), -jnp.array([down, right], jnp.float32))


@register("augmentation", "rand_augment")
class RandAugment(Augmentation):
    """`layers` operations one after the other, each drawn uniformly from `operations`, all at strength `magnitude`.

    At the largest magnitude, 30, and in proportion below it: `rotate` by 30 degrees, `shear_x` and `shear_y` by 0.3,
    `translate_x` and `translate_y` by 150/331 of the image's side; `color` (saturation), `contrast`, `brightness` and
    `sharpness` by factors 1 +- 0.9, all with a random sign; `solarize` above 256 - 256 * magnitude / 30; `posterize` to
    8 - 4 * magnitude / 30 bits. `identity`, `auto_contrast` and `equalize` have no strength. These are the ranges of
    torchvision's RandAugment. Pixels from outside are black. Every operation is computed for every image and one result
    taken, so fewer `operations` cost less.
    """

    layers: int = Field(2, ge=1, le=10)
    """Operations per image: N of the paper."""

    magnitude: int = Field(9, ge=0, le=STRONGEST)
    """Strength of all of them, 0 to 30: M of the paper."""

    operations: Annotated[tuple[Operation, ...], Field(strict=False, min_length=1)] = ALL
    """What to draw from."""

    def model_post_init(self, context: object, /) -> None:
        """Refuse an operation that is named twice."""
        if len(set(self.operations)) < len(self.operations):
            raise invalid("twice", "names an operation twice; name each once")

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The image [H, W, C] after all layers."""
        known = operations(self.magnitude, image_HWC.shape[0], image_HWC.shape[1])
        branches = [known[name] for name in self.operations]
        for own in jax.random.split(key, self.layers):
            which, side = jax.random.split(own)
            sign = jnp.where(jax.random.bernoulli(side), 1.0, -1.0)
            image_HWC = jax.lax.switch(jax.random.randint(which, (), 0, len(branches)), branches, image_HWC, sign)
        return image_HWC


def operations(magnitude: int, height: int, width: int) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Every operation at a magnitude, as a function of the image [H, W, C] and a sign (1 or -1)."""
    level = magnitude / STRONGEST
    angle, shear, enhance = 30 * level, 0.3 * level, 0.9 * level
    down, right = 150 / 331 * height * level, 150 / 331 * width * level
    return {
        "identity": lambda image, sign: image,
        "auto_contrast": lambda image, sign: auto_contrast(image),
        "equalize": lambda image, sign: equalize(image),
        "rotate": lambda image, sign: rotate(image, sign * angle),
        "solarize": lambda image, sign: solarize(image, 1 - level),
        "color": lambda image, sign: saturation(image, 1 + sign * enhance),
        "posterize": lambda image, sign: posterize(image, 8 - round(4 * level)),
        "contrast": lambda image, sign: contrast(image, 1 + sign * enhance),
        "brightness": lambda image, sign: brightness(image, 1 + sign * enhance),
        "sharpness": lambda image, sign: sharpness(image, 1 + sign * enhance),
        "shear_x": lambda image, sign: shear_x(image, sign * shear),
        "shear_y": lambda image, sign: shear_y(image, sign * shear),
        "translate_x": lambda image, sign: translate(image, 0.0, sign * right),
        "translate_y": lambda image, sign: translate(image, sign * down, 0.0),
    }
