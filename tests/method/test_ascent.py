"""The inner maximisation: every way of repeating its steps gives one perturbation; what is kept, and what improves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.attacks.network import Examples, Network, one_device
from llrflow.attacks.program import AttackProgram
from llrflow.components.registry import make
from llrflow.method.ascent import SCAN_CHUNK, Plan, Search, maximise, plan_steps, restart_keys
from llrflow.method.threat import Threat

KEY = jax.random.key(3)
THREATS = [Threat(norm="linf", epsilon=0.05), Threat(norm="l2", epsilon=0.5)]
WITH_THREATS = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)


@pytest.fixture
def find(net, search_probe):
    """A factory: (delta, value [B] of the maximised term there) of a search on the reference network."""

    def find(search, threat, by="unroll"):
        @jax.jit
        def both(keys):
            probe = search_probe(net.logits, net.x, net.y)
            delta = maximise(search, lambda: probe, threat, keys, by)
            return delta, search.maximize(probe, delta)

        return both(restart_keys(jax.random.split(KEY, len(net.x)), 0))

    return find


@pytest.fixture
def term_at(net, search_probe):
    """A factory: the value [B] of a term at a perturbation of the reference network."""
    return lambda term, delta: jax.jit(lambda delta: term(search_probe(net.logits, net.x, net.y), delta))(delta)


def start_of(search, threat, net):
    keys = restart_keys(restart_keys(jax.random.split(KEY, len(net.x)), 0), 0)
    return jax.jit(lambda keys: threat.project(search.start(threat, net.x, keys), net.x))(keys)


@pytest.mark.parametrize(
    ("threat", "start"),
    [
        *((THREATS[0], start) for start in ("zero", "uniform", {"type": "gaussian", "scale": 0.01})),
        (THREATS[1], "uniform"),
    ],
    ids=str,
)
def test_unrolled_and_scanned_and_host_driven_searches_agree(threat, start, net, search_probe):
    attack = make("attack", {"type": "pgd", "steps": 2, "start": start, "maximize": "cross_entropy", "stop": "never"})
    ids = jnp.array([5, 0, 9, 2])

    def inside(by):
        def run(keys):
            return maximise(attack, lambda: search_probe(net.logits, net.x, net.y), threat, keys, by)

        return jax.jit(run)(jax.vmap(lambda example: jax.random.fold_in(KEY, example))(ids))

    expected = inside("unroll")
    np.testing.assert_allclose(inside("scan"), expected, atol=1e-6)
    for chunk in (1, 2) if start == "uniform" else (1,):
        program = AttackProgram(attack, threat, Network(lambda _, images: net.logits(images)), one_device())
        program.plan = Plan("host", chunk)
        examples = Examples(net.x, net.y, ids, jnp.zeros(len(ids), jnp.uint32))
        ((_, verdict),) = program.run((), examples, jax.random.key_data(KEY), len(ids))
        np.testing.assert_allclose(verdict.delta, expected, atol=1e-6, err_msg=f"chunks of {chunk}")


@WITH_THREATS
@pytest.mark.parametrize(
    ("start", "step"),
    [
        *(
            (start, "steepest")
            for start in ("zero", {"type": "uniform", "radius": 3}, {"type": "gaussian", "scale": 9})
        ),
        *(("uniform", step) for step in ("sign", "normalized", {"type": "sign", "size": 0.5})),
    ],
    ids=str,
)
def test_found_perturbations_lie_in_ball_and_box(threat, start, step, net, find):
    delta, _ = find(Search(steps=2, start=start, step=step), threat)
    threat.check(delta, net.x)
    assert float(threat.distance(delta).min()) > 0.5 * threat.epsilon


@WITH_THREATS
@pytest.mark.parametrize("maximize", ["cross_entropy", "margin", "local_linearity"])
def test_best_iterate_is_never_below_the_start_or_the_last(threat, maximize, net, find, term_at):
    # Steps of 0.3 jump across the ball, so that the last iterate is rarely the best.
    common = {"maximize": maximize, "steps": 3, "step": {"type": "steepest", "size": 0.3}}
    best, last = Search(keep="best", **common), Search(keep="last", **common)
    value = np.asarray(find(best, threat)[1])
    for other in (term_at(best.maximize, start_of(best, threat, net)), find(last, threat)[1]):
        assert np.all(value >= np.asarray(other) - 1e-6)


@pytest.mark.parametrize(("keep", "moved"), [("best", 0.015), ("last", 0.03)])
def test_best_is_the_best_iterate_visited(keep, moved, dressed, search_probe):
    """Steps of 0.015 towards a peak at 0.02 visit 0, 0.015 and 0.03."""
    x, y = np.full((2, 2, 2, 1), 0.5, np.float32), np.zeros(2, int)
    search = Search(steps=2, start="zero", step={"type": "sign", "size": 0.015}, keep=keep)

    @jax.jit
    def found(x, keys):
        loss = dressed(lambda images: 2.0 - 100 * jnp.sum((images - 0.52) ** 2, axis=(1, 2, 3)))
        return maximise(search, lambda: search_probe(loss, x, y), THREATS[0], keys, "unroll")

    np.testing.assert_allclose(found(x, jax.random.split(KEY, 2)), moved, rtol=1e-5)


@pytest.mark.parametrize(("maximize", "keep"), [("cross_entropy", "last"), ("local_linearity", "best")])
def test_restarts_never_lower_the_value(maximize, keep, find):
    values = [
        np.asarray(find(Search(maximize=maximize, steps=1, restarts=restarts, keep=keep), THREATS[0])[1])
        for restarts in (1, 3)
    ]
    assert np.all(values[1] >= values[0] - 1e-6) and np.any(values[1] > values[0])


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "adam", "learning_rate": 0.02},
        {"type": "sgd", "learning_rate": 0.01},
        {"type": "sgd", "learning_rate": 0.01, "momentum": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("of", ["gradient", "steepest"])
def test_optax_steps_ascend(optimizer, of, net, find, term_at):
    search = Search(steps=4, start="zero", step={"type": "optax", "optimizer": optimizer, "of": of})
    delta, value = find(search, THREATS[0])
    THREATS[0].check(delta, net.x)
    assert np.all(np.asarray(value) > np.asarray(term_at(search.maximize, jnp.zeros_like(net.x))) + 1e-2)


def test_automatic_size_is_madrys_and_independent_of_chunks(net, search_probe):
    search = Search(steps=10, start="zero")
    probe = search_probe(net.logits, net.x, net.y)
    carry = search.begin(lambda: probe, THREATS[0], jax.random.split(KEY, len(net.x)), 0)
    moved = jax.jit(lambda carry: search.advance(lambda: probe, THREATS[0], carry, 0).delta)(carry)
    np.testing.assert_allclose(jnp.abs(moved), 2.5 * 0.05 / 10, rtol=1e-5)


def test_found_perturbation_is_a_constant_of_the_parameters(reference, search_probe):
    def total(params):
        probe = search_probe(lambda images: reference.apply(params, images), reference.x, reference.y)
        keys = jax.random.split(KEY, len(reference.x))
        return jnp.sum(maximise(Search(steps=1), lambda: probe, THREATS[1], keys, "unroll"))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(reference.params)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_one_overflowing_example_keeps_its_perturbation_finite(net, search_probe):
    def logits(images):
        # The first example's logits overflow as soon as its first pixel rises.
        burst = jnp.where(jnp.arange(len(images)) == 0, jnp.exp(1e4 * (images[:, 0, 0, 0] - net.x[0, 0, 0, 0])), 1.0)
        return net.logits(images) * burst[:, None]

    probe = search_probe(logits, net.x, net.y)
    keys = jax.random.split(KEY, len(net.x))
    delta = jax.jit(lambda keys: maximise(Search(steps=3), lambda: probe, THREATS[0], keys, "unroll"))(keys)
    THREATS[0].check(delta, net.x)


@pytest.mark.parametrize(
    ("steps", "platform", "inside", "plan"),
    [
        (10, "cpu", True, ("unroll", 10)),
        (1, "cpu", False, ("host", 1)),
        (100, "cpu", False, ("host", 1)),
        (100, "gpu", False, ("scan", 10)),
        (48, "gpu", False, ("scan", 8)),
        (7, "tpu", False, ("scan", 7)),
        (11, "tpu", False, ("scan", 1)),
        (2, "gpu", True, ("scan", 2)),
        (30, "tpu", True, ("scan", 30)),
        (2, "tpu", True, ("scan", 2)),
    ],
)
def test_plan(steps, platform, inside, plan):
    assert plan_steps(steps, platform, inside)[0] == plan[0]
    if plan[0] != "unroll":
        assert plan_steps(steps, platform, inside) == plan


def test_scanned_chunks_add_up():
    for steps in range(200):
        chunk = plan_steps(steps, "gpu", inside=False).chunk
        assert steps % chunk == 0 and 1 <= chunk <= SCAN_CHUNK, steps


def test_steps_become_shorter_where_they_are_told_to(dressed, search_probe):
    """Four steps of 0.01 uphill, of which the last two count a tenth."""
    x, y = np.full((2, 2, 2, 1), 0.5, np.float32), np.zeros(2, int)
    search = Search(steps=4, start="zero", step={"type": "sign", "size": 0.01}, drops=[0.5])

    @jax.jit
    def found(x, keys):
        loss = dressed(lambda images: 1.0 + jnp.sum(images, axis=(1, 2, 3)))
        return maximise(search, lambda: search_probe(loss, x, y), THREATS[0], keys, "unroll")

    np.testing.assert_allclose(found(x, jax.random.split(KEY, 2)), 0.022, rtol=1e-5)
