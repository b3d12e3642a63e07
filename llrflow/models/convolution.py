"""Convolutions as XLA's CPU backend computes them fast: equal to JAX's up to the order of summation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import haiku as hk
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_CACHED = 2**20
"""Bytes of a convolution's output whose weight gradient is computed at once: about what a core's caches hold, since the
gradient of the weights sums over all of it."""

_MOST = 16
"""Parts; each takes about 0.04 s to compile, in every derivative."""


_FEW = 4
"""Channels: XLA:CPU gathers the pixels of images with no more of them one by one."""


def for_cpu(network: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function for `hk.transform`, with convolutions for XLA:CPU. It is slow at two things.

    The gradient of the weights takes the longer for an example, the more of them it sums over: for 3x3, 64 to 64
    channels, on 32 images of 32x32, 88 ms in one part and 28 ms in eight; the forward pass takes 19 ms. It is summed
    over parts.

    With a stride, the gradient of the images is a convolution of zeros for the greater part. Where the stride divides
    the kernel, the same is computed without one, on blocks of as many pixels as the stride: for 16x16 at stride 16, 3
    to 192 channels, on 8 images of 224x224, 11 ms and not 243; for 4x4 at stride 2 four fifths of the time. So is the
    forward pass on few channels: for 4x4 at stride 2, 1 to 16 channels, two fifths of the time.

    All other derivatives, of any order, are JAX's of these.
    """

    def convolved(*args: Any) -> jax.Array:
        with hk.intercept_methods(_call):
            return network(*args)

    return convolved


def _call(method: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
    layer = context.module
    if context.method_name != "__call__" or not _is_plain(layer) or kwargs or len(args) != 1 or hk.running_init():
        return method(*args, **kwargs)
    (images,) = args
    if images.ndim != layer.num_spatial_dims + 2:
        return method(images)
    inputs = images.shape[layer.channel_index]
    weights = hk.get_parameter("w", (*layer.kernel_shape, inputs, layer.output_channels), images.dtype)
    out = convolve_p.bind(
        images,
        weights,
        window_strides=layer.stride,
        padding=layer.padding if isinstance(layer.padding, str) else tuple(layer.padding),
        lhs_dilation=layer.lhs_dilation,
        rhs_dilation=layer.kernel_dilation,
        dimension_numbers=layer.dimension_numbers,
        precision=jax.config.jax_default_matmul_precision,  # pyright: ignore (set for each thread); traced later
    )
    return out + hk.get_parameter("b", (layer.output_channels,), images.dtype) if layer.with_bias else out


def _is_plain(layer: Any) -> TypeGuard[hk.ConvND]:
    """Whether a layer is Haiku's own, and does no more than convolve images and add a bias."""
    if not isinstance(layer, hk.ConvND) or type(layer).__call__ is not hk.ConvND.__call__:
        return False
    return layer.mask is None and layer.feature_group_count == 1 and layer.channel_index == -1


def _convolve(images: jax.Array, weights: jax.Array, **settings: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(images, weights, **settings)


def _forward(images: jax.Array, weights: jax.Array, **settings: Any) -> jax.Array:
    in_blocks = images.shape[-1] <= _FEW and _divides(weights, **settings)
    return (_convolve_blocks if in_blocks else _convolve)(images, weights, **settings)


def _divides(weights: jax.Array, window_strides: Any, lhs_dilation: Any, rhs_dilation: Any, **_: Any) -> bool:
    """Whether there is a stride, and it divides the kernel of a convolution of two dimensions without dilation."""
    strides, plain = tuple(window_strides), {*lhs_dilation, *rhs_dilation} == {1}
    if weights.ndim != 4 or not plain or strides == (1, 1):
        return False
    return not any(size % stride for size, stride in zip(weights.shape[:2], strides, strict=True))


def _convolve_blocks(
    images: jax.Array, weights: jax.Array, window_strides: Any, padding: Any, **settings: Any
) -> jax.Array:
    """`_convolve` where `_divides`, with the pixels of a block, as large as the stride, as channels."""
    kernel, edges = weights.shape[:2], [(0, 0, 0)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], kernel, window_strides, padding)
    for size, window, stride, (low, high) in zip(images.shape[1:3], kernel, window_strides, padding, strict=True):
        read = (size + low + high - window) // stride * stride + window  # of the padded image
        edges.append((low, read - size - low, 0))
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [*edges, (0, 0, 0)])
    blocks = (_blocks(padded, 1, window_strides), _blocks(weights, 0, window_strides))
    return _convolve(*blocks, window_strides=(1, 1), padding="VALID", **settings)


def _blocks(array: jax.Array, at: int, strides: Any) -> jax.Array:
    """[..., H, W, C, ...], with H at axis `at`, -> [..., H/s, W/t, s*t*C, ...] for strides s, t."""
    (s, t), (height, width, channels) = strides, array.shape[at : at + 3]
    before, after = array.shape[:at], array.shape[at + 3 :]
    split = array.reshape(*before, height // s, s, width // t, t, channels, *after)
    return jnp.moveaxis(split, at + 2, at + 1).reshape(*before, height // s, width // t, s * t * channels, *after)


def _gradient_of_images(cotangent: jax.Array, images: Any, weights: jax.Array, **settings: Any) -> jax.Array:
    convolve = _convolve_blocks if _divides(weights, **settings) else _convolve
    return jax.linear_transpose(lambda x: convolve(x, weights, **settings), images.aval)(cotangent)[0]


def _gradient_of_weights(cotangent: jax.Array, images: jax.Array, weights: Any, **settings: Any) -> jax.Array:
    size = math.prod(cotangent.shape) * cotangent.dtype.itemsize
    parts = min(len(images), _MOST, max(1, -(-size // _CACHED)))
    step = -(-len(images) // parts)

    def part(start: int) -> jax.Array:
        here = slice(start, start + step)
        (found,) = jax.linear_transpose(lambda w: _convolve(images[here], w, **settings), weights.aval)(cotangent[here])
        return found.astype(jnp.promote_types(found.dtype, jnp.float32))

    return sum(map(part, range(step, len(images), step)), part(0)).astype(cotangent.dtype)


def _abstract(images: Any, weights: Any, **settings: Any) -> Any:
    found = jax.eval_shape(partial(_convolve, **settings), images, weights)
    return images.update(shape=found.shape, dtype=found.dtype, weak_type=False)


def _batched(arguments: Any, axes: Any, **settings: Any) -> Any:
    return jax.vmap(partial(_convolve, **settings), in_axes=axes)(*arguments), 0


convolve_p = Primitive("convolve")
"""`jax.lax.conv_general_dilated` of images and weights."""

convolve_p.def_impl(_forward)
convolve_p.def_abstract_eval(_abstract)
mlir.register_lowering(convolve_p, mlir.lower_fun(_forward, multiple_results=False))
ad.defbilinear(convolve_p, _gradient_of_images, _gradient_of_weights)
batching.primitive_batchers[convolve_p] = _batched
