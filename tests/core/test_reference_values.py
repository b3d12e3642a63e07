"""Terms against an independent PyTorch implementation; test_double_precision.py runs this file in float64 too."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.objective import Objective, evaluate
from llrflow.probe import Probe
from llrflow.registry import make
from llrflow.threat import Threat

TOLERANCE = 1e-9 if os.environ.get("JAX_ENABLE_X64") == "1" else 1e-4

# Reference name -> the term that must reproduce it at the reference's delta; LLR is composed below.
TERMS = {
    "perturbed_loss": {"type": "cross_entropy"},
    "local_linearity": {"type": "local_linearity"},
    "gradient_inner_product": {"type": "gradient_inner_product"},
    "gradient_norm_l1": {"type": "gradient_norm", "p": 1},
    "gradient_norm_l2": {"type": "gradient_norm", "p": 2},
    "gradient_norm_l2_squared": {"type": "gradient_norm", "p": 2, "squared": True},
    "gradient_norm_linf": {"type": "gradient_norm", "p": "inf"},
    "margin_at_delta": {"type": "margin"},
}
LLR = Objective.model_validate(
    {
        "perturbations": {"llr": {"maximize": {"type": "local_linearity"}, "steps": 1, "start": {"type": "uniform"}}},
        "terms": {
            "gamma": {"type": "local_linearity", "at": "llr", "weight": 4},
            "slope": {"type": "gradient_inner_product", "at": "llr", "weight": 3},
        },
    }
)


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def value(name, probe, delta, monkeypatch):
    """The quantity of that name per example, [B]; LLR through `objective.evaluate` with the reference's delta."""
    if name == "slope":
        return probe.slope(delta)
    if name == "llr_lambda4_mu3":
        monkeypatch.setattr("llrflow.objective.maximise", lambda *_: delta)
        keys = jax.random.split(jax.random.key(0), len(probe.x))
        return evaluate(LLR, probe, Threat(epsilon=0.15), lambda _: keys, probe._apply, True, "unroll")[0]
    return make("term", TERMS[name])(probe, delta)


@pytest.mark.parametrize("name", [*TERMS, "slope", "llr_lambda4_mu3"])
def test_per_example_value(name, reference, monkeypatch):
    @jax.jit
    def found(params, delta):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return value(name, probe, delta, monkeypatch)

    same(found(reference.params, reference.delta), reference.per_example[name])


def test_clean_pass(reference):
    @jax.jit
    def found(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return probe.logits(), probe.loss(), probe.input_gradient()

    for actual, expected in zip(
        found(reference.params), (reference.logits, reference.loss, reference.input_gradient), strict=True
    ):
        same(actual, expected)


@pytest.mark.parametrize("name", ["llr_lambda4_mu3", "local_linearity", "gradient_norm_l2"])
def test_parameter_gradient_of_the_batch_mean(name, reference, monkeypatch):
    @jax.jit
    def gradient(params):
        def mean(params):
            probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
            return jnp.mean(value(name, probe, reference.delta, monkeypatch))

        return jax.grad(mean)(params)

    found = gradient(reference.params)
    for part, expected in zip(reference.params, reference.parameter_gradients[name], strict=True):
        same(found[part], expected)
