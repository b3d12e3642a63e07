"""Which layer of a network makes its logits."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from llrflow.models.network import AXIS


def head_of(model: Any, classes: int, image_shape: tuple[int, ...]) -> str | None:
    """The name of the module whose parameters make a model's logits, or None where no module returns them.

    It is the innermost module with parameters that returns the very logits; where the network computes these from what
    its modules return, the last one that returns an array of their shape. Traced, not run.
    """
    calls: list[tuple[str, bool, bool]] = []

    def logits(images: jax.Array) -> jax.Array:
        returned: list[tuple[str, Any]] = []

        def note(method: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
            out = method(*args, **kwargs)
            if context.method_name == "__call__":
                returned.append((context.module.module_name, out))
            return out

        with hk.intercept_methods(note):
            made = model(images, classes, True)
        calls[:] = [(name, out is made, getattr(out, "shape", None) == made.shape) for name, out in returned]
        return made

    init = hk.transform_with_state(logits).init
    images = jnp.zeros((1, 2, *image_shape))
    params, _ = jax.eval_shape(jax.vmap(lambda some: init(jax.random.key(0), some), axis_name=AXIS), images)
    able = [(name, exact) for name, exact, alike in calls if alike and name in params]
    exact = [name for name, is_exact in able if is_exact]
    return exact[0] if exact else able[-1][0] if able else None
