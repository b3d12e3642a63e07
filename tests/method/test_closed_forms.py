"""Losses whose inner maximum is known on paper; test_double_precision.py runs this file in float64 too."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.components.registry import make
from llrflow.method.ascent import Search, maximise
from llrflow.method.objective import Objective, Perturbation, evaluate, perturb
from llrflow.method.probe import Probe, Reference, SearchProbe
from llrflow.method.threat import Threat

DOUBLE = os.environ.get("JAX_ENABLE_X64") == "1"
TOLERANCE = 1e-9 if DOUBLE else 1e-4
SHAPE = (3, 4, 4, 2)
EPSILON = 0.1


def gamma(loss, dressed, search_probe, start):
    """(g at the maximiser that a search finds, its delta) for a loss function around mid-grey images."""
    search = Search.model_validate({"maximize": "local_linearity", "steps": 10, "start": start})

    @jax.jit
    def found(x, y, key):
        probe = search_probe(dressed(loss), x, y)
        keys = jax.random.split(key, len(x))
        delta = maximise(search, lambda: probe, Threat(norm="linf", epsilon=EPSILON), keys, "scan")
        return search.maximize(probe, delta), delta

    return found(np.full(SHAPE, 0.5), np.zeros(SHAPE[0], int), jax.random.key(1))


@pytest.fixture
def curvatures():
    return np.random.default_rng(0).uniform(0.5, 1.5, SHAPE[1:])


def test_process_has_the_expected_precision():
    assert jnp.zeros(1, float).dtype == (jnp.float64 if DOUBLE else jnp.float32)


def test_affine_loss_is_locally_linear(dressed, search_probe):
    w = np.random.default_rng(0).normal(size=SHAPE[1:])
    found, delta = gamma(lambda images: 10.0 + jnp.sum(w * images, axis=(1, 2, 3)), dressed, search_probe, "uniform")
    assert np.all(np.abs(np.asarray(delta)).max(axis=(1, 2, 3)) > 0.5 * EPSILON)
    np.testing.assert_allclose(found, 0.0, atol=1e-12 if DOUBLE else 1e-5)


def test_quadratic_loss_has_known_gamma(curvatures, dressed, search_probe):
    def loss(images):
        return 0.5 * jnp.sum(curvatures * images**2, axis=(1, 2, 3))

    found, _ = gamma(loss, dressed, search_probe, "uniform")
    np.testing.assert_allclose(found, EPSILON**2 / 2 * np.sum(curvatures), rtol=TOLERANCE)


def test_quadratic_search_stalls_at_its_zero_start(curvatures):
    x = np.full(SHAPE, 0.5)

    class Quadratic(SearchProbe):
        """1/2 delta' diag(a) delta with a stored gradient of exactly zero, which a network has only up to rounding."""

        def loss(self, delta=None):
            return jnp.zeros(len(x)) if delta is None else jnp.sum(0.5 * curvatures * delta**2, axis=(1, 2, 3))

        def logits(self, delta=None):
            return jnp.zeros((len(x), 2))

    def found(start):
        def searching(x, keys):
            still = Reference(None, None, jnp.zeros_like(x))
            probe = Quadratic(None, x, jnp.zeros(len(x), int), None, Threat(epsilon=EPSILON), still)
            search = Search.model_validate({"maximize": "local_linearity"})
            search = search.model_copy(update={"start": make("start", start)})  # a spec may not start at zero
            return maximise(search, lambda: probe, Threat(epsilon=EPSILON), keys, "scan")

        return jax.jit(searching)(x, jax.random.split(jax.random.key(1), len(x)))

    np.testing.assert_array_equal(found("zero"), 0.0)
    np.testing.assert_allclose(np.abs(found("uniform")), EPSILON, rtol=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("steps", [1, 7])
def test_margin_of_linear_logits_grows_by_epsilon_times_the_dual_norm(norm, dual, steps):
    w = np.random.default_rng(0).normal(size=SHAPE[1:])
    x, y = np.full(SHAPE, 0.5), np.zeros(SHAPE[0], int)

    def logits(images):
        rise = jnp.sum(w * images, axis=(1, 2, 3))
        return jnp.stack([0.0 * rise, rise], axis=-1)

    config = {"type": "pgd", "steps": steps, "start": "zero"}
    result = llrflow.attack(logits, x, y, {"norm": norm, "epsilon": EPSILON}, config, jax.random.key(0))
    gain = logits(result.x_adv)[:, 1] - logits(x)[:, 1]
    # Traced numbers are float32 inputs of the attack's program, so epsilon is known to 1e-7 at best.
    np.testing.assert_allclose(gain, EPSILON * np.linalg.norm(w.ravel(), dual), rtol=1e-6 if DOUBLE else 1e-5)


@pytest.mark.parametrize("radius", [0.02, None])
def test_a_perturbation_of_its_own_epsilon_replaces_that_of_the_threat(radius, curvatures, dressed):
    objective = Objective(
        loss={"type": "local_linearity", "at": "p"},
        perturbations={"p": Perturbation(maximize={"type": "local_linearity"}, epsilon=radius)},
    )
    logits = dressed(lambda images: 0.5 * jnp.sum(curvatures * images**2, axis=(1, 2, 3)))

    @jax.jit
    def found(x, y, keys):
        probe = Probe(logits, x, y)
        deltas = perturb(objective, probe, Threat(epsilon=EPSILON), lambda name: keys, "scan")
        return evaluate(objective, probe, deltas, {}).value

    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    value = found(np.full(SHAPE, 0.5), np.zeros(SHAPE[0], int), keys)
    np.testing.assert_allclose(value, (radius or EPSILON) ** 2 / 2 * np.sum(curvatures), rtol=TOLERANCE * 100)
