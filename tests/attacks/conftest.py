"""A network on which several attacks are compared."""

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def trained_like():
    """A small smooth network, and 64 noisy copies of ten patterns that it classifies, some pixels at the box's edge."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(size=(10, 48))
    x = np.clip(patterns[np.arange(64) % 10] + 0.2 * rng.normal(size=(64, 48)), 0, 1).reshape(64, 4, 4, 3)
    w, v = jnp.asarray(rng.normal(size=(48, 24)), jnp.float32), rng.normal(size=(24, 10))
    hidden = lambda images: jnp.tanh((images.reshape(len(images), -1) - 0.5) @ w)  # noqa: E731
    features = np.asarray(hidden(jnp.asarray(x, jnp.float32)))
    v = jnp.asarray(np.linalg.lstsq(features, np.eye(10)[np.arange(64) % 10], rcond=1e-3)[0], jnp.float32)
    logits = lambda images: hidden(images) @ v  # noqa: E731
    x = jnp.asarray(x, jnp.float32)
    return logits, x, jnp.argmax(logits(x), axis=1)
