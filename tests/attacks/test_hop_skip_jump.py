"""HopSkipJump: what it may see, what it counts, and closed forms on linear classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.attacks.hop_skip_jump import shrunk
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

KEY = jax.random.key(3)


@pytest.fixture(scope="module", params=["linf", "l2"])
def problem(request):
    """(norm, logits, x, y, exact distance) of a linear classifier of 48 pixels; image 5 is misclassified."""
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(48, 4)), rng.uniform(0.4, 0.6, size=(16, 4, 4, 3))
    z = (x.reshape(16, -1) - 0.5) @ w
    y, dual = z.argmax(1), 1 if request.param == "linf" else 2
    lines = [[abs(z[i, k] - z[i, c]) / np.linalg.norm(w[:, k] - w[:, c], dual) for k in range(4) if k != c]
             for i, c in enumerate(y)]  # fmt: skip
    wrong = np.arange(16) == 5
    exact, w = np.where(wrong, 0.0, np.min(lines, axis=1)), jnp.asarray(w, jnp.float32)
    logits = lambda images: (images.reshape(len(images), -1) - 0.5) @ w  # noqa: E731
    return request.param, logits, jnp.asarray(x, jnp.float32), jnp.asarray(np.where(wrong, (y + 1) % 4, y)), exact


def attacked(problem, queries, logits=None, n=16, batch_size=None):
    norm, own, x, y, _ = problem
    threat, config = {"norm": norm, "epsilon": 0.5}, {"type": "hop_skip_jump", "queries": queries}
    return llrflow.attack(logits or own, x[:n], y[:n], threat, config, KEY, batch_size=batch_size)


@pytest.fixture(scope="module")
def found(problem):
    return attacked(problem, 2500)


def test_it_comes_near_the_nearest_image_of_a_linear_classifier(problem, found):
    norm, logits, x, y, exact = problem
    ratio = np.asarray(found.distance)[exact > 0] / exact[exact > 0]
    assert ratio.min() > 1 - 1e-4 and np.median(ratio) < (1.25 if norm == "linf" else 1.1)
    assert (jnp.argmax(logits(found.x_adv), axis=1) != y).all()
    np.testing.assert_allclose(
        Threat(norm=norm, epsilon=0.5).distance(found.x_adv - x), found.distance, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(found.success, found.distance <= 0.5)
    assert not found.distance[5]


def test_a_draw_at_the_end_of_the_interval_does_not_stop_the_walk(problem, monkeypatch):
    # erfinv(-1) is not finite: of images of 3,072 pixels half met it within 1,500 queries.
    uniform = jax.random.uniform
    monkeypatch.setattr(jax.random, "uniform", lambda *given: uniform(*given).at[0, 0, 0].set(given[3]))
    _, _, _, _, exact = problem
    distance = np.asarray(attacked(problem, 400).distance)
    assert np.median(distance[exact > 0] / exact[exact > 0]) < 3


def test_every_query_is_counted_and_no_gradient_is_asked_for(problem, found):
    np.testing.assert_array_equal(found.queries, np.where(np.arange(16) == 5, 0, 2500))
    assert not found.gradients.any()
    attack = make("attack", "hop_skip_jump")
    assert not attack.white_box and attack.forwards(Threat(epsilon=0.1), 10) == 5000


def test_it_sees_the_predicted_class_alone(problem, found):
    own = problem[1]
    labels_only = lambda images: 5 * jax.nn.one_hot(jnp.argmax(own(images), axis=1), 4)  # noqa: E731
    np.testing.assert_allclose(attacked(problem, 300, labels_only).x_adv, attacked(problem, 300).x_adv, atol=1e-6)


def test_more_queries_never_lead_farther_and_batches_decide_nothing(problem, found):
    few, fewer = attacked(problem, 300), attacked(problem, 300, n=5, batch_size=2)
    assert (np.asarray(found.distance) <= np.asarray(few.distance)).all()
    assert (np.asarray(few.distance) >= 0.99 * problem[4]).all() and np.isfinite(few.distance).all()
    np.testing.assert_allclose(fewer.x_adv, few.x_adv[:5], atol=1e-5)


def test_where_noise_is_classified_correctly_nothing_is_found():
    x = jnp.full((3, 2, 2, 1), 0.5)
    logits = lambda images: jnp.tile(jnp.array([2.0, 1.0, 0.0]), (len(images), 1))  # noqa: E731
    config = {"type": "hop_skip_jump", "queries": 20}
    result = llrflow.attack(logits, x, jnp.zeros(3, int), {"norm": "l2", "epsilon": 0.5}, config, KEY)
    assert jnp.isinf(result.distance).all() and not result.success.any() and (result.queries == 20).all()
    np.testing.assert_array_equal(result.x_adv, x)


def test_the_way_to_the_clean_image_is_a_segment_or_a_ball():
    delta = jnp.array([[0.4, -0.1, 0.2]]).reshape(1, 1, 3, 1)
    for norm, wanted in (("l2", [0.2, -0.05, 0.1]), ("linf", [0.2, -0.1, 0.2])):
        found = shrunk(Threat(norm=norm, epsilon=0.1), delta, jnp.array([0.5]))
        np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-6)


def one_example(attack, threat, **fields):
    """The state of one grey image of two pixels, from which `fields` differ; a perturbation is a pair."""
    probe = SearchProbe(
        lambda x: (jnp.zeros((1, 2)), None), jnp.full((1, 1, 2, 1), 0.5), jnp.zeros(1, int), None, threat, None
    )
    state = attack.begin(lambda: probe, threat, jax.random.split(KEY, 1), jnp.zeros(1, int))
    return state._replace(
        **{name: jnp.asarray(value).reshape(getattr(state, name).shape) for name, value in fields.items()}
    )


def test_an_estimate_is_the_sum_of_the_directions_times_their_answers_less_the_mean():
    attack, threat = make("attack", {"type": "hop_skip_jump", "initial_directions": 3}), Threat(norm="l2", epsilon=0.5)
    directions, answers = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]]), np.array([1, 1, -1])
    for signs in (answers, np.array([-1, -1, -1])):
        state = one_example(attack, threat, phase=2, at=[0.2, 0.0], round=1, size=0.1)
        for direction, sign in zip(directions, signs, strict=True):
            assert state.phase == 2
            delta = jnp.asarray([0.2, 0.0]) + 0.1 * direction
            state = attack._estimated(threat, state, delta.reshape(1, 1, 2, 1), jnp.asarray([sign > 0]))
        mean = signs.mean() if abs(signs.mean()) < 1 else 0.0
        normal = ((signs - mean)[:, None] * directions).sum(0)
        np.testing.assert_allclose(state.plain.ravel(), normal / np.linalg.norm(normal), atol=1e-5)
        assert state.phase == 3 and state.size == pytest.approx(0.2)


def test_a_leap_lands_beyond_the_boundary_and_the_nearest_image_stays():
    attack, threat = make("attack", "hop_skip_jump"), Threat(norm="l2", epsilon=0.5)
    x = jnp.full((1, 1, 2, 1), 0.5)
    logits = lambda images: jnp.stack([jnp.zeros(1), images[:, 0, 0, 0] - 0.6], 1)  # noqa: E731
    probe = SearchProbe(lambda images: (logits(images), None), x, jnp.zeros(1, int), None, threat, None)
    start = {"phase": 3, "at": [0.2, 0.0], "round": 1, "best": [0.15, 0.0], "distance": 0.15, "size": 0.1}
    for to, phase, at in (([1.0, 0.0], 1, [0.3, 0.0]), ([-1.1, 0.0], 3, [0.2, 0.0])):
        state = one_example(attack, threat, plain=to, **start)
        after = attack.advance(lambda: probe, threat, state, jnp.int32(7))
        assert after.phase == phase and after.size == pytest.approx(0.1 if phase == 1 else 0.05)
        np.testing.assert_allclose(after.at.ravel(), at, rtol=1e-6)
        np.testing.assert_allclose(after.best.ravel(), [0.15, 0.0], rtol=1e-6)


@pytest.mark.parametrize("field", [{"queries": 0}, {"initial_directions": 0}, {"gamma": 0.0}], ids=str)
def test_bad_fields_are_refused(field):
    with pytest.raises(SpecError, match=next(iter(field))):
        make("attack", {"type": "hop_skip_jump", **field})
