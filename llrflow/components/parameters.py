"""What a parameter of a Haiku network is, by its name there and its shape."""

from __future__ import annotations

from typing import Any

import jax

NO_WEIGHTS = {"b", "offset", "positions", "scale", "token"}
"""Names of biases, of scales and offsets of norm layers, and of what a transformer adds or appends to its tokens."""


def weights_of(params: Any) -> Any:
    """Whether each parameter is a weight of a layer: the same tree with a bool for each array.

    Haiku's layers call a weight `w`, whatever its shape. Of arrays that have another name those in NO_WEIGHTS are none,
    and no vector is, whatever its axes: the scale of Haiku's BatchNorm has the shape [1,1,1,C].
    """

    def is_weight(path: Any, leaf: jax.Array) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name == "w" or (name not in NO_WEIGHTS and leaf.size > max(leaf.shape, default=1))

    return jax.tree_util.tree_map_with_path(is_weight, params)
