"""Terms against an independent PyTorch implementation; test_double_precision.py runs this file in float64 too."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.components.plugins import load_plugin
from llrflow.components.registry import make
from llrflow.method.objective import Objective, evaluate
from llrflow.method.probe import Probe
from llrflow.method.terms.classification import targeted_dlr

TOLERANCE = 1e-9 if os.environ.get("JAX_ENABLE_X64") == "1" else 1e-4

AT_DELTA = {
    "perturbed_loss": {"type": "cross_entropy"},
    "local_linearity": {"type": "local_linearity"},
    "gradient_inner_product": {"type": "gradient_inner_product"},
    "kl_clean_to_perturbed": {"type": "kl_divergence"},
    "logit_pairing": {"type": "logit_pairing"},
    "margin_at_delta": {"type": "margin"},
    "dlr_at_delta": {"type": "dlr"},
}
AT_CLEAN = {
    "gradient_norm_l1": {"type": "gradient_norm", "p": 1},
    "gradient_norm_l2": {"type": "gradient_norm", "p": 2},
    "gradient_norm_l2_squared": {"type": "gradient_norm", "p": 2, "squared": True},
    "gradient_norm_linf": {"type": "gradient_norm", "p": "inf"},
    "curvature_l2": {"type": "curvature", "h": 1.5, "squared": False},
    "curvature_l2_squared": {"type": "curvature", "h": 1.5},
}
LLR = Objective.model_validate(
    {
        "perturbations": {"llr": {"maximize": {"type": "local_linearity"}, "steps": 1}},
        "terms": {
            "gamma": {"type": "local_linearity", "at": "llr", "weight": 4},
            "slope": {"type": "gradient_inner_product", "at": "llr", "weight": 3},
        },
    }
)
BY_HAND = {
    "slope": lambda probe, ref: probe.slope(ref.delta),
    "llr_lambda4_mu3": lambda probe, ref: evaluate(LLR, probe, {"llr": ref.delta}, {}).value,
    "dlr_targeted_at_delta": lambda probe, ref: targeted_dlr(probe.logits(ref.delta), ref.y, ref.target),
    # Terms of plugins, at the reference's random draws.
    "elle_squared_error": lambda probe, ref: make("term", "elle").error(probe, ref.delta, ref.delta_b, ref.alpha),
    "gradient_misalignment": lambda probe, ref: make("term", "grad_align").misalignment(probe, ref.delta),
    "mart_beta6": lambda probe, ref: (
        make("term", "boosted_cross_entropy")(probe, ref.delta) + 6 * make("term", "weighted_kl")(probe, ref.delta)
    ),
}
NAMES = [*AT_DELTA, *AT_CLEAN, *BY_HAND]
GRADIENTS = [
    "llr_lambda4_mu3",
    "local_linearity",
    "gradient_norm_l2",
    "curvature_l2_squared",
    "kl_clean_to_perturbed",
    "gradient_misalignment",
    "elle_squared_error",
]


@pytest.fixture(autouse=True, scope="module")
def plugins(repository):
    for name in ("elle", "grad_align", "mart"):
        load_plugin(str(repository / "plugins" / name / f"{name}.py"))


def test_every_entry_has_its_test(reference):
    assert set(reference.per_example) == set(NAMES)
    assert set(reference.parameter_gradients) == set(GRADIENTS)


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def value(name, params, reference):
    """The quantity of that name per example, [B]."""
    probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
    if name in BY_HAND:
        return BY_HAND[name](probe, reference)
    config, delta = (AT_DELTA[name], reference.delta) if name in AT_DELTA else (AT_CLEAN[name], None)
    return make("term", config)(probe, delta)


@pytest.mark.parametrize("name", NAMES)
def test_per_example_value(name, reference):
    found = jax.jit(lambda params: value(name, params, reference))(reference.params)
    same(found, reference.per_example[name])


def test_clean_pass(reference):
    @jax.jit
    def found(params):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        return probe.logits(), probe.loss(), probe.input_gradient()

    for actual, expected in zip(
        found(reference.params), (reference.logits, reference.loss, reference.input_gradient), strict=True
    ):
        same(actual, expected)


@pytest.mark.parametrize("name", GRADIENTS)
def test_parameter_gradient_of_the_batch_mean(name, reference):
    found = jax.jit(jax.grad(lambda params: jnp.mean(value(name, params, reference))))(reference.params)
    for part, expected in zip(reference.params, reference.parameter_gradients[name], strict=True):
        same(found[part], expected)
