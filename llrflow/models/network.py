"""What all networks share: input normalisation, activations, norm layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from pydantic import Field

from llrflow.components.registry import Component

AXIS = "devices"
"""Name of the device axis that batch statistics are averaged over."""

Activation = Literal["softplus", "silu", "gelu", "elu", "tanh", "relu"]
NormType = Literal["batch", "group", "none"]
PerChannel = Annotated[tuple[float, ...], Field(min_length=1, strict=False)]
Sizes = Annotated[tuple[int, ...], Field(min_length=1, strict=False)]

SMALL = hk.initializers.RandomNormal(0.02)
"""Weights of ViT and ConvNeXt at the start; the authors' truncated normal is cut at 100 standard deviations."""


class Network(Component):
    """Base of every model: images [B,H,W,C] in [0,1] -> logits [B,K], normalising its input itself."""

    has_blocks: ClassVar[bool] = False
    """Whether it is made of repeated blocks (`llrflow.models.repeated`), which `train.remat` can compute anew."""

    mean: PerChannel = (0.5,)
    """Subtracted from the pixels: one number, or one per channel."""

    std: PerChannel = (0.25,)
    """Divides the centred pixels: one number, or one per channel."""

    activation: Activation = "softplus"
    """Non-linearity; a smooth one (softplus, silu) gives the loss a gradient that LLR can make linear. `gelu` is
    x Phi(x), Phi the standard normal distribution function, and not its approximation by tanh."""

    def __call__(self, images: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """Logits [B,K], inside a Haiku transform; `batch_statistics` chooses them over moving ones."""
        return self.body((images - jnp.asarray(self.mean)) / jnp.asarray(self.std), classes, batch_statistics)

    def body(self, h: jax.Array, classes: int, batch_statistics: bool) -> jax.Array:
        """The network on normalised images."""
        raise NotImplementedError

    @property
    def act(self) -> Callable[[jax.Array], jax.Array]:
        """The activation function."""
        if self.activation == "gelu":
            return partial(jax.nn.gelu, approximate=False)
        return getattr(jax.nn, self.activation)


Padding = Literal["same", "torch"]


class Convolutional(Network):
    """Base of models with convolutions."""

    padding: Annotated[Padding, Field(exclude_if=lambda padding: padding == "same")] = "same"
    """Zeros around what convolutions and pooling read: `same` as in TensorFlow, which at a stride pads an even side at
    its end alone, or `torch`, as many on either side, as PyTorch's networks have it."""


def edges(padding: Padding, kernel: int, stride: int) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """Haiku's `padding` of a square window: `SAME`, or (kernel - stride + 1) // 2 on every side.

    The latter is what PyTorch's networks give their layers: a stride divides an even side (1 for 3x3, 3 for 7x7, none
    where stride and kernel are equal).
    """
    around = max(0, kernel - stride + 1) // 2
    return "SAME" if padding == "same" else ((around, around), (around, around))


class Logits(hk.Linear):
    """A network's last layer, features [B,D] -> logits [B,K]: float32 even in a bfloat16 network."""


def pooled(h: jax.Array, axis: int | Sequence[int]) -> jax.Array:
    """The mean over the places of an image, in float32 at least: rounding it would undo what averaging gains."""
    return jnp.mean(h, axis, dtype=jnp.promote_types(h.dtype, jnp.float32))


DECAY = 0.9
"""Of BatchNorm's moving statistics."""

STATISTICS = ("mean_ema", "var_ema")
"""Haiku's modules that keep them, by the last part of their names."""


def norm_layer(kind: NormType, h: jax.Array, batch_statistics: bool, name: str, zero: bool = False) -> jax.Array:
    """Apply a norm layer, its scale starting at 1, or at 0 with `zero`.

    Batch statistics are those of the whole batch, over all devices; moving ones decay by `DECAY`.
    """
    scale = jnp.zeros if zero else None
    if kind == "batch":
        axis = AXIS if batch_statistics else None
        layer = hk.BatchNorm(True, True, DECAY, scale_init=scale, cross_replica_axis=axis, name=name)
        return layer(h, is_training=batch_statistics)
    if kind == "group":
        groups = next(g for g in (8, 4, 2, 1) if h.shape[-1] % g == 0)
        return hk.GroupNorm(groups, scale_init=scale, name=name)(h)
    return h


def has_statistics(model_state: Mapping[str, Any]) -> bool:
    """Whether a Haiku state holds moving statistics of BatchNorm."""
    return any(module.rpartition("/")[2] in STATISTICS for module in model_state)


def starting(model_state: Any) -> Any:
    """A fresh Haiku state with mean 0 and variance 1 until the first batch; Haiku has those of the images of `init`."""

    def start(name: str, held: Any) -> Any:
        return {**held, "average": jnp.full_like(held["average"], name == "var_ema")}

    return over_statistics(start, model_state)


def absorbed(before: Any, batch: Any) -> Any:
    """The moving statistics `before` after one more batch, whose own a pass on `restarted` ones left in `batch`."""

    def absorb(name: str, held: Any, new: Any) -> Any:
        counter = held["counter"] + 1
        hidden = DECAY * held["hidden"] + (1 - DECAY) * new["average"]
        return {"counter": counter, "hidden": hidden, "average": hidden / (1 - DECAY**counter)}

    return over_statistics(absorb, before, batch, others=lambda held, new: new)


def restarted(model_state: Any) -> Any:
    """A Haiku state whose moving statistics hold, but count for nothing: after a pass on a batch they are its own.

    Haiku removes the bias of an average that began at zero.
    """

    def restart(name: str, held: Any) -> Any:
        return {**jax.tree.map(jnp.zeros_like, held), "average": held["average"]}

    return over_statistics(restart, model_state)


def mean_with(before: Any, batch: Any, seen: jax.Array) -> Any:
    """Moving statistics that are means over `seen` batches, after one more, whose own ones are in `batch`."""

    def mean(held: jax.Array, new: jax.Array) -> jax.Array:
        share = 1.0 / (seen + 1.0)
        return held * (1.0 - share) + new * share if jnp.issubdtype(held.dtype, jnp.floating) else new

    return over_statistics(
        lambda name, held, new: jax.tree.map(mean, held, new), before, batch, others=lambda held, new: held
    )


def over_statistics(change: Callable[..., Any], *states: Any, others: Callable[..., Any] = lambda held: held) -> Any:
    """A Haiku state made of others: change(`mean_ema` or `var_ema`, *held) by statistic, others(*held) for the rest."""
    result = {}
    for module in states[0]:
        name, held = module.rpartition("/")[2], [state[module] for state in states]
        result[module] = change(name, *held) if name in STATISTICS else others(*held)
    return result


def layer_norm(h: jax.Array, name: str) -> jax.Array:
    """Layer norm over the channels of every place [..., C]; epsilon 1e-6 as in ViT and ConvNeXt."""
    return hk.LayerNorm(-1, True, True, eps=1e-6, name=name)(h)
