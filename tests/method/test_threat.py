"""The threat model: ball, box, steepest direction, random starts."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

import llrflow
from llrflow.base.errors import SpecError, ThreatError
from llrflow.base.norms import NormName
from llrflow.method.norms import NORMS as NORMS_OF
from llrflow.method.threat import Threat

SHAPE = (3, 2, 3, 2)
NORMS = pytest.mark.parametrize("norm", get_args(NormName))

draws = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 8 / 255, 0.5, 1.0]),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3]),
)


def images_and_offsets(seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.choice([0.0, 1.0, rng.uniform()], SHAPE).astype(np.float32)
    return x, (scale * rng.normal(size=SHAPE)).astype(np.float32)


def length(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@NORMS
@settings(deadline=None, max_examples=15)
@given(draws)
def test_project_lands_in_ball_and_box_and_is_idempotent(norm, drawn):
    seed, epsilon, scale = drawn
    threat = Threat(norm=norm, epsilon=epsilon)
    x, delta = images_and_offsets(seed, scale)
    inside = np.asarray(threat.project(delta, x))
    assert np.all(length(inside, norm) <= epsilon * (1 + 1e-6))
    assert np.all(x + inside >= 0) and np.all(x + inside <= 1)
    np.testing.assert_allclose(threat.project(inside, x), inside, rtol=1e-6, atol=3e-7)
    threat.check(inside, x)


@NORMS
def test_project_leaves_points_of_ball_and_box_alone(norm):
    x = np.full(SHAPE, 0.5, np.float32)
    delta = 0.1 * np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    epsilon = 1.001 * float(length(delta, norm).max())
    np.testing.assert_array_equal(Threat(norm=norm, epsilon=epsilon).project(delta, x), delta)


def l1_cases(pixels=60):
    """x, delta [40,pixels] and radii [40]: balls near and far, pixels at the edge, ties, and some inside."""
    rng = np.random.default_rng(5)
    x = np.clip(rng.uniform(-0.5, 1.5, size=(40, pixels)), 0, 1)
    delta = rng.normal(size=x.shape) * np.repeat([0.01, 0.3, 3.0, 100.0], 10)[:, None]
    delta[::4], radii = np.round(delta[::4], 1), np.tile([0.05, 1.0, 5.0, 20.0, 59.0], 8)
    return x, delta, radii


def test_the_l1_projection_is_the_nearest_point_of_ball_and_box_together():
    """By bisection on the multiplier in float64; and no other point of the set is nearer (a variational inequality)."""
    x, delta, radii = l1_cases()
    room, size = np.where(delta > 0, 1 - x, x), np.abs(delta)
    moved = lambda i, t: np.minimum(np.maximum(size[i] - t, 0), room[i])  # noqa: E731
    shrinkages = [
        brentq(lambda t, i=i: moved(i, t).sum() - radii[i], 0, size[i].max(), xtol=1e-15)
        if moved(i, 0).sum() > radii[i]
        else 0
        for i in range(40)
    ]
    wanted = np.sign(delta) * [moved(i, t) for i, t in enumerate(shrinkages)]
    assert 8 < np.count_nonzero(shrinkages) < 32
    image = lambda flat, kind: jnp.asarray(flat, kind).reshape(40, 6, 5, 2)  # noqa: E731
    project = jax.jit(lambda delta, x, radii: Threat(norm="l1", epsilon=0.1).of_radius(radii).project(delta, x))
    found = project(image(delta, np.float32), image(x, np.float32), jnp.asarray(radii, np.float32))
    np.testing.assert_allclose(found.reshape(40, -1)[:30], wanted[:30], atol=2e-6)
    np.testing.assert_allclose(found.reshape(40, -1)[30:], wanted[30:], atol=3e-5)  # float32 holds 300 to 3e-5
    with jax.enable_x64(True):
        found = np.asarray(project(image(delta, np.float64), image(x, np.float64), jnp.asarray(radii))).reshape(40, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    for seed in range(50):
        other = np.clip(x + np.random.default_rng(seed).laplace(size=x.shape), 0, 1) - x
        other *= np.minimum(1, radii / np.abs(other).sum(1))[:, None]
        assert np.all(np.sum((delta - found) * (other - found), axis=1) <= 1e-9)


def test_the_l1_projection_keeps_what_one_projection_after_the_other_would_lose():
    x, delta = np.array([[0.9, 0.5, 0.5, 0.5]], np.float32), np.array([[9.0, 0.4, -0.3, 0.0]], np.float32)
    threat = Threat(norm="l1", epsilon=0.6)
    found = np.asarray(threat.project(delta.reshape(1, 2, 2, 1), x.reshape(1, 2, 2, 1))).ravel()
    np.testing.assert_allclose(found, [0.1, 0.3, -0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize(("epsilon", "count"), [(0.3, 1), (1.0, 1), (3.2, 4), (100.0, 12)])
def test_the_steepest_l1_step_moves_as_many_pixels_as_the_radius_needs(epsilon, count):
    gradient = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    step = np.asarray(Threat(norm="l1", epsilon=epsilon).steepest(gradient)).reshape(3, -1)
    largest = np.argsort(-np.abs(gradient.reshape(3, -1)), axis=1)[:, :count]
    wanted = np.zeros_like(step)
    np.put_along_axis(wanted, largest, np.take_along_axis(np.sign(gradient.reshape(3, -1)), largest, 1) / count, 1)
    np.testing.assert_allclose(step, wanted, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS_OF)
def test_no_perturbation_gains_more_than_the_threat_allows_a_linear_loss(norm):
    """And some gains that much: in l1 the box binds too, so that it is a linear program."""
    rng = np.random.default_rng(1)
    x, gradient = rng.uniform(size=(1, 2, 3, 2)).astype(np.float32), rng.normal(size=(1, 2, 3, 2)).astype(np.float32)
    gain = float(NORMS_OF[norm].gain(jnp.asarray(gradient), jnp.asarray(x), jnp.full(1, 2.3))[0])
    if norm != "l1":
        assert gain == pytest.approx(2.3 * np.linalg.norm(gradient.ravel(), {"linf": 1, "l2": 2}[norm]), rel=1e-5)
        return
    both = [*zip(np.zeros(12), 1 - x.ravel(), strict=True), *zip(np.zeros(12), x.ravel(), strict=True)]
    best = linprog(
        np.concatenate([-gradient.ravel(), gradient.ravel()]), A_ub=np.ones((1, 24)), b_ub=[2.3], bounds=both
    )
    assert gain == pytest.approx(-best.fun, rel=1e-5)


@NORMS
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e30])
def test_steepest_has_unit_norm_at_every_scale_of_the_gradient(norm, scale):
    gradient = jnp.asarray(scale * np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(length(Threat(norm=norm, epsilon=0.1).steepest(gradient), norm), 1.0, rtol=1e-5)


@NORMS
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_steepest_maximises_the_inner_product(norm, seed):
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=SHAPE).astype(np.float32)
    steepest = np.asarray(Threat(norm=norm, epsilon=0.1).steepest(gradient))
    others = rng.normal(size=(50, *SHAPE))
    others /= np.stack([length(o, norm) for o in others]).reshape(50, -1, 1, 1, 1)
    best = np.sum(others * gradient, axis=(2, 3, 4)).max(axis=0)
    assert np.all(np.sum(steepest * gradient, axis=(1, 2, 3)) >= best)


@NORMS
def test_steepest_of_a_zero_gradient_is_zero(norm):
    np.testing.assert_array_equal(Threat(norm=norm, epsilon=0.1).steepest(jnp.zeros(SHAPE)), 0.0)


@NORMS
def test_uniform_fills_the_ball(norm):
    keys = jax.random.split(jax.random.key(0), 400)
    threat = Threat(norm=norm, epsilon=0.25)
    distance = np.asarray(threat.distance(threat.uniform(keys, jnp.zeros((400, 1, 2, 1)))))
    assert distance.max() <= 0.25 * (1 + 1e-6)
    # A share of (r / epsilon)^dimension of a ball's volume lies within r: a half within 0.25 * sqrt(1/2).
    assert 0.4 < np.mean(distance < 0.25 * 0.5**0.5) < 0.6


@NORMS
def test_uniform_depends_on_the_example_key_alone(norm):
    threat, keys = Threat(norm=norm, epsilon=0.25), jax.random.split(jax.random.key(0), 5)
    uniform = jax.jit(threat.uniform)
    start = np.asarray(uniform(keys, np.zeros((5, *SHAPE[1:]), np.float32)))
    assert len({row.tobytes() for row in start}) == 5
    order = np.array([3, 0, 4])
    np.testing.assert_array_equal(uniform(keys[order], np.ones((3, *SHAPE[1:]), np.float32)), start[order])


@NORMS
@pytest.mark.parametrize(
    ("pixel", "offset"),
    [(0.5, 0.4), (0.0, -0.01), (1.0, 0.01), (0.5, np.nan), (0.5, np.inf)],
    ids=["ball", "below", "above", "nan", "inf"],
)
def test_check_raises_outside_ball_or_box(norm, pixel, offset):
    x, delta = np.full(SHAPE, 0.5, np.float32), np.zeros(SHAPE, np.float32)
    x[1, 0, 0, 0], delta[1, 0, 0, 0] = pixel, offset
    with pytest.raises(ThreatError, match="left the threat model"):
        Threat(norm=norm, epsilon=0.1).check(delta, x)


@pytest.mark.parametrize(("epsilon", "value"), [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("1e-3", 1e-3), (1, 1.0)])
def test_epsilon_is_read_exactly(epsilon, value):
    assert Threat(epsilon=epsilon).epsilon == value


@pytest.mark.parametrize(
    ("epsilon", "norm", "message"),
    [
        (8, "linf", "write 8/255"),
        ("8/0", "linf", "divides by zero"),
        ("8/255/2", "linf", "a fraction such as 8/255"),
        ("__import__('os')", "linf", "a fraction such as 8/255"),
        (0, "l2", "must be > 0"),
        (-1, "l2", "must be > 0"),
        (float("nan"), "linf", "not finite"),
        (float("inf"), "l2", "not finite"),
        (True, "linf", "not a number"),
    ],
)
def test_wrong_epsilon_is_refused_by_name(epsilon, norm, message):
    x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.zeros(1, int)
    with pytest.raises(SpecError, match="epsilon") as caught:
        llrflow.attack(lambda images: images, x, y, {"norm": norm, "epsilon": epsilon}, "noise", jax.random.key(0))
    assert message in str(caught.value)


def test_advice_for_an_epsilon_in_grey_levels_is_itself_valid():
    with pytest.raises(ValueError, match="write") as caught:
        Threat(epsilon=2.5)
    advice = str(caught.value).split("write ")[1].split()[0]
    assert Threat(epsilon=advice).epsilon == pytest.approx(2.5 / 255)


def test_epsilon_of_an_l2_ball_may_exceed_the_pixel_range():
    assert Threat(norm="l2", epsilon=8).epsilon == 8
