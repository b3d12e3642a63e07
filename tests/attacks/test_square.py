"""square: against a slow transcription of the paper given the same draws, and what every attack promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.attacks.square import Square, draw_change, draw_grid, shares, sides
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.probe import SearchProbe
from llrflow.method.threat import Threat

KEY = jax.random.key(3)  # and prime numbers of queries, which compile one step, not a chunk of several
RNG = np.random.default_rng(0)
SHAPE = (12, 11, 2)
W, Q = RNG.normal(size=(*SHAPE, 3)), RNG.normal(size=(*SHAPE, 3))
X = RNG.uniform(size=(4, *SHAPE)).astype(np.float32)
EPSILON = {"linf": 0.05, "l2": 0.7, "l1": 6.0}


def quadratic(images, xp=jnp):
    z = images - 0.5
    return xp.einsum("bhwc,hwck->bk", z, xp.asarray(W)) + xp.einsum("bhwc,hwck->bk", z * z, xp.asarray(Q))


Y = np.argmax(quadratic(X, np), axis=1)


# The schedule as published (section 5 of the paper; `p_selection` of the authors' code): after so many changes of
# 10,000 p is so much smaller.
PUBLISHED = ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256))


def published_p(change):
    """p at change number `change` from 0, of 10,000."""
    return 0.8 / next((divisor for last, divisor in PUBLISHED if change <= last), 512)


@pytest.mark.parametrize("queries", [10000, 5000, 37])
def test_share_of_changed_pixels_follows_the_published_table(queries):
    expected = [published_p(change * 10000 // queries) for change in range(queries - 1)]
    np.testing.assert_allclose(shares(0.8, queries, rescale=True)[1:], expected, rtol=1e-12)


@pytest.mark.parametrize("profile", ["standard", "plus"])
@pytest.mark.parametrize("queries", [1000, 5000])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (64, 64, 3)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sides_inside_auto_attack_are_those_of_the_authors_ensemble(profile, queries, shape, norm):
    """It counts changes (`resc_schedule=False`), whatever the number of queries."""
    part = make("attack", {"type": "auto_attack", "profile": profile}).stages(Threat(norm=norm, epsilon=0.1), 10)[
        "square"
    ]
    assert part.queries == 5000
    expected = []
    for change in range(queries - 1):
        side = max(round((published_p(change) * shape[0] * shape[1]) ** 0.5), 1 if norm == "linf" else 3)
        side += norm == "l2" and side % 2 == 0
        expected.append(min(side, *shape[:2]))
    share = shares(part.p, queries, part.rescale)
    np.testing.assert_array_equal(sides(share, norm, shape)[1:], expected)
    assert np.mean(sides(shares(part.p, queries, True), norm, shape)[1:] == expected) < 0.9  # else it tells nothing


def test_sides_are_the_nearest_whole_numbers_and_fit():
    share = shares(0.8, 10000, rescale=True)
    linf, l2 = (sides(share, norm, (32, 32, 3)) for norm in ("linf", "l2"))
    assert linf[1] == round(np.sqrt(0.8 * 1024)) == 29 and linf[-1] == 1
    assert np.array_equal(linf, [max(1, round(np.sqrt(p * 1024))) for p in share])
    assert np.all(l2 % 2 == 1) and l2.min() == 3 and np.all(np.abs(l2 - np.maximum(linf, 3)) <= 1)
    for norm in ("linf", "l2"):
        whole = shares(1.0, 50, rescale=True)
        assert sides(whole, norm, (5, 4, 1)).max() == 4 and sides(whole, norm, (2, 9, 1)).max() <= 2


def test_squares_reach_every_place():
    draws = jax.vmap(lambda key: draw_change(key, jnp.asarray(9), SHAPE))(jax.random.split(KEY, 200))
    assert {*map(tuple, np.asarray(draws.corners).reshape(-1, 2).tolist())} == {
        (r, c) for r in range(4) for c in range(3)
    }


# A transcription of the paper, with loops and indices; of l1 that of the authors' code.

POWERS = {"l2": 2, "l1": 4}


def paper_eta(h, power=2):
    """Eq. (2), with 1-based r, s as printed; the two parts beside each other, under l1 of the same sum."""

    def half(h1, h2):
        n, out = h1 // 2, np.zeros((h1, h2))
        for r in range(1, h1 + 1):
            for s in range(1, h2 + 1):
                m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
                out[r - 1, s - 1] = sum(1 / (n + 1 - k) ** power for k in range(m + 1))
        return out if power == 2 else out / out.sum()

    k = h // 2
    eta = np.concatenate([half(h, k), -half(h, h - k)], axis=1)
    return eta / (np.linalg.norm(eta) if power == 2 else np.abs(eta).sum())


def paper_start(key, norm, epsilon):
    width, channels = SHAPE[1:]
    if norm == "linf":
        return epsilon * np.broadcast_to(np.asarray(jax.random.rademacher(key, (1, width, channels))), SHAPE)
    draw, delta = jax.tree.map(np.asarray, draw_grid(key, SHAPE)), np.zeros(SHAPE)
    for i in range(6):  # 12 x 11 pixels: 6 x 5 tiles of side 2, no margin above, none on the left
        for j in range(5):
            eta = paper_eta(2, POWERS[norm])
            tile = eta.T if draw.turned[i, j] else eta
            delta[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = tile[:, :, None] * draw.sign[i, j]
    return delta if norm == "l1" else epsilon * delta / np.linalg.norm(delta)


def paper_change(delta, draw, h, norm, epsilon):
    (r1, s1), (r2, s2) = np.asarray(draw.corners)
    nu = delta.copy()
    one, two = (slice(r1, r1 + h), slice(s1, s1 + h)), (slice(r2, r2 + h), slice(s2, s2 + h))
    if norm == "linf":
        nu[one] += 2 * epsilon * np.asarray(draw.sign)
        return nu
    unused = epsilon**2 - np.sum(nu**2) if norm == "l2" else epsilon - np.abs(nu).sum()
    eta = paper_eta(h, POWERS[norm]).T if draw.turned else paper_eta(h, POWERS[norm])
    length = np.linalg.norm if norm == "l2" else lambda part: np.abs(part).sum()
    union = np.zeros(SHAPE[:2], bool)
    union[one] = union[two] = True
    for i in range(SHAPE[2]):
        rho, window = int(draw.sign[i]), delta[(*one, i)]
        temp = rho * eta + window / max(length(window), 1e-12)  # in the paper 0 / 0
        available = np.sqrt(np.sum(delta[union, i] ** 2) + unused / SHAPE[2])
        if norm == "l1":
            available = SHAPE[2] * np.abs(delta[union, i]).sum() + unused
        nu[(*two, i)] = 0
        nu[(*one, i)] = temp / length(temp) * available
    return nu


def paper_project(delta, x, norm, epsilon):
    if norm == "l1":
        room, low, high = np.where(delta > 0, 1 - x, x), 0.0, np.abs(delta).max()
        at = lambda t: np.sign(delta) * np.minimum(np.maximum(np.abs(delta) - t, 0), room)  # noqa: E731
        for _ in range(60 if np.abs(at(0.0)).sum() > epsilon else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if np.abs(at(middle)).sum() > epsilon else (low, middle)
        return at(high) if low else at(0.0)
    delta = np.clip(delta, -epsilon, epsilon) if norm == "linf" else delta * min(1, epsilon / np.linalg.norm(delta))
    return np.clip(x + delta, 0, 1) - x


def paper_run(x, y, key, norm, queries):
    """The kept perturbation after each query, and its loss."""
    epsilon, p, best, loss, kept = EPSILON[norm], shares(0.8, queries, True), None, np.inf, []
    for i in range(queries):
        if loss < 0:  # adversarial: the end
            kept.append(best)
            continue
        drawn = jax.random.fold_in(key, i)
        if i == 0:
            new = paper_start(drawn, norm, epsilon)
        else:
            h = int(max(np.rint(np.sqrt(p[i] * 12 * 11)), 1 if norm == "linf" else 3))
            h = min(h + (norm != "linf" and h % 2 == 0), 11)
            new = paper_change(best, draw_change(drawn, jnp.asarray(h), SHAPE), h, norm, epsilon)
        new = paper_project(new, x, norm, epsilon)
        logits = quadratic((x + new)[None], np)[0]
        new_loss = logits[y] - np.delete(logits, y).max()
        if new_loss < loss:
            best, loss = new, new_loss
        kept.append(best)
    return np.array(kept)


def frozen(done, old, new):
    """As the program does: what is settled stays."""
    return jnp.where(done.reshape((-1,) + (1,) * (new.ndim - 1)), old, new)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_iterates_are_those_of_the_paper(norm):
    attack, threat = Square(queries=26), Threat(norm=norm, epsilon=EPSILON[norm])
    keys = jax.random.split(KEY, len(X))
    probes = partial(SearchProbe, lambda im: (quadratic(im), None), jnp.asarray(X), jnp.asarray(Y), keys, threat, None)
    advance = jax.jit(lambda state, index: attack.advance(probes, threat, state, index))
    state, found = attack.begin(probes, threat, keys, jnp.zeros(len(X))), []
    for index in range(attack.length):
        state = jax.tree.map(lambda old, new, done=state.wrong: frozen(done, old, new), state, advance(state, index))
        found.append(np.asarray(state.delta))
    expected = np.stack([paper_run(x.astype(float), y, key, norm, 26) for x, y, key in zip(X, Y, keys, strict=True)], 1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    changes = [len(np.unique(expected[:, b].round(6), axis=0)) for b in range(len(X))]
    assert max(changes) >= 8 and sum(changes) >= 20  # the comparison is not of the start alone


def linear(w, bias, images):
    score = jnp.sum((images - 0.5) * w, axis=(1, 2, 3)) + bias
    return jnp.stack([score, jnp.zeros_like(score)], axis=1)


@pytest.mark.parametrize(("norm", "share", "exact"), [("linf", 1.0, 1e-4), ("l2", 0.4, 0.0)])
def test_gain_on_a_linear_classifier(norm, share, exact):
    """The optimum under linf; under l2 random search comes near it."""
    w = np.random.default_rng(1).normal(size=(4, 4, 1))
    x = np.full((3, 4, 4, 1), 0.5, np.float32)
    result = llrflow.attack(
        partial(linear, w, 100.0),
        x,
        np.zeros(3, int),
        {"norm": norm, "epsilon": 0.1},
        {"type": "square", "queries": 601},
        KEY,
    )
    gain = np.sum((x - np.asarray(result.x_adv)) * w, axis=(1, 2, 3))
    best = 0.1 * (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    assert np.all(gain / best > share - exact) and np.all(gain / best < 1 + 1e-5)
    assert not result.success.any() and np.all(result.queries == 601) and np.all(result.gradients == 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_is_in_ball_and_box_and_free_of_its_batch(norm):
    x = np.random.default_rng(2).uniform(size=(16, *SHAPE)).round(1).astype(np.float32)
    y = np.argmax(quadratic(x, np), axis=1)
    threat = {"norm": norm, "epsilon": EPSILON[norm] / 2}
    whole, alone = (
        llrflow.attack(quadratic, x, y, threat, {"type": "square", "queries": 23, "restarts": 2}, KEY, batch_size=size)
        for size in (16, 1)
    )
    Threat.model_validate(threat).check(whole.x_adv - x, x)
    np.testing.assert_allclose(whole.x_adv, alone.x_adv, atol=1e-5)
    np.testing.assert_array_equal(whole.queries, alone.queries)
    assert 0 < whole.success.mean() < 1
    assert len(np.unique(np.abs(whole.x_adv - x).round(3))) > 1
    unbroken = ~np.asarray(whole.success)
    assert np.all(np.asarray(whole.queries)[unbroken] == 46)
    assert np.any(np.asarray(whole.queries)[~unbroken] % 23)  # a settled example asks no more


def test_an_example_pays_up_to_its_first_misclassified_point():
    x, w = np.full((2, 4, 4, 1), 0.5, np.float32), np.ones((4, 4, 1))
    bias = np.array([-1.0, 100.0])  # the first is misclassified at once, the second never
    result = llrflow.attack(
        partial(linear, w, bias), x, np.zeros(2, int), {"epsilon": 0.01}, {"type": "square", "queries": 17}, KEY
    )
    assert result.success.tolist() == [True, False] and result.queries.tolist() == [1, 17]


@pytest.mark.parametrize(
    "wrong", [{"queries": 0}, {"p": 0}, {"p": 1.1}, {"rescale": 1}, {"restarts": 0}, {"steps": 3}], ids=str
)
def test_bad_fields_are_refused(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        llrflow.attack(quadratic, X, Y, {"epsilon": 0.1}, {"type": "square", **wrong}, KEY)
