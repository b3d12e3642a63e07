"""Shared by the tests of the numerical core: the reference network and loss functions dressed as logits."""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest


def _reference_logits(params, images):
    hidden = jax.lax.conv_general_dilated(
        images, params["conv_w_hwio"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jax.nn.softplus(hidden + params["conv_b"]).reshape(len(images), -1)
    return (hidden - jnp.mean(hidden, axis=1, keepdims=True)) @ params["dense_w"] + params["dense_b"]


@pytest.fixture(scope="session")
def reference():
    """The network, batch and expected values of tests/reference/terms.json, in this process's precision."""
    raw = json.loads((pathlib.Path(__file__).parents[1] / "reference" / "terms.json").read_text())
    names = ("x", "y", "target", "delta", "delta_b", "alpha", "loss", "logits", "input_gradient")
    arrays = {name: jnp.asarray(raw[name]) for name in names}
    return SimpleNamespace(
        **arrays,
        params={name: jnp.asarray(value) for name, value in raw["params"].items()},
        apply=_reference_logits,
        per_example={name: jnp.asarray(value) for name, value in raw["per_example"].items()},
        parameter_gradients={
            name: [jnp.asarray(part) for part in parts] for name, parts in raw["parameter_gradients"].items()
        },
    )


@pytest.fixture(scope="session")
def net(reference):
    """The reference network as a plain function of images, with its batch: a small conv net for searches."""
    return SimpleNamespace(
        x=reference.x,
        y=reference.y,
        delta=reference.delta,
        logits=lambda images: _reference_logits(reference.params, images),
    )


@pytest.fixture(scope="session")
def dressed():
    """A factory: a positive loss [B,H,W,C] -> [B] as two logits whose cross-entropy for label 0 is that loss."""

    def dress(loss):
        def logits(images):
            value = loss(images)
            return jnp.stack([jnp.zeros_like(value), jnp.log(jnp.expm1(value))], axis=-1)

        return logits

    return dress


@pytest.fixture
def search_probe():
    """A factory: the SearchProbe that a search gets for a logits function and a batch."""
    from llrflow.method.probe import Probe
    from llrflow.method.threat import Threat

    def make(logits, x, y):
        clean = Probe(logits, x, y, jax.random.split(jax.random.key(1), len(x)))
        constants = clean.constants({"loss", "logits", "gradient"})
        return clean.searching(constants, Threat(epsilon=0.1))

    return make
