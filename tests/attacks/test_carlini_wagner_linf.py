"""carlini_wagner_linf: against a transcription of the authors' search, closed forms, and deepfool."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_model import KEY, SHAPE, Q, W, X, Y, quadratic

import llrflow
from llrflow.attacks.carlini_wagner_linf import CarliniWagnerLinf
from llrflow.base.errors import SpecError
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

LINF = {"norm": "linf", "epsilon": 0.05}


def authors_run(x, y, attack, iterates):
    """One example in float64, with loops: iterates [T,H,W,C], thresholds and constants [T], nearest distance."""
    clean = (np.tanh(np.arctanh((2 * x.astype(float) - 1) * 0.999999)) + 1) / 2
    image, tau, constant, nearest = clean, 1.0, attack.initial_constant, np.inf
    images, thresholds, constants = [], [], []
    while tau > attack.smallest_threshold and constant < attack.largest_constant:
        w, m, v, t, kept = np.arctanh((2 * image - 1) * 0.999999), 0.0, 0.0, 0, False
        while not kept and constant < attack.largest_constant:
            for _ in range(attack.steps):
                image, t = (np.tanh(w) + 1) / 2, t + 1
                images.append(image)
                thresholds.append(tau)
                constants.append(constant)
                if len(images) == iterates:
                    return images, thresholds, constants, nearest
                z = quadratic(image[None], np)[0]
                other = max((k for k in range(3) if k != y), key=lambda k: z[k])
                gap, moved = z[y] - z[other] + attack.confidence, image - clean
                loss = np.sum(np.maximum(np.abs(moved) - tau, 0)) + constant * max(gap, 0)
                adversarial = z[other] - z[y] >= attack.confidence and z[other] > z[y]
                nearest = min(nearest, np.abs(image - x).max()) if adversarial else nearest
                if kept := adversarial and loss < 1e-4 * constant:
                    tau = attack.decrease_factor * min(tau, np.abs(image - x).max())
                    break
                slope = W[..., y] - W[..., other] + 2 * (image - 0.5) * (Q[..., y] - Q[..., other])
                gradient = (np.abs(moved) > tau) * np.sign(moved) + constant * (gap > 0) * slope
                gradient = gradient * (1 - np.tanh(w) ** 2) / 2
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                w = w - attack.learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            else:
                constant *= attack.constant_factor
    return images, thresholds, constants, nearest


@pytest.mark.parametrize(
    ("fields", "many"),
    [
        ({"steps": 4, "initial_constant": 0.02, "confidence": 0.01}, "constants"),
        ({"steps": 10, "initial_constant": 300.0, "largest_constant": 1e4}, "thresholds"),
    ],
    ids=["failing", "exceeding"],
)
def test_first_25_iterates_are_those_of_the_authors(fields, many):
    attack = CarliniWagnerLinf(learning_rate=0.05, **fields)
    threat, keys = Threat(**LINF), jax.random.split(KEY, 16)
    probes = partial(SearchProbe, lambda im: (quadratic(im), None), jnp.asarray(X), jnp.asarray(Y), keys, threat, None)
    advance = jax.jit(lambda state, index: attack.advance(probes, threat, state, index))
    states = [attack.begin(probes, threat, keys, jnp.zeros(16))]
    for index in range(25):
        states.append(advance(states[-1], index))
    counts = {"constants": [], "thresholds": []}
    for b in range(16):
        images, thresholds, constants, nearest = authors_run(X[b], Y[b], attack, 26)
        upto = states[: len(images)]  # ours would go on where theirs has ended
        np.testing.assert_allclose(np.stack([(np.tanh(s.at.w[b]) + 1) / 2 for s in upto]), images, atol=2e-5)
        np.testing.assert_allclose([s.tau[b] for s in upto], thresholds, rtol=1e-3)
        np.testing.assert_allclose([s.constant[b] for s in upto], constants, rtol=1e-5)
        if len(images) == 26:
            np.testing.assert_allclose(states[-1].at.distance[b], nearest, rtol=1e-3)
        counts["constants"].append(len(set(constants)))
        counts["thresholds"].append(len(set(thresholds)))
    assert np.median(counts["thresholds"]) > 2 and len(set(counts["thresholds"])) > 2
    assert max(counts[many]) > 4


def linear(images):
    score = jnp.sum(images * jnp.asarray(W[..., 0]), axis=(1, 2, 3)) - float(np.sum(W[..., 0]) / 2) + 1.0
    return jnp.stack([score, jnp.zeros_like(score)], axis=1)


def farthest(nearest, attack):
    """How far the image found may be, if one at distance `nearest` exists and Adam does what it should."""
    return nearest / attack.decrease_factor + 1e-4 * attack.largest_constant


def test_a_plane_is_found_within_the_last_decrease_of_the_threshold():
    x = 0.5 + 0.05 * np.random.default_rng(1).normal(size=(8, *SHAPE)).astype(np.float32)
    y = np.array([0] * 7 + [1])  # the last is wrong from the start
    scores = np.asarray(linear(x))[:7, 0]
    exact = scores / np.abs(W[..., 0]).sum()
    fields = {"steps": 40, "learning_rate": 0.002, "initial_constant": 0.1, "largest_constant": 10.0}
    attack = CarliniWagnerLinf(**fields)
    result = llrflow.attack(linear, x, y, LINF, attack, KEY)
    assert scores.min() > 0 and np.all(result.distance[:7] > exact * (1 - 1e-5))
    assert np.all(result.distance[:7] <= farthest(exact, attack))
    assert np.mean(result.distance[:7] / exact) < 1.05  # half of the last decrease, on average
    assert np.array_equal(result.success, [*(np.asarray(result.distance[:7]) <= 0.05), True])
    assert 0 < result.success.sum() < 8
    # Seven constants failed, and what was found for thresholds before came on top; the wrong image cost nothing.
    assert np.all(result.queries[:7] > 7 * 40) and result.queries.max() < 11 * 40
    assert result.distance[7] == 0 and result.queries[7] == 0
    np.testing.assert_array_equal(result.queries, result.gradients)


def test_nearer_than_deepfool(trained_like):
    logits, x, y = trained_like
    attack = CarliniWagnerLinf(steps=60, learning_rate=0.01, initial_constant=0.02)
    ours, theirs = (llrflow.attack(logits, x, y, LINF, a, KEY).distance for a in (attack, "deepfool"))
    assert np.isfinite(theirs).all() and ours.mean() < 0.85 * theirs.mean()
    # A few searches end in another basin, and farther away.
    assert np.mean(ours <= farthest(theirs, attack)) > 0.9


def test_result_is_in_the_box_and_free_of_its_batch():
    x = X.round(1)
    x[:, 0] = x[:, 0].round()  # pixels at 0 and 1
    y = np.argmax(quadratic(x, np), axis=1)
    fields = {"steps": 10, "learning_rate": 0.03, "initial_constant": 0.1, "largest_constant": 1.0}
    whole, alone = (
        llrflow.attack(quadratic, x, y, LINF, {"type": "carlini_wagner_linf", **fields}, KEY, batch_size=size)
        for size in (16, 1)
    )
    np.testing.assert_allclose(whole.x_adv, alone.x_adv, atol=1e-5)
    np.testing.assert_array_equal(whole.queries, alone.queries)
    assert len(set(whole.queries.tolist())) > 4 and whole.queries.max() > 45
    assert whole.x_adv.min() >= 0 and whole.x_adv.max() <= 1
    assert 0 < whole.success.sum() < 16 and np.isfinite(whole.distance).sum() > whole.success.sum()
    Threat(**LINF).check((whole.x_adv - x)[whole.success], x[whole.success])
    found = np.isfinite(whole.distance)
    assert np.all(np.argmax(quadratic(whole.x_adv), axis=1)[found] != y[found])
    np.testing.assert_allclose(Threat(**LINF).distance(whole.x_adv - x)[found], whole.distance[found], atol=1e-6)


def test_a_search_ends_with_its_constants_or_its_thresholds():
    ends = {"steps": 10, "initial_constant": 1.0, "largest_constant": 8.0, "decrease_factor": 0.5}
    attack = CarliniWagnerLinf(**ends)  # constants 1, 2, 4; thresholds 1, 1/2, ..., 1/128
    assert attack.length == (3 + 8 - 1) * 10 and CarliniWagnerLinf().length == (21 + 53 - 1) * 1000
    x, y = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, int)
    # A loss below 1e-4 c, but nothing adversarial.
    nothing = llrflow.attack(lambda im: jnp.tile(jnp.array([5e-5, 0.0]), (len(im), 1)), x, y, LINF, attack, KEY)
    np.testing.assert_array_equal(nothing.queries, 3 * 10)
    np.testing.assert_array_equal(nothing.x_adv, x)
    assert np.isinf(nothing.distance).all() and not nothing.success.any()
    # The first step crosses a boundary next to the image, and is shorter than the least threshold.
    near = CarliniWagnerLinf(**{**ends, "learning_rate": 2e-3})
    tiny = llrflow.attack(lambda im: jnp.stack([0.5001 - im[:, 0, 0, 0], 0 * im[:, 0, 0, 0]], 1), x, y, LINF, near, KEY)
    np.testing.assert_array_equal(tiny.queries, 2)
    assert np.all((tiny.distance > 1e-4) & (tiny.distance < 2 / 256))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"decrease_factor": 1.0},
        {"smallest_threshold": 0.0},
        {"largest_constant": 1e-5},
        {"initial_constant": 0.0},
        {"constant_factor": 1.0},
        {"learning_rate": 0.0},
        {"confidence": -1.0},
        {"search_steps": 3},
    ],
    ids=str,
)
def test_bad_fields_are_refused(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        llrflow.attack(quadratic, X, Y, LINF, {"type": "carlini_wagner_linf", **wrong}, KEY)


def test_l2_is_refused():
    with pytest.raises(SpecError, match="l2"):
        llrflow.attack(quadratic, X, Y, {"norm": "l2", "epsilon": 0.1}, "carlini_wagner_linf", KEY)
