"""FAB-T: its projection against slow solvers, its iterates against the paper written out in NumPy, closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, linprog

import llrflow
from llrflow.attacks.fab import project_hyperplane_box
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

KEY = jax.random.key(4)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def length(flat, norm):
    return np.linalg.norm(flat, ORDERS[norm])


def dual(flat, norm):
    return np.linalg.norm(flat, {"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=-1)


def slow_projection(x, w, b, norm):
    """One step [D] in float64 by bisection on the multiplier of the constraint <w, d> + b = 0; l1 pixel after pixel."""
    sign = 1.0 if b >= 0 else -1.0
    if norm == "l1":
        d = np.zeros_like(x)
        for i in np.argsort(-np.abs(w)):
            left = max(sign * (w @ d + b), 0.0)
            d[i] = 0.0 if w[i] == 0 else np.clip(x[i] - sign * left / w[i], 0, 1) - x[i]
        return d
    box = lambda d: np.clip(x + d, 0, 1) - x  # noqa: E731
    at = (lambda t: box(-sign * t * np.sign(w))) if norm == "linf" else (lambda t: box(-sign * t * w))
    left = lambda t: sign * (w @ at(t) + b)  # noqa: E731
    most = 1.0 / max(np.abs(w[w != 0]).min(initial=1.0), 1e-300) if norm == "l2" else 1.0
    if left(most) > 0:
        return np.where(w == 0, 0.0, at(most))
    return at(brentq(left, 0.0, most, xtol=1e-15, maxiter=500) if left(0.0) > 0 else 0.0)


def projection_cases():
    """Random planes near and far (some miss the box), pixels at its edge, zero and tied weights, w = 0, b = 0."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(size=(40, 9)), rng.normal(size=(40, 9))
    b = rng.normal(size=40) * np.repeat([0.05, 0.5, 2.0, 20.0], 10)
    x[1::4, :4], x[2::4, 3:7] = 0.0, 1.0
    w[::5, :3], w[3::8] = 0.0, np.sign(w[3::8])
    w[10], w[11], b[12], b[11] = 0.0, 0.0, 0.0, 0.0
    w[13], b[13] = 1e-24 * w[13], 1e-24 * b[13]  # whose squares no float32 holds
    w[14], x[14] = np.abs(w[14]), 0.0  # at the corner, the plane beyond it
    b[14] = 0.3
    return x, w, b


@pytest.fixture(scope="module", params=["linf", "l2", "l1"])
def projected(request):
    """(norm, x, w, b, steps found), x and w [40,9]."""
    x, w, b = projection_cases()
    project = jax.jit(project_hyperplane_box, static_argnames="norm")
    image = lambda flat: jnp.asarray(flat, jnp.float32).reshape(40, 3, 3, 1)  # noqa: E731
    steps = project(image(x), image(w), jnp.asarray(b, jnp.float32), norm=request.param)
    return request.param, x, w, b, np.asarray(steps).reshape(40, 9)


def test_projection_is_the_nearest_point_by_bisection(projected):
    norm, x, w, b, found = projected
    slow = np.stack([slow_projection(*case, norm) for case in zip(x, w, b, strict=True)])
    unique = [i for i in range(40) if norm != "l1" or i % 8 != 3]  # tied weights: any of these pixels will do
    np.testing.assert_allclose(found[unique], slow[unique], atol=2e-6)
    missed = np.abs((w * slow).sum(1) + b) > 1e-6 * np.abs(w).max(1, initial=1e-30)
    assert 5 < missed.sum() < 35 and (found[10:13] == 0).all() and (found[14] == 0).all()


def test_projection_is_the_nearest_point_by_linear_programming(projected):
    """min t with |d_i| <= t, <w, d> + b = 0, 0 <= x + d <= 1; and where that is infeasible, the nearest corner.

    In l1 t has nine components, whose sum is least.
    """
    norm, x, w, b, found = projected
    if norm == "l2":
        pytest.skip("no linear program")
    identity, bounding = np.eye(9), -np.ones((9, 1)) if norm == "linf" else -np.eye(9)
    sides, sizes = np.block([[identity, bounding], [-identity, bounding]]), bounding.shape[1]
    infeasible = 0
    for case in (i for i in range(40) if i != 13):  # 13 is below the solver's tolerance
        bounds = [*zip(-x[case], 1 - x[case], strict=True), *[(0, None)] * sizes]
        plane = {"A_eq": np.append(w[case], np.zeros(sizes))[None], "b_eq": [-b[case]]}
        best = linprog(np.append(np.zeros(9), np.ones(sizes)), A_ub=sides, b_ub=np.zeros(18), bounds=bounds, **plane)
        if best.status == 0:
            np.testing.assert_allclose(length(found[case], norm), best.fun, atol=2e-6)
            np.testing.assert_allclose(w[case] @ found[case], -b[case], atol=1e-5)
        else:
            infeasible += 1
            nearest = linprog(np.sign(b[case]) * w[case], bounds=bounds[:9])
            np.testing.assert_allclose(np.sign(b[case]) * w[case] @ found[case], nearest.fun, atol=1e-5)
    assert 5 < infeasible < 34


def sorted_multiplier(corner, cap, rate, goal):
    """The multiplier by sorting the corners, in float64: t of one example, corner, cap and rate [D]."""
    order = np.argsort(corner)
    corner, cap, rate = corner[order], cap[order], rate[order]
    before = np.cumsum(cap) - cap
    free = np.cumsum(rate[::-1])[::-1]
    reached = before + corner * free >= goal
    first = reached.argmax()
    return (goal - before[first]) / free[first] if reached.any() else np.inf


@pytest.mark.parametrize("gap", [1e-4, 0.02, 0.2, 0.45])
@NORMS
def test_projection_of_whole_images_is_that_of_sorted_corners(norm, gap):
    """784 pixels, many at the edge of the box; the gap is a share of what the box allows at most."""
    rng = np.random.default_rng(3)
    x = np.clip(rng.normal(0.3, 0.5, size=(32, 784)), 0, 1).astype(np.float32)
    w = (rng.normal(size=x.shape) * rng.uniform(size=x.shape) ** 4).astype(np.float32)
    room = np.where(w < 0, 1 - x, x).astype(float)
    slope = np.abs(w).astype(float)
    b = gap * (slope * room).sum(1)
    speed = np.ones_like(slope) if norm == "linf" else slope
    ts = [sorted_multiplier(*case) for case in zip(room / speed, slope * room, slope * speed, b, strict=True)]
    wanted = -np.sign(w) * np.minimum(np.array(ts)[:, None] * speed, room)
    image = lambda flat: jnp.asarray(flat, jnp.float32).reshape(32, 28, 28, 1)  # noqa: E731
    found = project_hyperplane_box(image(x), image(w), jnp.asarray(b, jnp.float32), norm)
    np.testing.assert_allclose(np.asarray(found).reshape(32, 784), wanted, atol=1e-6)


def problem(batch=5, classes=5, seed=0):
    """z = V q(A (x - 1/2)) with q(u) = u + u^2 / 2: curved boundaries, gradients by hand, pixels at the edge."""
    rng = np.random.default_rng(seed)
    a, v = rng.normal(size=(8, 12)), rng.normal(size=(classes, 8))
    x = rng.uniform(0.1, 0.9, size=(batch, 2, 3, 2)).round(3)
    x[0, 0], x[1, :, 0] = 0.0, 1.0
    u = (x.reshape(batch, -1) - 0.5) @ a.T
    return a, v, x, ((u + u**2 / 2) @ v.T).argmax(1)


def curved(a, v, images, xp=jnp):
    u = (images.reshape(len(images), -1) - 0.5) @ xp.asarray(a.T, images.dtype)
    return (u + u**2 / 2) @ xp.asarray(v.T, images.dtype)


def published(a, v, x, y, start, target, norm, steps):
    """All iterates, the nearest adversarial point and whether each was adversarial, straight from algorithm 1."""
    logits = lambda z: curved(a, v, z[None], np)[0]  # noqa: E731
    at, best, nearest, iterates, hits = x + start, x, np.inf, [], []
    for _ in range(steps):
        u = a @ (at.ravel() - 0.5)
        w = (v[target] - v[y]) @ ((1 + u)[:, None] * a)
        gap = logits(at)[target] - logits(at)[y]
        near = slow_projection(at.ravel(), w, gap, norm)
        far = slow_projection(x.ravel(), w, gap + w @ (x - at).ravel(), norm)
        alpha = min(length(near, norm) / max(length(near, norm) + length(far, norm), 1e-16), 0.1)
        at = (1 - alpha) * (at.ravel() + 1.05 * near) + alpha * (x.ravel() + 1.05 * far)
        at = np.clip(at, 0, 1).reshape(x.shape)
        hits.append(logits(at).argmax() != y)
        if hits[-1]:
            if length((at - x).ravel(), norm) < nearest:
                best, nearest = at, length((at - x).ravel(), norm)
            at = 0.1 * x + 0.9 * at
        iterates.append(at - x)
    return iterates, best - x, hits


def drive(attack, logits, x, y, threat, steps, run):
    """(start, iterates, last state, what `finish` makes of it) of one run."""
    keys = jax.random.split(KEY, len(y))
    probes = functools.partial(SearchProbe, lambda images: (logits(images), None), x, y, keys, threat, None)
    state = jax.jit(lambda run: attack.begin(probes, threat, keys, run))(jnp.full(len(y), run, jnp.uint32))
    start, iterates = np.asarray(state.delta), []
    advance = jax.jit(lambda state, index: attack.advance(probes, threat, state, index))
    for index in range(steps):
        state = advance(state, jnp.int32(index))
        iterates.append(np.asarray(state.delta))
    return start, iterates, state, np.asarray(jax.jit(lambda state: attack.finish(probes, threat, state))(state))


@pytest.mark.parametrize(("norm", "run"), [("linf", 1), ("l2", 5), ("l1", 1)])
def test_first_25_iterates_are_those_of_the_paper(norm, run):
    """Run 1 of 3 targets goes from the clean image to the second likeliest class, run 5 from elsewhere to the third."""
    a, v, x, y = problem()
    attack = make("attack", {"type": "fab_t", "targets": 3, "restarts": 2, "final_search": 0})
    threat, images = Threat(norm=norm, epsilon=0.1), jnp.asarray(x, jnp.float32)
    logits = functools.partial(curved, a, v)
    start, found, state, delta = drive(attack, logits, images, jnp.asarray(y), threat, 25, run)
    order = np.argsort(-curved(a, v, x, np), axis=1)[:, 1:]
    cases = zip(x, y, start, order[:, run % 3], strict=True)
    iterates, best, hits = zip(*[published(a, v, *case, norm, 25) for case in cases], strict=True)
    np.testing.assert_allclose(np.stack(found, 1), iterates, atol=1e-4)
    np.testing.assert_allclose(delta, best, atol=1e-4)
    np.testing.assert_allclose(state.distance, [length(d.ravel(), norm) or np.inf for d in best], atol=1e-4)
    assert 20 < np.sum(hits) < 125
    reach = np.array([length(one.ravel(), norm) for one in start])
    assert (reach == 0).all() if run == 1 else (reach[2:] == pytest.approx(0.05, rel=1e-5))


def test_random_starts_lie_in_the_box_and_differ():
    x, y = jnp.round(jax.random.uniform(KEY, (4, 3, 3, 1))), jnp.zeros(4, int)
    logits = lambda images: images.reshape(len(images), -1)[:, :3]  # noqa: E731
    attack = make("attack", {"type": "fab_t", "targets": 2, "restarts": 2})
    assert attack.runs(10) == 4 and attack.runs(2) == 2
    start = drive(attack, logits, x, y, Threat(epsilon=0.1), 0, 2)[0]
    assert (x + start).min() >= 0 and (x + start).max() <= 1
    assert (np.abs(start).max((1, 2, 3)) > 0.02).all() and np.abs(start[0] - start[1]).max() > 0.01


@functools.cache
def linear_problem(norm):
    rng = np.random.default_rng(1)
    w = rng.normal(size=(12, 4)) * [1.0, 4.0, 0.3, 2.0]  # the likeliest rival is not always the nearest
    x = rng.uniform(0.45, 0.55, size=(16, 2, 3, 2))
    z = (x.reshape(16, -1) - 0.5) @ w
    y = z.argmax(1)
    rivals = [[k for k in range(4) if k != c] for c in y]
    exact = [min(abs(z[i, k] - z[i, c]) / dual(w[:, k] - w[:, c], norm) for k in rivals[i]) for i, c in enumerate(y)]
    w = jnp.asarray(w, jnp.float32)
    logits = lambda images: (images.reshape(len(images), -1) - 0.5) @ w  # noqa: E731
    return logits, jnp.asarray(x, jnp.float32), jnp.asarray(y), np.array(exact)


@NORMS
def test_linear_classifier_is_solved_exactly_in_any_batch(norm):
    logits, x, y, exact = linear_problem(norm)
    y = y.at[5].set((y[5] + 1) % 4)  # misclassified already
    exact = np.where(np.arange(16) == 5, 0.0, exact)
    threat = Threat(norm=norm, epsilon=float(np.median(exact)))
    config = {"type": "fab_t", "steps": 11}
    result = llrflow.attack(logits, x, y, threat.model_dump(), config, KEY)
    np.testing.assert_allclose(result.distance, exact, atol=1e-5)
    assert (result.distance >= exact - 1e-6).all()
    np.testing.assert_array_equal(result.success, result.distance <= threat.epsilon)
    assert 0 < result.success.sum() < 16
    assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1
    # Three targets, 11 steps each, of two forward passes and one backward pass: it never stops before.
    np.testing.assert_array_equal(result.queries, 3 * 11 * 2)
    np.testing.assert_array_equal(result.gradients, 3 * 11)
    few = llrflow.attack(logits, x[:5], y[:5], threat.model_dump(), config, KEY, batch_size=1)
    np.testing.assert_allclose(few.x_adv, result.x_adv[:5], atol=1e-5)
    if norm == "l2":
        return
    one = llrflow.attack(logits, x, y, threat.model_dump(), {**config, "targets": 1}, KEY)
    assert (one.queries == 11 * 2).all() and (one.distance >= result.distance - 1e-6).all()
    assert (one.distance > exact + 1e-4).any()


def test_nearer_than_deepfool_and_nearest_with_the_final_search():
    a, v, x, y = problem(batch=32, classes=10, seed=2)
    logits, x, y = functools.partial(curved, a, v), jnp.asarray(x, jnp.float32), jnp.asarray(y)
    threat = {"epsilon": 0.9}
    fab = {"type": "fab_t", "steps": 31, "targets": 4}
    deepfool, unsearched, found = (
        llrflow.attack(logits, x, y, threat, config, KEY) for config in ("deepfool", {**fab, "final_search": 0}, fab)
    )
    assert jnp.isfinite(found.distance).all() and found.distance.mean() < 0.99 * deepfool.distance.mean()
    assert (found.distance <= unsearched.distance + 1e-6).all()
    assert found.distance.mean() < 0.998 * unsearched.distance.mean()
    assert (jnp.argmax(logits(found.x_adv), axis=1) != y).all()
    # On the boundary: a hair nearer, the image is classified correctly.
    nearer = x + 0.995 * (found.x_adv - x)
    assert (jnp.argmax(logits(nearer), axis=1) == y).mean() > 0.9


@pytest.mark.parametrize("scale", [0.0, jnp.nan], ids=["flat", "overflowing"])
def test_useless_gradients_never_make_an_image_of_nans(scale):
    x, y = jnp.full((3, 2, 2, 1), 0.5), jnp.zeros(3, int)

    def logits(images):
        bright = jnp.sum(images.reshape(len(images), -1), axis=1) > 2.2
        return jnp.stack([1.0 + 0 * bright, jnp.where(bright, scale, 0.1 * jnp.sum(images, axis=(1, 2, 3)))], axis=1)

    attack = make("attack", {"type": "fab_t", "steps": 5})
    _, iterates, state, delta = drive(attack, logits, x, y, Threat(epsilon=0.5), 5, 0)
    assert np.isfinite(iterates).all() and np.isfinite(delta).all()
    assert jnp.isfinite(state.distance).all() == bool(jnp.isnan(scale))


@pytest.mark.parametrize(
    "field",
    [{"steps": 0}, {"targets": 0}, {"restarts": 0}, {"alpha_max": 1.5}, {"eta": 0.9}, {"beta": 1.0}, {"betta": 0.9}],
    ids=lambda field: str(field),
)
def test_bad_fields_are_refused(field):
    with pytest.raises(SpecError, match=next(iter(field))):
        make("attack", {"type": "fab_t", **field})
