"""ELLE: zero where the loss is affine, the known remainder where it is quadratic, at points inside the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.method.keys import example_keys
from llrflow.method.probe import Probe
from llrflow.method.threat import Threat

SHAPE = (3, 4, 4, 2)
PIXELS = SHAPE[1] * SHAPE[2] * SHAPE[3]


@pytest.fixture
def elle(load_term):
    return load_term("elle", "elle")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def ends(rng):
    """Ends a, b [B,H,W,C] and alpha [B] of three segments, far larger than any ball."""
    return rng.normal(size=(2, *SHAPE)).astype(np.float32), np.array([0.1, 0.5, 0.9], np.float32)


class Recorder(Probe):
    """Keeps the perturbations that a term asks the loss at."""

    def loss(self, delta=None):
        self.asked = [*getattr(self, "asked", []), delta]
        return super().loss(delta)


@pytest.fixture
def asked():
    """asked(term, x, threat) -> the perturbations [B,H,W,C] at which a term wants the loss."""

    def run(term, x, threat):
        keys = example_keys(jax.random.key(0), jnp.arange(len(x)))
        probe = Recorder(lambda images: jnp.mean(images, axis=(1, 2)), x, jnp.zeros(len(x), int), keys, threat)
        term(probe, None)
        return [np.asarray(delta) for delta in probe.asked]

    return run


def test_an_affine_loss_has_none(elle, ends, probe_of, rng):
    w = rng.normal(size=SHAPE[1:])
    probe = probe_of(lambda images: 30.0 + jnp.sum(w * images, axis=(1, 2, 3)), np.full(SHAPE, 0.5, np.float32))
    (a, b), alpha = ends
    np.testing.assert_allclose(elle.error(probe, a, b, alpha), 0.0, atol=1e-8)
    np.testing.assert_allclose(elle(probe, None), 0.0, atol=1e-8)
    assert np.all(np.abs(probe.loss(b) - probe.loss(a)) > 0.1)  # or there were nothing to interpolate


def test_a_quadratic_loss_has_the_known_remainder(elle, ends, probe_of, rng):
    root = rng.normal(size=(PIXELS, PIXELS)) / PIXELS**0.5
    hessian = root @ root.T

    def loss(images):
        flat = images.reshape(len(images), -1)
        return 1.0 + 0.5 * jnp.einsum("bi,ij,bj->b", flat, hessian, flat)

    (a, b), alpha = ends
    difference = (b - a).reshape(SHAPE[0], -1).astype(np.float64)
    curvature = np.einsum("bi,ij,bj->b", difference, hessian, difference)
    expected = (alpha * (1 - alpha) / 2 * curvature) ** 2
    found = elle.error(probe_of(loss, np.full(SHAPE, 0.5, np.float32)), a, b, alpha)
    assert np.all(expected > 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_alpha_is_the_share_of_the_second_end(elle, ends, probe_of):
    (a, b), _ = ends
    probe = probe_of(lambda images: 1.0 + jnp.sum(images**2, axis=(1, 2, 3)), np.full(SHAPE, 0.5, np.float32))
    for alpha in (0.0, 1.0):  # the point between the ends is one of them
        np.testing.assert_allclose(elle.error(probe, a, b, np.full(3, alpha, np.float32)), 0.0, atol=1e-6)


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_its_points_are_in_the_ball_but_not_cut_to_the_box(elle, asked, pixel):
    x = jnp.full((64, 4, 4, 2), pixel)
    middle, first, second = asked(elle, x, Threat(epsilon=0.1))
    for delta in (first, second):
        assert np.abs(delta).max() <= 0.1 and delta.min() < -0.099 and delta.max() > 0.099
        assert (
            abs(delta.mean()) < 0.01 and abs(delta.std() - 0.1 / 3**0.5) < 0.002
        )  # uniform, half of it out of the box
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    share = np.sum((middle - first) * (second - first), axis=(1, 2, 3)) / np.sum((second - first) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(middle, first + share[:, None, None, None] * (second - first), atol=1e-6)
    assert share.min() >= 0 and share.max() <= 1 and abs(share.mean() - 0.5) < 0.15
    assert abs(share.std() - 1 / 12**0.5) < 0.06 and len(np.unique(share)) == 64


def test_its_points_are_in_an_l2_ball(elle, asked):
    _, *ends = asked(elle, jnp.zeros((16, 4, 4, 2)), Threat(norm="l2", epsilon=0.5))
    for delta in ends:
        length = np.linalg.norm(delta.reshape(16, -1), axis=1)
        assert length.max() <= 0.5 * (1 + 1e-6) and length.min() > 0.25


def test_an_example_has_its_own_points_wherever_it_stands(elle, asked):
    x = jnp.zeros((4, 4, 4, 2))
    together, alone = asked(elle, x, Threat(epsilon=0.1)), asked(elle, x[:1], Threat(epsilon=0.1))
    for many, one in zip(together, alone, strict=True):
        assert len(np.unique(many.reshape(4, -1), axis=0)) == 4
        np.testing.assert_array_equal(many[:1], one)
