"""carlini_wagner: against a transcription of the paper and foolbox, and what every attack promises."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_model import KEY, SHAPE, Q, W, X, Y, quadratic

import llrflow
from llrflow.attacks.carlini_wagner import CarliniWagner
from llrflow.base.errors import SpecError
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

L2 = {"norm": "l2", "epsilon": 0.15}


def paper_run(x, y, steps, searches, constant, confidence, abort):
    """One example in float64, with loops: (iterates [T,H,W,C], constants [T], nearest adversarial distance)."""
    start = np.arctanh((2 * x.astype(float) - 1) * 0.999999)
    low, high, nearest, images, constants = 0.0, np.inf, np.inf, [], []
    for _ in range(searches):
        w, m, v, found, checked = start.copy(), 0.0, 0.0, False, np.inf
        for t in range(1, steps + 1):
            image = (np.tanh(w) + 1) / 2
            images.append(image)
            constants.append(constant)
            z = quadratic(image[None], np)[0]
            other = max((k for k in range(3) if k != y), key=lambda k: z[k])
            gap = z[y] - z[other] + confidence
            if z[other] - z[y] >= confidence and z[other] > z[y]:
                found, nearest = True, min(nearest, np.linalg.norm(image - x))
            moved = image - (np.tanh(start) + 1) / 2
            loss = np.sum(moved**2) + constant * max(gap, 0)
            slope = W[..., y] - W[..., other] + 2 * (image - 0.5) * (Q[..., y] - Q[..., other])
            gradient = (2 * moved + constant * (gap > 0) * slope) * (1 - np.tanh(w) ** 2) / 2
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            if abort and (t - 1) % -(-steps // 10) == 0:
                if loss > 0.9999 * checked:
                    break
                checked = loss
        if found:
            high = min(high, constant)
        else:
            low = max(low, constant)
        constant = constant * 10 if high == np.inf else (low + high) / 2
    return images, constants, nearest


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 12, "search_steps": 4, "initial_constant": 0.02},
        {"steps": 15, "search_steps": 3, "initial_constant": 0.5, "confidence": 0.05, "abort_early": False},
    ],
    ids=["aborting", "confident"],
)
def test_iterates_are_those_of_the_paper(fields):
    attack, threat = CarliniWagner(**fields), Threat(**L2)
    keys = jax.random.split(KEY, 16)
    probes = partial(SearchProbe, lambda im: (quadratic(im), None), jnp.asarray(X), jnp.asarray(Y), keys, threat, None)
    advance = jax.jit(lambda state, index: attack.advance(probes, threat, state, index))
    state, images, constants = attack.begin(probes, threat, keys, jnp.zeros(16)), [], []
    for index in range(attack.length):
        images.append((np.tanh(state.at.w) + 1) / 2)
        constants.append(np.asarray(state.constant))
        state = advance(state, index)
    ends = []
    for b in range(16):
        expected, levels, nearest = paper_run(
            X[b],
            Y[b],
            attack.steps,
            attack.search_steps,
            attack.initial_constant,
            attack.confidence,
            attack.abort_early,
        )
        np.testing.assert_allclose(np.stack(images)[: len(expected), b], expected, atol=1e-4)
        np.testing.assert_allclose(np.stack(constants)[: len(expected), b], levels, rtol=1e-5)
        ends.append((len(expected), len(set(levels)), nearest))
    steps, constants_seen, _ = zip(*ends, strict=True)
    assert set(constants_seen) == {attack.search_steps} and (min(steps) < attack.length) == attack.abort_early
    assert not attack.abort_early or len(set(steps)) > 1
    if not attack.abort_early:  # nobody went on beyond what is compared
        np.testing.assert_allclose(state.at.distance, [end[2] for end in ends], rtol=1e-3)
        assert np.isfinite(state.at.distance).any()


def linear(images):
    score = jnp.sum(images * jnp.asarray(W[..., 0]), axis=(1, 2, 3)) - float(np.sum(W[..., 0]) / 2) + 0.3
    return jnp.stack([score, jnp.zeros_like(score)], axis=1)


@pytest.fixture(scope="module")
def nearest_of_linear():
    x = 0.5 + 0.01 * np.random.default_rng(1).normal(size=(8, *SHAPE)).astype(np.float32)
    config = {
        "type": "carlini_wagner",
        "steps": 200,
        "learning_rate": 0.002,
        "initial_constant": 0.1,
        "search_steps": 8,
    }
    scores = np.asarray(linear(x))[:, 0]
    assert scores.min() > 0
    y = np.array([0] * 7 + [1])  # the last is wrong from the start
    return llrflow.attack(linear, x, y, {"norm": "l2", "epsilon": 0.06}, config, KEY), scores / np.linalg.norm(
        W[..., 0]
    )


def test_distance_to_a_plane_is_found(nearest_of_linear):
    result, expected = nearest_of_linear
    np.testing.assert_allclose(result.distance[:7], expected[:7], rtol=2e-3, atol=1e-4)
    assert np.all(result.distance[:7] > expected[:7] * (1 - 1e-5))
    assert np.array_equal(result.success, [*(np.asarray(result.distance[:7]) <= 0.06), True])


def test_settled_examples_cost_no_more(nearest_of_linear):
    result, _ = nearest_of_linear
    assert result.distance[7] == 0 and result.queries[7] == 0
    assert np.all(result.queries[:7] > 0) and result.queries.max() < 11 * 149  # leaving a constant early saves queries
    np.testing.assert_array_equal(result.queries, result.gradients)


def test_result_is_in_the_box_and_free_of_its_batch():
    x, threat = X.round(1), {"norm": "l2", "epsilon": 0.1}
    x[:, 0] = x[:, 0].round()  # pixels at 0 and 1
    y = np.argmax(quadratic(x, np), axis=1)
    config = {"type": "carlini_wagner", "steps": 19, "search_steps": 3, "initial_constant": 0.1}
    whole, alone = (llrflow.attack(quadratic, x, y, threat, config, KEY, batch_size=size) for size in (16, 1))
    np.testing.assert_allclose(whole.x_adv, alone.x_adv, atol=1e-5)
    np.testing.assert_array_equal(whole.queries, alone.queries)
    assert whole.x_adv.min() >= 0 and whole.x_adv.max() <= 1
    assert whole.success.any() and np.isfinite(whole.distance).sum() > whole.success.sum()
    Threat.model_validate(threat).check((whole.x_adv - x)[whole.success], x[whole.success])
    found = np.isfinite(whole.distance)
    assert np.all(np.argmax(quadratic(whole.x_adv), axis=1)[found] != y[found])


def network(images):
    first = np.random.default_rng(4).normal(size=(24, 16)) / 4
    last = np.random.default_rng(5).normal(size=(16, 5))
    return jnp.tanh((images - 0.5).reshape(len(images), -1) @ first) @ last


def test_as_near_as_foolbox_and_as_robust_to_no_more():
    config = {"steps": 25, "abort_early": False}
    x = np.random.default_rng(6).uniform(size=(32, *SHAPE)).astype(np.float32)
    y = np.argmax(np.asarray(network(x)), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox

        model = foolbox.JAXModel(jax.jit(network), bounds=(0, 1))
        their_attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=4, initial_const=0.1, **config)
        their_images, _, found = their_attack(model, jnp.asarray(x), jnp.asarray(y), epsilons=None)
    found = np.asarray(found) & np.any(np.asarray(their_images) != 0, axis=(1, 2, 3))  # a black image is its "nothing"
    theirs = np.where(found, np.linalg.norm((their_images - x).reshape(32, -1), axis=1), np.inf)
    ours = llrflow.attack(
        network, x, y, L2, {"type": "carlini_wagner", "search_steps": 4, "initial_constant": 0.1, **config}, KEY
    ).distance
    assert np.isfinite(theirs).mean() > 0.5 and np.all(np.isfinite(ours) >= np.isfinite(theirs))
    both = np.isfinite(theirs)
    assert ours[both].mean() <= 1.02 * theirs[both].mean()
    for epsilon in np.quantile(theirs[both], [0.2, 0.4, 0.6, 0.8]):
        assert (ours > epsilon).sum() <= (theirs > epsilon).sum() + 1


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"search_steps": 0}, {"learning_rate": 0}, {"initial_constant": -1}, {"confidence": -1}, {"p": 1}],
    ids=str,
)
def test_bad_fields_are_refused(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        llrflow.attack(quadratic, X, Y, L2, {"type": "carlini_wagner", **wrong}, KEY)


def test_linf_is_refused():
    with pytest.raises(SpecError, match="linf"):
        llrflow.attack(quadratic, X, Y, {"epsilon": 0.1}, "carlini_wagner", KEY)
