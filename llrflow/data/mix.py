"""Mixing: two training images, and their labels, become one; after augmentation, on the device."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.base.errors import PluginError
from llrflow.components.calls import described, guarded, is_array, placed, shape_text
from llrflow.components.registry import Component, register
from llrflow.method.labels import probabilities


class Mixing(Component):
    """Base of a mixing: `mixing(image [H, W, C], partner [H, W, C], key) -> (image, share)`, pixels in [0, 1].

    The label becomes share * label of the image + (1 - share) * label of the partner.
    """

    def __call__(self, image: jax.Array, partner: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mixed image [H, W, C], share of the image's own label, a scalar)."""
        raise NotImplementedError


@register("mixing", "mixup")
class MixUp(Mixing):
    """s x + (1 - s) x' of images x, x', s ~ Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412).

    Each example has a share s of its own; the authors' code draws one for a batch.
    """

    alpha: float = Field(0.2, gt=0)
    """Parameter of the Beta distribution: 1 draws shares evenly, small numbers rarely mix much. In the paper 0.1 to 0.4
    on ImageNet and 1 on CIFAR-10."""

    def __call__(self, image: jax.Array, partner: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mixed image [H, W, C], s)."""
        share = jax.random.beta(key, self.alpha, self.alpha)
        return share * image + (1 - share) * partner, share


@register("mixing", "cutmix")
class CutMix(Mixing):
    """A rectangle of the partner is pasted into the image (Yun et al. 2019, arXiv:1905.04899).

    With s ~ Beta(alpha, alpha) its sides are sqrt(1 - s) times those of the image, its centre is uniform, and what lies
    outside is cut off. The label's share is that of the pixels that stay. Each example has a rectangle of its own; the
    authors' code draws one for a batch.
    """

    alpha: float = Field(1.0, gt=0)
    """Parameter of the Beta distribution; 1 in the paper."""

    def __call__(self, image: jax.Array, partner: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mixed image [H, W, C], share of its pixels that are the image's own)."""
        draw, place = jax.random.split(key)
        side = jnp.sqrt(1 - jax.random.beta(draw, self.alpha, self.alpha))

        def inside(key: jax.Array, size: int) -> jax.Array:
            # The authors' rounding: a half side of floor(floor(side) / 2), so the length is even.
            half = jnp.floor(side * size).astype(int) // 2
            centre, pixel = jax.random.randint(key, (), 0, size), jnp.arange(size)
            return (pixel >= centre - half) & (pixel < centre + half)

        rows, columns = (inside(k, n) for k, n in zip(jax.random.split(place), image.shape[:2], strict=True))
        pasted = rows[:, None] & columns
        return jnp.where(pasted[..., None], partner, image), 1 - jnp.mean(pasted, dtype=image.dtype)


def mix(
    images: jax.Array,
    labels: jax.Array,
    partners: jax.Array,
    partner_labels: jax.Array,
    keys: jax.Array,
    mixings: Mapping[str, Any],
    classes: int,
) -> tuple[jax.Array, jax.Array]:
    """(images [B,H,W,C], label probabilities [B,K]): each example mixed with its partner, in at most one way.

    images, partners [B,H,W,C] in [0,1]; labels [B] or [B,K]; keys [B]. Each way's `p` is its probability; each draws
    from a stream of its own, derived from its name. PluginError where a plugin returns other shapes.
    """

    def one(image: jax.Array, partner: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice, key = jax.random.split(key)
        drawn, below, found, share = jax.random.uniform(choice), 0.0, image, jnp.ones((), image.dtype)
        for name, mixing in mixings.items():
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            with placed(f"data.mix.{name}"):
                made, kept = shaped_mix(mixing, image, partner, own)
            chosen = (drawn >= below) & (drawn < below + mixing.p)
            found, share = jnp.where(chosen, made, found), jnp.where(chosen, kept, share)
            below += mixing.p
        return found, share

    found, share = jax.vmap(one)(images, partners, keys)
    own, other = probabilities(labels, classes), probabilities(partner_labels, classes)
    return found, share[:, None] * own + (1 - share[:, None]) * other


def shaped_mix(mixing: Any, image: jax.Array, partner: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a mixing makes of one pair; PluginError unless it is an image of the same shape and a scalar."""
    made = guarded(mixing, lambda: mixing(image, partner, key))
    parts = made if isinstance(made, tuple) else (made,)
    if [part.shape if is_array(part) else None for part in parts] != [image.shape, ()]:
        got = "returns " + " and ".join(map(shape_text, parts))
        raise PluginError(described(mixing), got, f"return an image {list(image.shape)} and a share []")
    return made
