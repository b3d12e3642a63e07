"""How far two trees of arrays are apart."""

import jax
import numpy as np


def relative(ours, other):
    """The largest difference of two trees' leaves, relative to the largest entry of each leaf."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
