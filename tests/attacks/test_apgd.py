"""APGD against its paper written out anew in NumPy, against closed forms, and against plain PGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.attacks.schemes import SCHEMES, checkpoints
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

KEY = jax.random.key(5)
LINF, L2 = {"norm": "linf", "epsilon": 0.1}, {"norm": "l2", "epsilon": 0.3}
BY_NORM = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
SHAPE = (2, 2, 3)


def driven(attack, logits, x, y, threat, run=0):
    """(state before the first step, a compiled advance(state, index), finish) of one run, nobody ever frozen."""
    keys = jax.random.split(KEY, len(x))
    ball = Threat.model_validate(threat)
    probes = functools.partial(SearchProbe, lambda images: (logits(images), None), x, y, keys, ball, None)
    state = jax.jit(lambda run: attack.begin(probes, ball, keys, run))(jnp.full(len(x), run, jnp.uint32))
    advance = jax.jit(lambda state, index: attack.advance(probes, ball, state, index))
    return state, advance, jax.jit(lambda state: attack.finish(probes, ball, state))


def test_checkpoints_as_computed_by_hand():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(25) == [6, 11, 15, 18, 20, 22, 24, 25]  # 5.5, 10.25, 14.25, 17.5, 20, 21.75, 23.25, 24.75
    assert checkpoints(1) == [1]


# The published algorithm in NumPy, for one example at a time, on logits z_k = w_k x + x' diag(q_k) x + b_k.


def quadratic(seed, classes, curvature):
    size = int(np.prod(SHAPE))
    draw = np.random.default_rng(seed)
    return draw.normal(size=(classes, size)), curvature * draw.normal(size=(classes, size)), draw.normal(size=classes)


def loss_gradient(kind, z, y, target):
    """f and df/dz of the three losses."""
    e, order = np.eye(len(z)), np.argsort(-z)
    if kind == "apgd_ce":
        p = np.exp(z - z.max())
        p /= p.sum()
        return -np.log(p[y]), p - e[y]
    if kind == "apgd_dlr":
        target = next(k for k in order if k != y)
        below, d_below = z[order[0]] - z[order[2]] + 1e-12, e[order[0]] - e[order[2]]
    else:
        below = z[order[0]] - 0.5 * (z[order[2]] + z[order[3]]) + 1e-12
        d_below = e[order[0]] - 0.5 * (e[order[2]] + e[order[3]])
    f = (z[target] - z[y]) / below
    return f, (e[target] - e[y] - f * d_below) / below


CHECKED = (6, 11, 15, 18, 20, 22, 24, 25)  # of 25 steps


def published(value, x, start, norm, epsilon, steps):
    """Iterates x_1, x_2, ... of Croce & Hein 2020, algorithm 1, less x; their step sizes until f converges."""

    def project(d):
        d = np.clip(d, -epsilon, epsilon) if norm == "linf" else d * min(1.0, epsilon / np.linalg.norm(d))
        return np.clip(x + d, 0.0, 1.0) - x

    here = before = best = start
    f, gradient = value(start)
    last, f_best, gradient_best = f, f, gradient
    eta, halved, f_checked, ups, since, visited = 2 * epsilon, False, f, 0, 0, []
    certain = steps
    for k in range(1, steps + 1):
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        z = project(here + eta * direction)
        new = z if k == 1 else project(here + 0.75 * (z - here) + 0.25 * (here - before))
        before, here = here, new
        f, gradient = value(here)
        visited.append((here, eta))
        if any(abs(f - g) < 1e-11 * abs(f) and np.any(here != d) for g, d in ((last, before), (f_best, best))):
            certain = min(certain, k - 1)  # converged: rounding decides whether f has increased
        ups, since, last = ups + (f > last), since + 1, f
        if f > f_best:
            best, f_best, gradient_best = here, f, gradient
        if k in CHECKED:
            halve = ups <= 0.75 * since or (not halved and f_best == f_checked)
            if halve:
                eta, here, gradient = eta / 2, best, gradient_best
            halved, f_checked, ups, since = halve, f_best, 0, 0
    deltas, sizes = zip(*visited, strict=True)
    return np.array(deltas), sizes[:certain]


@BY_NORM
@pytest.mark.parametrize("kind", ["apgd_ce", "apgd_dlr", "apgd_t"])
def test_iterates_are_those_of_the_paper(kind, threat):
    """25 steps with eight checkpoints among them, in double precision."""
    w, q, b = (0.3 * part for part in quadratic(3, 5, curvature=8.0))  # not so large that p_y is 1
    steps, batch, run = 25, 6, int(kind == "apgd_t")
    threat = {**threat, "epsilon": threat["epsilon"] / 2}
    with jax.enable_x64(True):

        def logits(images):
            flat = images.reshape(len(images), -1)
            return flat @ w.T + flat**2 @ q.T + b

        many = np.random.default_rng(4).uniform(0.02, 0.98, size=(400, *SHAPE))
        ranked = np.sort(logits(many), axis=1)
        x = jnp.asarray(many[np.argsort(ranked[:, -2] - ranked[:, -1])[:batch]])  # far from the boundary
        order = np.argsort(-np.asarray(logits(x)), axis=1)
        y = jnp.asarray(order[:, 0])
        state, advance, _ = driven(make("attack", {"type": kind, "steps": steps}), logits, x, y, threat, run)
        start, ours = np.asarray(state.delta), []
        for index in range(steps):
            state = advance(state, jnp.asarray(index))
            ours.append((np.asarray(state.delta).reshape(batch, -1), np.asarray(state.size)))
    assert not np.any(state.wrong)  # else the search would be over
    halvings = set()
    for i in range(batch):
        flat = np.asarray(x[i]).ravel()

        def value(d, flat=flat, i=i):
            f, df = loss_gradient(kind, w @ (flat + d) + q @ (flat + d) ** 2 + b, int(y[i]), order[i, 1 + run])
            return f, df @ (w + 2 * q * (flat + d))

        deltas, sizes = published(value, flat, start[i].ravel(), threat["norm"], threat["epsilon"], steps)
        certain = len(sizes)
        assert certain >= 12, certain
        np.testing.assert_allclose([delta[i] for delta, _ in ours[:certain]], deltas[:certain], atol=1e-9)
        np.testing.assert_allclose([size[i] for _, size in ours[:certain]], sizes, rtol=1e-12)
        np.testing.assert_allclose([delta[i] for delta, _ in ours], deltas, atol=1e-5)
        halvings.add(round(np.log2(2 * threat["epsilon"] / sizes[-1])))
    assert max(halvings) > (5 if threat["norm"] == "linf" else 0)


def nearest_in_l1(d, x, epsilon):
    """By bisection."""
    room, low, high = np.where(d > 0, 1 - x, x), 0.0, np.abs(d).max()
    at = lambda t: np.sign(d) * np.minimum(np.maximum(np.abs(d) - t, 0), room)  # noqa: E731
    if np.abs(at(0.0)).sum() <= epsilon:
        return at(0.0)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(at(middle)).sum() > epsilon else (low, middle)
    return at(high)


def published_l1(value, x, start, epsilon, steps, larger):
    """Iterates x_1, x_2, ... less x under l1, section 4 of Croce & Hein 2021; and their step sizes."""
    part = int(np.ceil(0.3 * steps))
    parts = [(3, part), (2, part), (1, steps - 2 * part)] if larger else [(1, steps)]
    here, visited = start, []
    for radius, n in parts:
        ball = radius * epsilon
        here = nearest_in_l1(here, x, ball)
        visited += [(here, ball)] if larger and radius < 3 else []
        f, gradient = value(here)
        best, f_best, gradient_best, eta = here, f, gradient, ball
        nonzero = np.count_nonzero(here) if larger else len(x)
        kept = nonzero / 1.5 if larger else 0.2 * len(x)
        for k in range(1, n + 1):
            largest = np.argsort(-np.abs(gradient))[: max(int(np.ceil(kept)), 1)]
            direction = np.zeros_like(x)
            direction[largest] = np.sign(gradient[largest])
            here = nearest_in_l1(here + eta * direction / np.abs(direction).sum(), x, ball)
            f, gradient = value(here)
            visited.append((here, eta))
            if f > f_best:
                best, f_best, gradient_best = here, f, gradient
            if k % max(4 * n // 100, 1) == 0:
                left, kept = np.count_nonzero(best), np.count_nonzero(best) / 1.5
                if left / nonzero < 0.95:
                    eta, here, gradient = ball, best, gradient_best
                else:
                    eta = max(eta / 1.5, ball / 10)
                nonzero = left
        here = best
    return np.array([d for d, _ in visited]), np.array([eta for _, eta in visited])


@pytest.mark.parametrize("larger", [False, True], ids=["one ball", "three balls"])
def test_iterates_under_l1_are_those_of_the_paper(larger):
    """50 steps: a checkpoint at every second one in one ball, at every one in three."""
    w, q, b = (0.3 * part for part in quadratic(3, 5, curvature=8.0))
    batch, steps, threat = 6, 50, {"norm": "l1", "epsilon": 0.3}
    with jax.enable_x64(True):
        logits = lambda images: images.reshape(len(images), -1) @ w.T + images.reshape(len(images), -1) ** 2 @ q.T + b  # noqa: E731
        many = np.random.default_rng(4).uniform(0.02, 0.98, size=(400, *SHAPE))
        ranked = np.sort(logits(many), axis=1)
        x = jnp.asarray(many[np.argsort(ranked[:, -2] - ranked[:, -1])[:batch]])  # far from the boundary
        y = jnp.argmax(logits(x), axis=1)
        attack = make("attack", {"type": "apgd_ce", "steps": steps, "larger_balls": larger})
        state, advance, finish = driven(attack, logits, x, y, threat)
        start, ours = np.asarray(state.delta).reshape(batch, -1), []
        assert attack.length == steps + 2 * larger
        for index in range(attack.length):
            state = advance(state, jnp.asarray(index))
            ours.append((np.asarray(state.delta).reshape(batch, -1), np.asarray(state.size)))
        assert float(Threat(**threat).distance(finish(state)).max()) <= 0.3 * (1 + 1e-12)
    assert not np.any(state.wrong)
    sizes_seen = set()
    for i in range(batch):
        flat = np.asarray(x[i]).ravel()

        def value(d, flat=flat, i=i):
            f, df = loss_gradient("apgd_ce", w @ (flat + d) + q @ (flat + d) ** 2 + b, int(y[i]), 0)
            return f, df @ (w + 2 * q * (flat + d))

        deltas, sizes = published_l1(value, flat, start[i], 0.3, steps, larger)
        # Until the search has converged: then rounding decides which point is the best.
        certain = 12
        np.testing.assert_allclose([delta[i] for delta, _ in ours[:certain]], deltas[:certain], atol=1e-9)
        np.testing.assert_allclose([delta[i] for delta, _ in ours], deltas, atol=1e-4)
        sizes_seen |= set(np.round(sizes / 0.3, 6))
    assert len(sizes_seen) > 5


def overshooting(images):
    """Two classes and one pixel, cross-entropy of label 0: 0.5 - 10 (x - 0.53)^2."""
    loss = 0.5 - 10.0 * (images[:, 0, 0, 0] - 0.53) ** 2
    return jnp.stack([jnp.zeros_like(loss), jnp.log(jnp.expm1(loss))], axis=1)


@pytest.fixture(scope="module")
def overshot():
    """States after each of 100 steps on that quadratic, with epsilon 0.1 around 0.5: its top is inside the ball."""
    x, y = jnp.full((1, 1, 1, 1), 0.5), jnp.zeros(1, int)
    state, advance, finish = driven(make("attack", "apgd_ce"), overshooting, x, y, LINF)
    states = [state]
    for index in range(100):
        states.append(advance(states[-1], jnp.asarray(index)))
    return jax.tree.map(np.asarray, states), finish(states[-1])


def test_the_step_size_is_halved_at_checkpoints_when_it_overshoots(overshot):
    states, found = overshot
    sizes = np.array([state.size[0] for state in states])
    halved = [index - 1 for index in range(1, 101) if sizes[index] == sizes[index - 1] / 2]
    assert sizes[0] == np.float32(0.2) and halved[:3] == [22, 41, 57] and set(halved) <= set(checkpoints(100))
    assert np.all(np.diff(sizes) <= 0) and sizes[-1] == np.float32(0.2) / 2 ** len(halved)
    np.testing.assert_allclose(found, 0.03, atol=1e-3)  # steps of size 0.2 stay 0.01 or more away from it


def test_a_halving_goes_on_from_the_best_point_with_its_gradient(overshot):
    states, _ = overshot
    for index in (22, 41, 57):
        before, after = states[index], states[index + 1]
        assert before.delta[0] != after.best[0]  # the iterate at the checkpoint is not the best
        np.testing.assert_array_equal(after.previous, after.best)
        direction = np.sign(0.03 - after.best)
        z = np.clip(after.best + after.size * direction, -0.1, 0.1)
        momentum = 0.25 * (after.best - before.previous)
        expected = np.clip(after.best + 0.75 * (z - after.best) + momentum, -0.1, 0.1)
        np.testing.assert_allclose(after.delta, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("increases", "checked", "halved", "is_halved"),
    [
        (14, -9.0, False, True),  # oscillates: 14 of 19 steps, at most 0.75
        (15, -9.0, False, False),
        (15, 9.0, False, True),  # stalls: neither step size nor best value changed
        (15, 9.0, True, False),  # the step size did change
    ],
)
def test_both_conditions_of_a_halving(increases, checked, halved, is_halved, overshot):
    states, _ = overshot
    state = states[41]._replace(
        increases=np.array([increases]), best_value=np.array([9.0]), value=np.array([9.0]),
        checked_value=np.array([checked]), halved=np.array([halved]), best=states[41].delta,
    )  # fmt: skip
    threat, flat = Threat.model_validate(LINF), jnp.zeros((1, 1, 1, 1))
    changed, _ = SCHEMES["linf"].checkpoint(jax.tree.map(jnp.asarray, state), flat, jnp.asarray(19), threat, 0.75)
    assert bool(changed.size[0] < state.size[0]) == is_halved and bool(changed.halved[0]) == is_halved
    assert int(changed.increases[0]) == 0 and float(changed.checked_value[0]) == 9.0


@BY_NORM
def test_starts_at_noise_of_norm_epsilon_of_its_own_in_every_run(threat):
    x, y = jnp.full((3, *SHAPE), 0.5), jnp.zeros(3, int)
    attack = make("attack", "apgd_ce")
    start = driven(attack, overshooting, x, y, threat)[0].delta
    np.testing.assert_allclose(Threat.model_validate(threat).distance(start), threat["epsilon"], rtol=1e-5)
    assert len(np.unique(np.round(start, 5))) > 30
    corner = driven(attack, overshooting, jnp.ones_like(x), y, threat)[0].delta
    assert float(corner.max()) <= 0 and float(corner.min()) < -0.01


# Linear logits (u, -u, -c, -c - 1), u = <w, x - 1/2> + 1.5: every loss falls as u grows, so the optimum is the least u.

WEIGHTS = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def linear(images):
    u = jnp.sum((images - 0.5) * WEIGHTS, axis=(1, 2, 3)) + 1.5
    c = jnp.full_like(u, 9.0)
    return jnp.stack([u, -u, -c, -c - 1.0], axis=1)


@pytest.mark.parametrize(("kind", "threat"), [("apgd_ce", LINF), ("apgd_ce", L2), ("apgd_dlr", LINF), ("apgd_t", L2)])
def test_finds_the_optimum_of_a_linear_classifier(kind, threat):
    config = {"type": kind, "steps": 41, **({"targets": 1} if kind == "apgd_t" else {})}
    x = jnp.full((2, *SHAPE), 0.5)
    result = llrflow.attack(linear, x, jnp.zeros(2, int), threat, config, KEY)
    dual = np.abs(WEIGHTS).sum() if threat is LINF else np.sqrt((WEIGHTS**2).sum())
    gain = linear(x)[:, 0] - linear(result.x_adv)[:, 0]
    np.testing.assert_allclose(gain, threat["epsilon"] * dual, atol=1e-4)
    assert not np.any(result.success) and result.queries.tolist() == result.gradients.tolist() == [41, 41]


def test_comes_near_the_optimum_of_a_linear_classifier_under_l1():
    """The box binds: a pixel gives what room it has, the largest weights first. Sparse signs end just short of it."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=64).astype(np.float32), rng.uniform(size=(8, 64)).astype(np.float32)
    u = lambda images: (images.reshape(len(images), -1) - 0.5) @ w  # noqa: E731
    logits = lambda images: jnp.stack([0.05 * u(images) + 1, -0.05 * u(images) - 1], axis=1)  # noqa: E731
    order = np.argsort(-np.abs(w))
    room = np.where(w > 0, x, 1 - x)[:, order]
    moved = np.minimum(room, np.maximum(3.0 - np.cumsum(room, axis=1) + room, 0))
    images, threat = jnp.asarray(x).reshape(8, 8, 8, 1), {"norm": "l1", "epsilon": 3.0}
    config = {"type": "apgd_ce", "larger_balls": True}
    result = llrflow.attack(logits, images, jnp.zeros(8, int), threat, config, KEY)
    share = (u(images) - u(result.x_adv)) / (moved * np.abs(w[order])).sum(axis=1)
    assert share.max() <= 1 + 1e-5 and share.min() > 0.97 and share.mean() > 0.99
    assert result.queries.tolist() == [102] * 8  # and the last iterate


DRAWN = np.random.default_rng(2)
HIDDEN, OUT = DRAWN.normal(size=(12, 24)).astype(np.float32), DRAWN.normal(size=(24, 6)).astype(np.float32)
IMAGES = DRAWN.uniform(size=(64, *SHAPE)).astype(np.float32)


def mlp(images):
    return jnp.tanh(3.0 * (images.reshape(len(images), -1) @ HIDDEN)) @ OUT


LABELS = np.argmax(mlp(IMAGES), axis=1)
TARGETED = {"type": "apgd_t", "steps": 11, "targets": 2, "restarts": 2}


@pytest.mark.parametrize(
    ("threat", "config"),
    [(LINF, TARGETED), (L2, {"type": "apgd_dlr", "steps": 11})],
    ids=["linf", "l2"],
)
def test_ball_box_and_batch_size(threat, config):
    """Half of the images have pixels at the edge of the box."""
    x = jnp.concatenate([IMAGES[:8], jnp.round(IMAGES[8:16])])
    y = jnp.argmax(mlp(x), axis=1)
    threat = {**threat, "epsilon": threat["epsilon"] / 3}
    whole, ones = (llrflow.attack(mlp, x, y, threat, config, KEY, batch_size=size) for size in (16, 1))
    Threat.model_validate(threat).check(whole.x_adv - x, x)
    np.testing.assert_allclose(ones.x_adv, whole.x_adv, atol=5e-4)
    np.testing.assert_array_equal(ones.queries, whole.queries)
    assert 0 < np.mean(whole.success) < 1


def test_settled_examples_cost_no_more_queries():
    """Wrong from the outset: none. Found at the start: one. Never found: every step of every target and restart."""
    y = np.where(np.arange(64) < 4, (LABELS + 1) % 6, LABELS)
    result = llrflow.attack(mlp, IMAGES, y, {"norm": "linf", "epsilon": 0.03}, TARGETED, KEY, batch_size=16)
    queries, success = np.asarray(result.queries), np.asarray(result.success)
    assert queries[:4].tolist() == [0] * 4 and np.all(success[:4]) and np.all(result.distance[:4] == 0)
    assert np.all(queries[~success] == 11 * 2 * 2) and np.all(queries[success] < 11 * 2 * 2)
    assert 1 in queries and np.any((queries > 1) & (queries < 11)) and np.any(~success)
    np.testing.assert_array_equal(result.gradients, queries)


def test_the_last_misclassified_iterate_is_kept():
    """Driven on past the first, where the program around it leaves a network that is not stochastic."""
    state, advance, finish = driven(make("attack", "apgd_ce"), mlp, IMAGES, LABELS, {**LINF, "epsilon": 0.05})
    first, kept = np.full(64, 99), np.zeros_like(IMAGES)
    for index in range(10):
        wrong = np.asarray(jnp.argmax(mlp(IMAGES + state.delta), axis=1) != LABELS)
        kept[wrong], first[wrong] = np.asarray(state.delta)[wrong], np.minimum(first[wrong], index)
        state = advance(state, jnp.asarray(index))
        np.testing.assert_array_equal(state.wrong, first < 99)
    found = first < 99
    assert len(set(first[found])) > 2 and np.any(~found)
    np.testing.assert_array_equal(np.asarray(finish(state))[found], kept[found])


def test_is_at_least_as_strong_as_pgd():
    threat = {**LINF, "epsilon": 0.025}
    results = [
        llrflow.attack(mlp, IMAGES, LABELS, threat, {"steps": 37, **config}, KEY)
        for config in ({"type": "pgd", "maximize": "cross_entropy"}, {"type": "apgd_ce"})
    ]
    pgd, apgd = (np.asarray(result.success) for result in results)
    assert 0.1 < pgd.mean() <= apgd.mean() < 0.9
    neither = ~(pgd | apgd)
    weaker, stronger = (np.asarray(result.loss)[neither] for result in results)
    assert stronger.mean() > 0.99 * weaker.mean()  # local optima may differ, on average they must not


def test_a_target_is_the_class_of_its_rank_on_the_clean_image():
    attack = make("attack", {"type": "apgd_t", "targets": 3})
    assert attack.runs(10) == 3 and attack.runs(3) == 2
    ranked = np.argsort(-np.asarray(mlp(IMAGES)), axis=1)
    for run in range(4):
        target = driven(attack, mlp, IMAGES, LABELS, LINF, run)[0].target
        np.testing.assert_array_equal(target, ranked[:, 1 + run % 3])


@pytest.mark.parametrize(
    ("config", "classes", "message"),
    [
        ({"type": "apgd_ce", "steps": 0}, 6, "steps = 0"),
        ({"type": "apgd_ce", "restarts": 0}, 6, "restarts = 0"),
        ({"type": "apgd_ce", "rho": 1.5}, 6, "rho = 1.5 must be <= 1"),
        ({"type": "apgd_ce", "eot": 0}, 6, "eot = 0"),
        ({"type": "apgd_t", "targets": 0}, 6, "targets = 0"),
        ({"type": "apgd_ce", "targets": 2}, 6, "targets.*not a field"),
        ("apgd_dlr", 2, "apgd_dlr.*needs 3 classes"),
        ("apgd_t", 3, "apgd_t.*needs 4 classes"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(config, classes, message):
    y = np.zeros(len(IMAGES), int)
    with pytest.raises(SpecError, match=message):
        llrflow.attack(lambda images: mlp(images)[:, :classes], IMAGES, y, LINF, config, KEY)
