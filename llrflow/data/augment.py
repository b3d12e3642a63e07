"""Augmentations: pure functions of one image and one key, vmapped over a batch on the device."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.components.calls import placed, shaped
from llrflow.components.registry import Component, register


class Augmentation(Component):
    """Base of an augmentation: `augmentation(image [H, W, C] in [0, 1], key) -> image` of the same shape and range."""

    cuts_originals: ClassVar[bool] = False
    """Whether, of images that vary in size, it takes a window of the original instead of the resized image."""

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The augmented image; the same key gives the same image."""
        raise NotImplementedError


@register("augmentation", "pad_crop")
class PadCrop(Augmentation):
    """Pad every side by `pad` pixels, then cut a window of the original size at a uniformly random place.

    The CIFAR recipe of He et al. 2016 (arXiv:1512.03385, section 4.2). Zeros are what that recipe, torchvision's
    `RandomCrop(32, padding=4)`, Madry et al. and TRADES use; Wide ResNets (arXiv:1605.07146) reflect.
    """

    pad: int = Field(4, ge=1)
    """Pixels added on every side; the image moves by up to this much."""

    mode: Literal["constant", "reflect"] = "constant"
    """What the border is filled with: zeros (`constant`) or mirrored pixels, edge not repeated (`reflect`)."""

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The shifted image [H, W, C]."""
        padded = jnp.pad(image_HWC, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)), mode=self.mode)
        row, column = jax.random.randint(key, (2,), 0, 2 * self.pad + 1)
        return jax.lax.dynamic_slice(padded, (row, column, 0), image_HWC.shape)


@register("augmentation", "flip")
class Flip(Augmentation):
    """Mirror the image left to right with probability `p`."""

    p: float = Field(0.5, ge=0, le=1)
    """Probability of a mirrored image."""

    def __call__(self, image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        """The image [H, W, C], mirrored or as it was."""
        return jnp.where(jax.random.bernoulli(key, self.p), image_HWC[:, ::-1], image_HWC)


def augment(images_BHWC: jax.Array, keys_B: jax.Array, augmentations: Mapping[str, Augmentation]) -> jax.Array:
    """Apply the augmentations in order, each example with its own key; returns [B, H, W, C] in [0, 1].

    Every augmentation draws from a stream of its own, derived from its name: adding, removing or
    reordering others does not change what it does to an example.
    """

    def one(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        for name, augmentation in augmentations.items():
            own, before = jax.random.fold_in(key, zlib.crc32(name.encode())), image_HWC
            with placed(f"data.augment.{name}"):
                image_HWC = shaped(augmentation, before.shape, lambda a=augmentation, b=before, k=own: a(b, k))
        return image_HWC

    return jax.vmap(one)(images_BHWC, keys_B)
