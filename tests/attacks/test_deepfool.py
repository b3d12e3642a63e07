"""DeepFool against the paper written out in NumPy, closed forms on linear classifiers, and foolbox."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

KEY = jax.random.key(3)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def length(flat, norm):
    return np.abs(flat).max(-1) if norm == "linf" else np.sqrt((flat**2).sum(-1))


def dual(flat, norm):
    return np.abs(flat).sum(-1) if norm == "linf" else np.sqrt((flat**2).sum(-1))


def steep_problem(power=5, batch=6, classes=5, seed=0):
    """z_k = u_k |u_k|^(power-1), u affine: boundaries are planes, but Newton steps only cover 1 / power of the way."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(classes, 12))
    x = rng.uniform(0.0, 1.0, size=(batch, 2, 3, 2)).round(3)
    x[0, 0], x[1, :, 0] = 0.0, 1.0  # at the edge of the box
    b = rng.normal(size=classes) - 0.5 * a.sum(1)
    u = x.reshape(batch, -1) @ a.T + b
    return a, b, x, u.argmax(1)


def steep_logits(a, b, power, images, xp=jnp):
    u = images.reshape(len(images), -1) @ xp.asarray(a.T, images.dtype) + xp.asarray(b, images.dtype)
    return u * xp.abs(u) ** (power - 1)


def published(a, b, power, x, y, norm, candidates, steps, overshoot=0.02):
    """All iterates x_i - x of one image, straight from the paper (algorithm 2), with the box of images in [0, 1]."""
    logits = lambda z: steep_logits(a, b, power, z[None], np)[0]  # noqa: E731
    order = np.argsort(-logits(x))[:candidates]
    total, at, iterates = np.zeros_like(x), x.copy(), []
    for _ in range(steps):
        z = logits(at)
        if z.argmax() == y:
            gradients = power * np.abs(a @ at.ravel() + b)[:, None] ** (power - 1) * a
            gaps, normals = z[order[1:]] - z[order[0]], gradients[order[1:]] - gradients[order[0]]
            k = np.argmin(np.abs(gaps) / dual(normals, norm))
            w = normals[k]
            direction = np.sign(w) if norm == "linf" else w / np.linalg.norm(w)
            total = total + (np.abs(gaps[k]) / dual(w, norm) + 1e-4) * direction.reshape(x.shape)
            at = np.clip(x + (1 + overshoot) * total, 0, 1)
        iterates.append(at - x)
    return iterates


def drive(attack, logits, x, y, threat, steps):
    """The iterates of a run, and the last state."""
    keys = jax.random.split(KEY, len(y))
    probes = functools.partial(SearchProbe, lambda images: (logits(images), None), x, y, keys, threat, None)
    state = attack.begin(probes, threat, keys, jnp.zeros(len(y), jnp.uint32))
    advance = jax.jit(lambda state, index: attack.advance(probes, threat, state, index))
    finish = jax.jit(lambda state: attack.finish(probes, threat, state))
    iterates = []
    for index in range(steps):
        state = advance(state, jnp.int32(index))
        iterates.append(np.asarray(finish(state)))
    return iterates, state


@pytest.mark.parametrize(("norm", "candidates"), [("linf", 3), ("l2", 10)])
def test_first_25_iterates_are_those_of_the_paper(norm, candidates):
    power, steps = 5, 25
    a, b, x, y = steep_problem(power)
    attack, threat = make("attack", {"type": "deepfool", "candidates": candidates}), Threat(norm=norm, epsilon=0.1)
    logits = functools.partial(steep_logits, a, b, power)
    found, state = drive(attack, logits, jnp.asarray(x, jnp.float32), jnp.asarray(y), threat, steps)
    wanted = [published(a, b, power, *one, norm, candidates, steps) for one in zip(x, y, strict=True)]
    np.testing.assert_allclose(np.stack(found, 1), wanted, atol=3e-5)
    moving = [sum(np.any(i != j) for i, j in itertools.pairwise(run)) for run in wanted]
    assert max(moving) > 10 and min(moving) < 24  # long runs are compared, and stopped ones
    assert state.wrong.any()


@functools.cache
def linear_problem(norm):
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(12, 4)), rng.uniform(0.45, 0.55, size=(16, 2, 3, 2))
    b = -0.5 * w.sum(0)
    z = x.reshape(16, -1) @ w + b
    y = z.argmax(1)
    rivals = [[k for k in range(4) if k != c] for c in y]
    exact = [min(abs(z[i, k] - z[i, c]) / dual(w[:, k] - w[:, c], norm) for k in rivals[i]) for i, c in enumerate(y)]
    w, b = jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)
    return lambda images: images.reshape(len(images), -1) @ w + b, jnp.asarray(x, jnp.float32), y, np.array(exact)


@NORMS
def test_linear_classifier_is_solved_in_one_step_and_then_costs_nothing(norm):
    logits, x, y, exact = linear_problem(norm)
    wrong_at_once = np.arange(16) == 5
    y = jnp.asarray(np.where(wrong_at_once, (y + 1) % 4, y))
    config = {"type": "deepfool", "overshoot": 0.0, "candidates": 4, "steps": 11}
    result = llrflow.attack(logits, x, y, {"norm": norm, "epsilon": 0.5}, config, KEY)
    np.testing.assert_allclose(result.distance, np.where(wrong_at_once, 0.0, exact + 1e-4), atol=2e-6)
    # The step and the look at where it led; a wrong clean image costs nothing.
    np.testing.assert_array_equal(result.queries, np.where(wrong_at_once, 0, 2))
    np.testing.assert_array_equal(result.gradients, np.where(wrong_at_once, 0, 2 * 3))
    assert result.success.all()


@NORMS
def test_overshoot_lengthens_the_sum_of_the_steps(norm):
    logits, x, y, exact = linear_problem(norm)
    config = {"type": "deepfool", "overshoot": 0.5, "candidates": 4, "steps": 11}
    result = llrflow.attack(logits, x, jnp.asarray(y), {"norm": norm, "epsilon": 0.9}, config, KEY)
    np.testing.assert_allclose(result.distance, 1.5 * (exact + 1e-4), atol=5e-6)


@NORMS
def test_linear_classifier_is_solved_exactly_where_nothing_pushes_beyond_the_boundary(norm):
    logits, x, y, exact = linear_problem(norm)
    config = {"type": "deepfool", "overshoot": 0.0, "push": 1e-6, "candidates": 4, "steps": 11}
    result = llrflow.attack(logits, x, jnp.asarray(y), {"norm": norm, "epsilon": 0.5}, config, KEY)
    np.testing.assert_allclose(result.distance, exact, atol=1e-5)  # a tenth of the default push
    assert result.success.all()


def their_distances(logits, x, y, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        attacks = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}
        model = foolbox.JAXModel(logits, bounds=(0, 1))
        images = attacks[norm](steps=50, candidates=10)(model, x, y, epsilons=None)[0]
    distance = length(np.asarray(images - x).reshape(len(x), -1), norm)
    return np.where(np.argmax(logits(images), axis=1) != y, distance, np.inf)


@NORMS
def test_as_strong_as_foolbox_and_the_same_in_any_batch(norm, trained_like):
    logits, x, y = trained_like
    threat = Threat(norm=norm, epsilon=0.05 if norm == "linf" else 0.2)
    result = llrflow.attack(logits, x, y, threat.model_dump(), "deepfool", KEY)
    ours, theirs = np.asarray(result.distance), their_distances(logits, x, y, norm)
    assert np.isfinite(theirs).all() and ours.mean() <= 1.02 * theirs.mean()
    for epsilon in np.quantile(theirs, [0.1, 0.3, 0.5, 0.7, 0.9]):
        assert (ours <= epsilon).sum() >= (theirs <= epsilon).sum() - 1
    delta = result.x_adv - x
    assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    assert 0 < result.success.sum() < 64
    threat.check(delta[result.success], x[result.success])
    assert (jnp.argmax(logits(result.x_adv), axis=1) != y).all()
    np.testing.assert_allclose(threat.distance(delta), ours, rtol=1e-4)
    few = llrflow.attack(logits, x[:16], y[:16], threat.model_dump(), "deepfool", KEY, batch_size=1)
    np.testing.assert_allclose(few.x_adv, result.x_adv[:16], atol=1e-5)
    np.testing.assert_array_equal(few.queries, result.queries[:16])


def test_a_model_without_gradients_leaves_the_image_alone():
    x = jnp.full((4, 2, 2, 1), 0.5)
    result = llrflow.attack(
        lambda images: jnp.tile(jnp.array([2.0, 1.0, 0.0]), (len(images), 1)),
        x,
        jnp.zeros(4, int),
        {"norm": "l2", "epsilon": 0.5},
        {"type": "deepfool", "steps": 3},
        KEY,
    )
    assert jnp.isinf(result.distance).all() and not result.success.any()
    np.testing.assert_array_equal(result.x_adv, x)


@pytest.mark.parametrize(
    "field",
    [{"steps": 0}, {"candidates": 1}, {"overshoot": -0.1}, {"push": -1e-4}, {"overshot": 0.1}],
    ids=lambda field: str(field),
)
def test_bad_fields_are_refused(field):
    with pytest.raises(SpecError, match=next(iter(field))):
        make("attack", {"type": "deepfool", **field})


def test_cost_is_one_forward_pass_and_one_backward_pass_for_every_rival():
    attack = make("attack", {"type": "deepfool", "steps": 7, "candidates": 4})
    assert attack.step_cost == (1, 3) and attack.forwards(Threat(epsilon=0.1), 10) == 7 * 4
