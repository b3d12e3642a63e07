"""AWP: one step by hand, at the perturbations found before the weights move; nothing of the move stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llrflow
from llrflow.components.plugins import load_plugin
from llrflow.components.registry import make
from llrflow.method.keys import example_keys, purpose_key
from llrflow.method.objective import perturb
from llrflow.method.parameter_gradient import Gradient
from llrflow.method.probe import Probe
from llrflow.program.state import Batch
from llrflow.program.step import network_of, predict

RATE = 0.1
SGD = {"type": "sgd", "learning_rate": RATE}


@pytest.fixture
def program(load, plugin_file):
    """program(gamma, changes) -> the tiny spec with plain SGD and AWP, compiled; no AWP where gamma is None."""

    def made(gamma, changes=None):
        awp = {} if gamma is None else {"objective.gradient": {"type": "awp", "gamma": gamma}}
        return llrflow.compile(load({"plugins": [plugin_file("awp")], "optimizer": SGD, **awp, **(changes or {})}))

    return made


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 8, 8, 1), np.uint8), rng.integers(0, 10, 64, np.int32)
    return Batch(images, labels, np.arange(64, dtype=np.int32))


@pytest.fixture
def trained(batch):
    """trained(program, steps) -> ([parameters before step 0, after it, ...], [metrics of step 0, ...])."""

    def run(program, steps):
        state, found, metrics = program.init(), [], []
        for step in range(steps):
            found.append(program.devices.fetch(state).params)
            state, made = program.train_step(state, batch, step)
            metrics.append(program.devices.fetch(made))
        return [*found, program.devices.fetch(state).params], metrics

    return run


def by_hand(program, batch, search_again=False):
    """(params, gamma) -> (params, objective) of step 0: a step down the gradient at w + gamma ||w|| g / ||g||."""
    spec, x, y = program.spec, jnp.asarray(batch.images / np.float32(255)), jnp.asarray(batch.labels)
    network = network_of(spec.model, 10)

    def delta_at(params):
        def apply(images):
            return predict(network, params, {}, images), None

        def keys(name):
            key = jax.random.fold_in(purpose_key(np.uint32(spec.seed), name), 0)
            return example_keys(key, jnp.asarray(batch.ids))

        probe = Probe.stateful(apply, x, y, None, spec.threat)
        return perturb(spec.objective, probe, spec.threat, keys, "unroll")["llr"]

    def objective(params, delta):
        def loss(images):
            return optax.softmax_cross_entropy_with_integer_labels(predict(network, params, {}, images), y)

        clean, slope = jax.jvp(loss, (x,), (delta,))
        return jnp.mean(clean + 0.2 * jnp.abs(loss(x + delta) - clean - slope) + 0.1 * jnp.abs(slope))

    @jax.jit
    def step(params, gamma):
        delta = delta_at(params)
        slope = jax.grad(objective)(params, delta)
        moved = {
            layer: {
                name: w
                + gamma * jnp.sqrt(jnp.sum(w**2)) / jnp.sqrt(jnp.sum(slope[layer][name] ** 2)) * slope[layer][name]
                if w.ndim >= 2
                else w
                for name, w in tensors.items()
            }
            for layer, tensors in params.items()
        }
        value, gradient = jax.value_and_grad(objective)(moved, delta_at(moved) if search_again else delta)
        return jax.tree.map(lambda w, g: w - RATE * g, params, gradient), value

    return step


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_step_is_the_gradient_at_the_moved_weights(program, trained, batch):
    awp = program(0.3)
    (before, after), (metrics,) = trained(awp, 1)
    step = by_hand(awp, batch)
    (expected, value), (plain, unmoved) = step(before, 0.3), step(before, 0.0)
    assert difference(after, expected) < 1e-5
    assert metrics["objective"] == pytest.approx(float(value), rel=1e-4)
    assert value > unmoved  # it goes uphill
    for other in (plain, by_hand(awp, batch, search_again=True)(before, 0.3)[0]):
        assert difference(other, expected) > 1e-4, "another rule would have passed"


def test_without_gamma_it_is_the_plain_step(program, trained):
    plain, metrics = trained(program(None), 3)
    still, others = trained(program(0.0), 3)
    assert difference(plain[-1], plain[0]) > 1e-3 and difference(still[-1], plain[-1]) < 1e-6
    for ours, other in zip(others, metrics, strict=True):
        assert ours.keys() == other.keys()
        for name in ours:
            assert ours[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_gamma_follows_a_schedule(program, batch):
    ramp = {"type": "linear_schedule", "init_value": 0.0, "end_value": 0.4, "transition_steps": 2}

    def after(made, step):
        return made.devices.fetch(made.train_step(made.init(), batch, step)[0]).params

    for step, gamma in ((0, 0.0), (1, 0.2), (2, 0.4), (5, 0.4)):
        found = after(program(ramp), step)
        assert difference(found, after(program(gamma), step)) < 1e-6, step
        assert difference(found, after(program(0.3), step)) > 1e-4, step


def test_moved_weights_never_end_up_in_the_state(program, trained, batch):
    half = {"type": "constant_schedule", "value": 0.5}  # of which the mean of equal numbers is exact
    still = program(0.5, {"optimizer.learning_rate": 0.0, "train.ema": half})
    state = still.init()
    first = still.devices.fetch(state)
    for step in range(3):
        state, metrics = still.train_step(state, batch, step)
    last = still.devices.fetch(state)
    assert last.step == 3
    for ours, start in ((last.params, first.params), (last.ema, first.params)):
        jax.tree.map(np.testing.assert_array_equal, ours, start)
    _, plain = trained(program(None, {"optimizer.learning_rate": 0.0}), 1)
    moved = float(still.devices.fetch(metrics)["objective"])
    assert moved > plain[0]["objective"] + 0.1, "the weights did not move at all"


def test_moving_statistics_come_from_one_pass_a_step(program, batch):
    made = program(0.3, {"model": {"type": "cnn", "channels": [2], "dense": 0, "norm": "batch"}})
    state = made.init()
    for step in range(2):
        state, _ = made.train_step(state, batch, step)
    (counter,) = {int(leaf) for leaf in jax.tree.leaves(made.devices.fetch(state).model_state) if np.ndim(leaf) == 0}
    assert counter == 2  # though each step computed two gradients


def test_scales_stay_whatever_their_axes(plugin_file):
    load_plugin(plugin_file("awp"))
    awp = make("gradient", {"type": "awp", "gamma": 0.5})
    params = {"norm": {"scale": jnp.full((1, 1, 1, 3), 2.0)}, "conv": {"w": jnp.full((1, 1, 2, 3), 2.0)}}

    def gradient(at, perturbations=None):
        return Gradient(jax.tree.map(lambda leaf: 7 * jnp.ones_like(leaf), at), at, None)

    seen = awp(gradient, params).perturbations
    np.testing.assert_array_equal(seen["norm"]["scale"], params["norm"]["scale"])
    kernel = params["conv"]["w"]
    move = float(jnp.linalg.norm(seen["conv"]["w"] - kernel))
    assert move == pytest.approx(0.5 * float(jnp.linalg.norm(kernel)), rel=1e-5)
