"""Perturbations by name: their balls, boxes and starts; the objective at them, found or given."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.components.registry import Component, register
from llrflow.method.ascent import UniformStart, restart_keys
from llrflow.method.keys import purpose_key
from llrflow.method.objective import Objective, evaluate, perturb
from llrflow.method.probe import Pass, Probe
from llrflow.method.threat import Threat
from llrflow.program.state import Batch

EPSILON = 0.05
THREAT = Threat(epsilon=EPSILON)
SGD = {"type": "sgd", "learning_rate": 0.1}


def objective_of(perturbations, **rest):
    return Objective.model_validate({"perturbations": perturbations, **rest})


@pytest.fixture(scope="module")
def net(net):
    """The reference network, its images stretched to the edges of the pixel box."""
    return SimpleNamespace(**{**vars(net), "x": jnp.clip(0.5 + 1.3 * (net.x - 0.5), 0.0, 1.0)})


@pytest.fixture
def keys_of(net):
    """keys_of(name) -> one key per example for a perturbation."""
    return lambda name: jax.random.split(purpose_key(jnp.uint32(0), name), len(net.x))


@pytest.fixture
def searched(net, keys_of):
    """searched(perturbations) -> {name: delta} that these searches find on the reference network."""

    def find(perturbations):
        @jax.jit
        def found(x):
            probe = Probe(net.logits, x, net.y)
            return perturb(objective_of(perturbations), probe, THREAT, keys_of, "unroll")

        return found(net.x)

    return find


@pytest.fixture
def start(net, keys_of):
    """start(name, radius) -> the uniform start of a perturbation's first restart, in multiples of epsilon."""
    return lambda name, radius: UniformStart(radius=radius)(THREAT, net.x, restart_keys(keys_of(name), 0))


def test_onto_the_box_is_n_fgsm(net, searched, start):
    step = {"type": "sign", "size": EPSILON}
    n_fgsm = {"steps": 1, "step": step, "start": {"type": "uniform", "radius": 2}, "onto": "box"}
    delta = searched({"p": n_fgsm})["p"]

    @jax.jit
    def by_hand(noise):
        def loss(images):
            log_p = jax.nn.log_softmax(net.logits(images))
            return -jnp.sum(jnp.take_along_axis(log_p, net.y[:, None], axis=1))

        noisy = jnp.clip(net.x + noise, 0.0, 1.0)
        return jnp.clip(noisy + EPSILON * jnp.sign(jax.grad(loss)(noisy)), 0.0, 1.0) - net.x

    noise = start("p", 2)
    np.testing.assert_allclose(delta, by_hand(noise), atol=1e-6)
    assert np.all(THREAT.distance(delta) > 2 * EPSILON) and np.all(THREAT.distance(noise) <= 2 * EPSILON)
    assert float(jnp.min(net.x + delta)) >= -1e-6 and float(jnp.max(net.x + delta)) <= 1 + 1e-6
    assert np.any(net.x + noise < 0) and np.any(net.x + noise > 1)


def test_projected_onto_the_ball_the_same_search_stays_in_it(net, searched):
    delta = searched({"p": {"steps": 1, "start": {"type": "uniform", "radius": 2}}})["p"]
    THREAT.check(delta, net.x)
    np.testing.assert_allclose(THREAT.distance(delta), EPSILON, rtol=1e-5)


def test_a_norm_of_its_own_is_the_ball_of_the_search(net, searched):
    delta = searched({"p": {"steps": 2, "norm": "l2", "epsilon": 0.8, "step": {"type": "steepest", "size": 0.5}}})["p"]
    ball = Threat(norm="l2", epsilon=0.8)
    ball.check(delta, net.x)
    assert np.all(ball.distance(delta) > 0.4) and np.all(THREAT.distance(delta) > EPSILON)
    assert len(np.unique(np.abs(delta))) > delta.size / 2  # no step along the sign


@pytest.mark.parametrize("radius", [0.5, 1, 3])
def test_without_steps_a_perturbation_is_its_projected_start(net, searched, start, radius):
    delta = searched({"p": {"steps": 0, "start": {"type": "uniform", "radius": radius}}})["p"]
    expected = np.clip(np.clip(start("p", radius), -EPSILON, EPSILON), -net.x, 1 - net.x)
    np.testing.assert_allclose(delta, expected, atol=1e-7)
    assert len(np.unique(delta)) > 10


def test_perturbations_have_radii_and_draws_of_their_own(searched):
    still = {"steps": 0, "start": "uniform"}
    found = searched({"a": {"steps": 2, "epsilon": 0.02}, "b": {"steps": 2, "epsilon": 0.2}, "c": still, "d": still})
    for name, radius in (("a", 0.02), ("b", 0.2), ("c", EPSILON)):
        np.testing.assert_allclose(np.max(np.abs(found[name])), radius, rtol=0.05)
    assert np.mean(np.abs(found["c"] - found["d"])) > 0.2 * EPSILON
    np.testing.assert_array_equal(searched({"c": still})["c"], found["c"])


@pytest.mark.parametrize(("share", "clean_passes"), [(True, 1), (False, 2)])
def test_a_trades_search_takes_clean_logits_from_the_shared_pass(share, clean_passes, net, keys_of):
    objective = objective_of(
        {"p": {"maximize": "kl_divergence", "steps": 3, "start": "gaussian"}},
        terms={"kl": {"type": "kl_divergence", "at": "p"}},
    )

    def apply(images):
        return net.logits(images), None

    def total(x):
        probe = Probe.stateful(apply, x, net.y)
        searches = probe if share else Probe.stateful(apply, x + 0.0, net.y, seen=", as searches see it")
        value = evaluate(objective, probe, perturb(objective, searches, THREAT, keys_of, "unroll"), {}).value
        clean = [made for p in {probe, searches} for made in p.passes.values() if made.at.startswith("clean")]
        constant = [] if share else [Pass("clean, as searches see it")]
        assert sorted(clean, key=lambda made: made.at) == [Pass("clean", differentiated=True), *constant]
        return jnp.sum(value)

    lowered = jax.jit(total).lower(net.x)
    # The network is one convolution: a step of the search is two of them.
    assert lowered.as_text().count("stablehlo.convolution") == clean_passes + 2 * 3 + 1


def test_given_perturbations_are_where_the_objective_is_evaluated(net):
    traced = []

    def counting(images):
        traced.append(images)
        return net.logits(images)

    objective = objective_of(
        {"p": {"steps": 5}},
        loss={"type": "cross_entropy", "at": "p", "weight": 2},
        terms={"m": {"type": "margin", "at": "p", "weight": 0.5}, "clean": {"type": "margin", "weight": 3}},
    )

    @jax.jit
    def found(delta):
        return evaluate(objective, Probe(counting, net.x, net.y), {"p": delta}, {})

    outcome = found(net.delta)
    assert len(traced) == 2

    def by_hand(images):
        z, rows = np.asarray(net.logits(images)), np.arange(len(net.x))
        wrong = np.where(np.eye(z.shape[1], dtype=bool)[net.y], -np.inf, z).max(axis=1)
        return np.log(np.sum(np.exp(z), axis=1)) - z[rows, net.y], wrong - z[rows, net.y]

    (loss, margin), (_, clean) = by_hand(net.x + net.delta), by_hand(net.x)
    for name, expected in (("loss", loss), ("m", margin), ("clean", clean)):
        np.testing.assert_allclose(outcome.metrics[name], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outcome.value, 2 * loss + 0.5 * margin + 3 * clean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outcome.logits, net.logits(net.x + net.delta), rtol=1e-4, atol=1e-5)


@register("gradient", "at_noughts_of_a_test")
class AtNoughts(Component):
    """Searches once, and asks for the gradient at perturbations of zero instead."""

    def __call__(self, gradient, params):
        found = gradient(params)
        return gradient(params, jax.tree.map(jnp.zeros_like, found.perturbations))


def test_a_gradient_hook_may_pass_perturbations_which_are_not_searched_again(tiny):
    objective = {
        "loss": {"type": "cross_entropy", "at": "p"},
        "perturbations": {"p": {"steps": 1}},
        "terms": {"clean": {"type": "cross_entropy", "weight": 0}},
    }
    rng = np.random.default_rng(0)
    batch = Batch(rng.integers(0, 256, (8, 8, 8, 1), np.uint8), rng.integers(0, 10, 8, np.int32), np.arange(8))
    metrics = {}
    for hook in ("plain", "at_noughts_of_a_test"):
        spec = {**tiny(), "objective": {**objective, "gradient": hook}}
        program = llrflow.compile(llrflow.load_spec(spec, {"train.batch_size": 8, "optimizer": SGD}))
        metrics[hook] = program.devices.fetch(program.train_step(program.init(), batch, 0)[1])
    plain, noughts = metrics.values()
    assert noughts["loss"] == pytest.approx(noughts["clean"], rel=1e-6)
    assert noughts["clean"] == pytest.approx(plain["clean"], rel=1e-6) and plain["loss"] > plain["clean"] + 0.01
    assert noughts["gradient_norm"] != pytest.approx(plain["gradient_norm"], rel=1e-3)
