"""What one training step does to parameters, their average, and BatchNorm's moving statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llrflow
from llrflow.program.step import network_of

SGD = {"type": "sgd", "learning_rate": 0.1}
RESNET = {"type": "resnet", "widths": [4], "norm": "batch"}
PLAIN = {"perturbations": None, "terms": None}
PGD = {"maximize": {"type": "cross_entropy"}, "steps": 3}
KL = {"perturbations": {"pgd": PGD}, "terms": {"kl": {"type": "kl_divergence", "at": "pgd"}}}
ADVERSARIAL = {"loss": {"type": "cross_entropy", "at": "pgd"}, "perturbations": {"pgd": PGD}}


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def difference(a, b):
    return jax.tree.map(lambda x, y: x - y, a, b)


@pytest.fixture
def program(load, tiny):
    """program(changes, objective) -> a compiled program; an objective replaces the tiny spec's."""

    def make(changes, objective=None):
        if objective is None:
            return llrflow.compile(load(changes))
        return llrflow.compile(llrflow.load_spec({**tiny(), "objective": objective}, changes))

    return make


def test_the_moving_average_of_the_parameters(program, train):
    states, _ = train(program({"train.ema": 0.75}), 4)
    average = states[0].params
    for step, state in enumerate(states[1:]):
        decay = min(0.75, (1 + step) / (10 + step))  # which nothing of the initial parameters survives
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(e, a, rtol=1e-5, atol=1e-7), average, state.ema)
    assert norm(difference(states[-1].ema, states[-1].params)) > 1e-3


def test_clipping_bounds_the_update(program, train):
    free, metrics = train(program({"optimizer": SGD}), 2)
    clipped, _ = train(program({"optimizer": {**SGD, "clip_norm": 0.01}}), 2)
    length = norm(difference(free[1].params, free[0].params))
    assert length == pytest.approx(0.1 * metrics[0]["gradient_norm"], rel=1e-4) and length > 0.01
    assert norm(difference(clipped[1].params, clipped[0].params)) == pytest.approx(0.1 * 0.01, rel=1e-3)
    loose, _ = train(program({"optimizer": {**SGD, "clip_norm": 1e6}}), 1)
    jax.tree.map(np.testing.assert_array_equal, loose[1].params, free[1].params)


def test_one_step_of_plain_training_is_the_gradient_of_the_mean_loss(program, train, batch_of):
    plain = program({"optimizer": SGD}, {})
    states, metrics = train(plain, 1)
    network, batch = network_of(plain.spec.model, 10), batch_of(plain, 0)

    def loss(params):
        logits = network.apply(params, {}, None, batch.images / jnp.float32(255), True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    gradient = jax.grad(loss)(states[0].params)
    by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, states[0].params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[1].params, by_hand)
    assert metrics[0]["loss"] == pytest.approx(float(loss(states[0].params)), rel=1e-5)


def apply_by_haiku(program, state):
    """apply(images) -> (logits, moving statistics after the pass) with batch statistics, by Haiku alone."""
    network = network_of(program.spec.model, 10)

    def apply(images):
        return network.apply(state.params, state.model_state, None, images, True)

    return lambda images: jax.tree.map(lambda a: a[0], jax.vmap(apply, axis_name="devices")(images[None]))


def assert_statistics(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("policy", [{}, {"search": "moving"}, {"terms": "moving"}, {"update": "clean"}], ids=str)
def test_moving_statistics_come_once_a_step_from_the_clean_pass(program, train, batch_of, policy):
    llr = program({"model": RESNET, "train.batch_norm": policy, "optimizer": SGD})
    states, _ = train(llr, 2)
    for step in (0, 1):
        images = batch_of(llr, step).images / np.float32(255)
        assert_statistics(states[step + 1].model_state, apply_by_haiku(llr, states[step])(images)[1])
    (counter,) = {int(leaf) for leaf in jax.tree.leaves(states[2].model_state) if np.ndim(leaf) == 0}
    assert counter == 2  # Haiku counts the updates of each statistic


def test_a_search_leaves_the_moving_statistics_alone(program, train):
    after = []
    for size in (0.01, 0.1):  # a number that one program takes as its input, so that equal means equal bit for bit
        step = {"type": "steepest", "size": size}
        changes = {"model": RESNET, "optimizer": SGD, "objective.perturbations.llr.step": step}
        states, metrics = train(program(changes), 1)
        after.append((states[1].model_state, metrics[0]["gamma"]))
    jax.tree.map(np.testing.assert_array_equal, after[0][0], after[1][0])
    assert after[0][1] != after[1][1]


def test_adversarial_training_updates_the_statistics_from_the_perturbed_pass(program, train, batch_of):
    step = {"type": "sign", "size": 0.1}
    fgsm = {"maximize": {"type": "cross_entropy"}, "steps": 1, "start": {"type": "zero"}, "step": step}
    adversarial = program({"model": RESNET, "optimizer": SGD}, {**ADVERSARIAL, "perturbations": {"pgd": fgsm}})
    states, metrics = train(adversarial, 1)
    apply, batch = apply_by_haiku(adversarial, states[0]), batch_of(adversarial, 0)
    images = batch.images / jnp.float32(255)

    def loss(images):
        return optax.softmax_cross_entropy_with_integer_labels(apply(images)[0], batch.labels).sum()

    perturbed = jnp.clip(images + 0.1 * jnp.sign(jax.grad(loss)(images)), 0, 1)
    assert_statistics(states[1].model_state, apply(perturbed)[1])
    assert metrics[0]["loss"] == pytest.approx(float(loss(perturbed)) / 64, rel=1e-4)
    assert loss(perturbed) > loss(images)
    (counter,) = {int(leaf) for leaf in jax.tree.leaves(states[1].model_state) if np.ndim(leaf) == 0}
    assert counter == 1


@pytest.mark.parametrize(
    ("objective", "policy"),
    [
        ({}, {"update": "perturbed"}),
        (ADVERSARIAL, {"update": "clean"}),
        (KL, {"terms": "moving", "update": "perturbed"}),
        (KL, {"terms": "clean", "update": "perturbed"}),
    ],
    ids=["perturbed without such a pass", "clean without such a pass", "moving ones only", "the clean batch's only"],
)
def test_a_policy_that_never_updates_the_statistics_is_refused(program, objective, policy):
    with pytest.raises(llrflow.SpecError, match=r"train\.batch_norm"):
        program({"model": RESNET, "train.batch_norm": policy}, objective)
