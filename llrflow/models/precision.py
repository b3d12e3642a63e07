"""What a network computes in: float32 that is float32 on every device, TF32, or bfloat16 features."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp

from llrflow.models.network import Logits

Precision = Literal["float32", "tf32", "bfloat16"]

PRODUCTS: dict[Precision, str] = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "highest"}
"""What JAX is asked to multiply float32 numbers in. Unasked it takes TF32 on NVIDIA's GPUs and bfloat16 on TPUs."""

_WHOLE = (hk.BatchNorm, hk.LayerNorm, hk.GroupNorm, hk.InstanceNorm, hk.RMSNorm, Logits)
"""Modules that compute in float32."""


def in_precision(network: Callable[..., jax.Array], precision: Precision) -> Callable[..., jax.Array]:
    """A function for `hk.transform`, computed in that precision: parameters, moving statistics and result stay float32.

    Every product of float32 numbers, and with it its derivatives of any order, is float32's in full (`float32`), or of
    factors rounded to TF32 where the device has it (`tf32`; on TPUs three products of bfloat16, on CPUs nothing).

    In `bfloat16` every module's inputs and parameters are rounded to bfloat16, and with them activations, attention and
    the sums of residual branches. Norm layers compute in float32 (as `hk.mixed_precision` and jmp advise; their
    policies are set class by class for the whole process, and would miss a plugin's modules) and round their result.
    `Logits` rounds nothing: a loss is a difference of logits, and the linearity error a small one of losses. A network
    that ends in any other layer has logits rounded to bfloat16. The input is normalised before it is rounded: pixels
    near 1 lose half as much so.
    """

    def computed(*args: Any) -> jax.Array:
        with ExitStack() as stack:
            stack.enter_context(jax.default_matmul_precision(PRODUCTS[precision]))
            if precision != "bfloat16":
                return network(*args)
            stack.enter_context(hk.custom_getter(_parameter))
            stack.enter_context(hk.intercept_methods(_call))
            return network(*args).astype(jnp.float32)

    return computed


def _parameter(get: Any, value: jax.Array, context: hk.GetterContext) -> jax.Array:
    return get(value if isinstance(context.module, _WHOLE) else _to(jnp.bfloat16, value))


def _call(method: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
    if context.method_name != "__call__" or isinstance(context.module, hk.ExponentialMovingAverage):
        return method(*args, **kwargs)
    if isinstance(context.module, _WHOLE):
        out = method(*_to(jnp.float32, args), **kwargs)
        return out if isinstance(context.module, Logits) else _to(jnp.bfloat16, out)
    return method(*_to(jnp.bfloat16, args), **kwargs)


def _to(dtype: Any, tree: Any) -> Any:
    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)
