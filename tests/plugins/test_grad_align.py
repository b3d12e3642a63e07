"""GradAlign: zero where gradients agree, within [0, 2], nothing where one vanishes, constant at the clean image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.method.probe import Probe
from llrflow.method.threat import Threat

SHAPE = (4, 4, 4, 2)


@pytest.fixture
def grad_align(load_term):
    return load_term("grad_align", "grad_align")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x(rng):
    return rng.uniform(0.1, 0.9, SHAPE).astype(np.float32)


@pytest.fixture
def eta(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


def quadratic(weights):
    """1 + sum_i w_i x_i^2 / 2, whose gradient is w x."""
    return lambda images: 1.0 + 0.5 * jnp.sum(weights * images**2, axis=(1, 2, 3))


def flat(array):
    return array.reshape(len(array), -1)


def cosine(a, b):
    return jnp.sum(flat(a) * flat(b), 1) / jnp.linalg.norm(flat(a), axis=1) / jnp.linalg.norm(flat(b), axis=1)


def test_an_affine_loss_is_aligned(grad_align, probe_of, x, eta, rng):
    w = rng.normal(size=SHAPE[1:])
    probe = probe_of(lambda images: 30.0 + jnp.sum(w * images, axis=(1, 2, 3)), x)
    np.testing.assert_allclose(grad_align.misalignment(probe, eta), 0.0, atol=1e-5)
    np.testing.assert_allclose(grad_align(probe, None), 0.0, atol=1e-5)


def test_a_quadratic_loss_has_the_known_angle(grad_align, probe_of, x, eta, rng):
    w = rng.uniform(0.1, 0.3, SHAPE[1:])
    found = grad_align.misalignment(probe_of(quadratic(w), x), eta)
    assert np.all(found > 0.1)
    np.testing.assert_allclose(found, 1 - cosine(w * x, w * (x + eta)), rtol=1e-4)


def test_it_lies_between_0_and_2_and_reaches_both(grad_align, probe_of, x, rng):
    probe = probe_of(quadratic(np.full(SHAPE[1:], 0.2)), x)
    np.testing.assert_allclose(grad_align.misalignment(probe, x), 0.0, atol=1e-5)  # the gradient doubles
    np.testing.assert_allclose(grad_align.misalignment(probe, -2 * x), 2.0, atol=1e-5)  # and turns round
    for scale in (0.1, 1.0, 10.0):
        found = grad_align.misalignment(probe, scale * rng.normal(size=SHAPE).astype(np.float32))
        assert np.all((found > -1e-6) & (found < 2 + 1e-6))


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_it_does_not_depend_on_the_length_of_the_gradient(grad_align, probe_of, x, eta, scale):
    w = np.full(SHAPE[1:], 0.2)
    found = grad_align.misalignment(probe_of(lambda images: 1.0 + scale * (quadratic(w)(images) - 1.0), x), eta)
    np.testing.assert_allclose(found, 1 - cosine(x, x + eta), rtol=1e-3)


def test_where_a_gradient_vanishes_it_is_0_and_so_is_its_derivative(grad_align, probe_of, x, eta):
    x = x.copy()
    x[0] = 0.0  # the clean gradient vanishes
    eta = eta.copy()
    eta[1] = -x[1]  # the other one does

    def total(w):
        values = grad_align.misalignment(probe_of(quadratic(w * jnp.ones(SHAPE)), x), eta)
        return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(jnp.full(SHAPE, 0.2))
    np.testing.assert_array_equal(values[:2], 0.0)
    assert np.all(values[2:] > 0.01) and np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:2], 0.0)
    assert np.all(np.abs(flat(gradient)[2:]).max(axis=1) > 1e-3)


def test_the_clean_gradient_carries_no_derivative(grad_align, probe_of, x, eta, rng):
    w = jnp.asarray(rng.uniform(0.1, 0.3, SHAPE[1:]), jnp.float32)

    def by_hand(w, constant):
        clean = w * x
        return jnp.mean(1 - cosine(w * (x + eta), jax.lax.stop_gradient(clean) if constant else clean))

    found = jax.grad(lambda w: jnp.mean(grad_align.misalignment(probe_of(quadratic(w), x), eta)))(w)
    expected, both_sides = (jax.grad(by_hand)(w, constant) for constant in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected - both_sides).max() > 0.01


def test_eta_is_uniform_in_the_ball_and_not_cut_to_the_box(grad_align, monkeypatch):
    used = []
    monkeypatch.setattr(type(grad_align), "misalignment", lambda self, probe, eta: used.append(np.asarray(eta)))
    x = jnp.zeros((64, 4, 4, 2))
    keys = jax.random.split(jax.random.key(0), 64)
    grad_align(Probe(lambda images: None, x, jnp.zeros(64, int), keys, Threat(epsilon=0.1)), None)
    (eta,) = used
    assert eta.shape == x.shape and np.abs(eta).max() <= 0.1 and eta.min() < -0.099 and eta.max() > 0.099
    assert abs(eta.mean()) < 0.01 and abs(eta.std() - 0.1 / 3**0.5) < 0.002
    assert len(np.unique(flat(eta), axis=0)) == 64
