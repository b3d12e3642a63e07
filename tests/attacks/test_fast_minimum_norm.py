"""FMN and DDN: FMN against the paper written out in NumPy, DDN against foolbox, closed forms on linear classifiers."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.threat import Threat

KEY = jax.random.key(3)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
EPSILON = {"linf": 0.05, "l2": 0.3, "l1": 1.0}


def length(delta, norm):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), ORDERS[norm], axis=1)


def at(vector, delta):
    return vector.reshape(-1, *[1] * (delta.ndim - 1))


def published(logits, x, y, norm, steps, beyond=False, alpha=1.0, gamma=0.05):
    """Least distances of adversarial iterates, by algorithm 1 of the paper with the settings of the authors' code.

    `beyond`: with our only change, a radius beyond the linearised boundary.
    """

    def margin(images):
        z = logits(images)
        own = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
        return jnp.max(jnp.where(jnp.arange(z.shape[1]) == y[:, None], -jnp.inf, z), axis=1) - own

    value_and_gradient = jax.jit(lambda images: (margin(images), jax.grad(lambda i: margin(i).sum())(images)))
    dual = {"linf": 1, "l2": 2}[norm]
    delta, radius, best = np.zeros_like(x), np.full(len(x), np.inf), np.full(len(x), np.inf)
    for k in range(steps):
        annealed = (1 + math.cos(math.pi * k / steps)) / 2
        g = 0.001 + (gamma - 0.001) * annealed
        value, gradient = map(np.asarray, value_and_gradient(x + delta))
        flat, size = gradient.reshape(len(x), -1), length(delta, norm)
        wrong = value > 0
        best = np.where(wrong, np.minimum(best, size), best)
        boundary = size + np.abs(value) / np.linalg.norm(flat, dual, axis=1)
        boundary = boundary * (1 + g if beyond else 1)
        radius = np.where(wrong, np.minimum(radius * (1 - g), best),
                          np.where(np.isfinite(best), radius * (1 + g), boundary))  # fmt: skip
        radius = np.minimum(radius, length(np.maximum(x, 1 - x), norm))
        delta = delta + alpha * (0.01 + 0.99 * annealed) * gradient / at(np.linalg.norm(flat, axis=1), delta)
        if norm == "linf":
            delta = np.clip(delta, -at(radius, delta), at(radius, delta))
        else:
            delta = delta * np.minimum(1, at(radius / length(delta, norm), delta))
        delta = np.clip(x + delta, 0, 1) - x
    return best


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_is_that_of_the_paper(norm, trained_like):
    logits, x, y = trained_like
    config = {"type": "fmn", "steps": 40}
    result = llrflow.attack(logits, x, y, {"norm": norm, "epsilon": EPSILON[norm]}, config, KEY)
    wanted, theirs = (published(logits, np.asarray(x), y, norm, 40, beyond) for beyond in (True, False))
    # Rounding may decide on the class at an iterate, and what follows differs: on a few images, by a few steps.
    np.testing.assert_array_equal(np.isfinite(result.distance), np.isfinite(wanted))
    assert np.mean(np.isclose(result.distance, wanted, rtol=1e-3)) > 0.9
    assert np.median(result.distance) == pytest.approx(np.median(wanted), rel=5e-3)
    found = np.isfinite(theirs)
    assert np.isfinite(wanted[found]).all() and np.median(wanted[found]) <= 1.02 * np.median(theirs[found])


def test_ddn_is_that_of_foolbox_and_the_same_in_any_batch(trained_like):
    logits, x, y = trained_like
    wrong_at_once = np.arange(64) == 5
    y = jnp.where(wrong_at_once, (y + 1) % 10, y)
    threat = {"norm": "l2", "epsilon": 0.4}
    result = llrflow.attack(logits, x, y, threat, {"type": "ddn", "steps": 60}, KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        attack = foolbox.attacks.DDNAttack(steps=60)
        images = attack(foolbox.JAXModel(logits, bounds=(0, 1)), x, y, epsilons=None)[0]
    theirs = length(images - x, "l2")
    assert np.mean(np.isclose(result.distance, theirs, rtol=1e-3)) > 0.9
    assert np.median(result.distance) == pytest.approx(np.median(theirs), rel=5e-3)
    np.testing.assert_allclose(length(result.x_adv - x, "l2"), result.distance, rtol=1e-4)
    assert (jnp.argmax(logits(result.x_adv), axis=1) != y).all()
    np.testing.assert_array_equal(result.success, result.distance <= 0.4)
    for count in (result.queries, result.gradients):
        np.testing.assert_array_equal(count, np.where(wrong_at_once, 0, 60))
    few = llrflow.attack(logits, x[:8], y[:8], threat, {"type": "ddn", "steps": 60}, KEY, batch_size=1)
    np.testing.assert_allclose(few.distance, result.distance[:8], rtol=1e-3)


def linear_problem(norm, classes):
    """Logits, images, labels, and the distance of the nearest image on a boundary, the box left out."""
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(12, classes)), rng.uniform(0.45, 0.55, size=(16, 2, 3, 2))
    z = (x.reshape(16, -1) - 0.5) @ w
    y, dual = z.argmax(1), {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    lines = [[abs(z[i, k] - z[i, c]) / np.linalg.norm(w[:, k] - w[:, c], dual) for k in range(classes) if k != c]
             for i, c in enumerate(y)]  # fmt: skip
    exact = np.min(lines, axis=1)
    w = jnp.asarray(w, jnp.float32)
    return lambda images: (images.reshape(len(images), -1) - 0.5) @ w, jnp.asarray(x, jnp.float32), y, exact


@pytest.mark.parametrize(("kind", "norm"), [*(("fmn", norm) for norm in ORDERS), ("ddn", "l2")])
def test_linear_classifiers_are_solved(kind, norm):
    # Of more than two classes cross-entropy's gradient is no normal of the nearest boundary.
    logits, x, y, exact = linear_problem(norm, 4 if kind == "fmn" else 2)
    config = {"type": kind, "steps": 200}
    result = llrflow.attack(logits, x, jnp.asarray(y), {"norm": norm, "epsilon": 0.5}, config, KEY)
    ratio = np.asarray(result.distance) / exact
    # The norm's last changes are by 0.1 % in FMN, by 5 % in DDN. The likeliest rival's boundary need not be nearest.
    limit = 1.005 if kind == "fmn" else 1.05
    assert ratio.min() > 1 - 1e-4 and np.median(ratio) < limit and np.mean(ratio < limit) > 0.9


def test_a_vanishing_gradient_stops_fmn_not_and_makes_ddn_wander():
    x = jnp.full((8, 2, 2, 1), 0.5)
    logits = lambda images: jnp.stack([1000 * (images.mean((1, 2, 3)) - 0.3), jnp.zeros(len(images))], 1)  # noqa: E731
    gradient = jax.grad(lambda images: -jax.nn.log_softmax(logits(images))[:, 0].sum())(x)
    assert not gradient.any()  # in float32
    y, threat = jnp.zeros(8, int), {"norm": "l2", "epsilon": 0.5}
    fmn, ddn = (llrflow.attack(logits, x, y, threat, kind, KEY).distance for kind in ("fmn", "ddn"))
    np.testing.assert_allclose(fmn, 0.4, rtol=0.01)  # 0.2 in each of four pixels
    assert np.isfinite(ddn).all() and (ddn >= 0.4 - 1e-6).all()


@pytest.mark.parametrize("kind", ["fmn", "ddn"])
def test_a_model_without_gradients_is_not_broken(kind):
    x = jnp.full((4, 2, 2, 1), 0.5)
    logits = lambda images: jnp.tile(jnp.array([2.0, 1.0, 0.0]), (len(images), 1))  # noqa: E731
    config = {"type": kind, "steps": 3}
    result = llrflow.attack(logits, x, jnp.zeros(4, int), {"norm": "l2", "epsilon": 0.5}, config, KEY)
    assert jnp.isinf(result.distance).all() and not result.success.any()
    np.testing.assert_array_equal(result.x_adv, x)


@pytest.mark.parametrize(
    ("kind", "field"),
    [*(("fmn", f) for f in ({"steps": 0}, {"gamma": 1.0}, {"step_size": 0.0})), ("ddn", {"initial_radius": 0})],
    ids=str,
)
def test_bad_fields_are_refused(kind, field):
    with pytest.raises(SpecError, match=next(iter(field))):
        make("attack", {"type": kind, **field})


def test_ddn_knows_l2_alone(trained_like):
    logits, x, y = trained_like
    with pytest.raises(
        SpecError, match=r"ddn.*knows no linf threat; choose an attack for linf, or one of its norms: l2"
    ):
        llrflow.attack(logits, x, y, {"norm": "linf", "epsilon": 0.1}, "ddn", KEY)


def test_cost_is_one_gradient_a_step():
    for kind in ("fmn", "ddn"):
        attack = make("attack", {"type": kind, "steps": 7})
        assert attack.step_cost == (1, 1) and attack.forwards(Threat(epsilon=0.1), 10) == 14
