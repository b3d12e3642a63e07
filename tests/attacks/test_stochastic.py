"""Stochastic models: gradients are averaged over draws, and every verdict is of a single one."""

from math import erf, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow

N = 10_000  # shares of so many images have a standard error of at most half a point
X, Y = np.full((N, 2, 2, 1), 0.5, np.float32), np.zeros(N, int)
THREAT = {"norm": "linf", "epsilon": 0.1}
KEY = jax.random.key(0)


def attacked(network, config, threat=THREAT, n=N):
    return llrflow.attack(network, X[:n], Y[:n], threat, config, KEY)


def accuracy(network, config):
    return 1 - float(attacked(network, config).success.mean())


def seven_in_ten(images, key):
    """Right in 70 % of its draws, whatever the image."""
    right = jax.random.bernoulli(key, 0.7, (len(images),))
    return jnp.where(right[:, None], jnp.array([4.0, 1.0, 0.0, -1.0]), jnp.array([1.0, 4.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    "config",
    [
        {"type": "noise", "eot": 20},
        {"type": "pgd", "steps": 10, "eot": 20},
        {"type": "pgd", "steps": 3, "restarts": 5, "eot": 20},
        {"type": "multi_targeted", "steps": 3},
        {"type": "apgd_ce", "steps": 10, "eot": 20},
        {"type": "square", "queries": 7},
        {"type": "fab_t", "steps": 3},
    ],
    ids=str,
)
def test_a_classifier_that_no_perturbation_changes_keeps_its_accuracy_in_one_draw(config):
    """An average of draws would make it nearly always right, the worst draw of a search nearly always wrong."""
    assert accuracy(seven_in_ten, config) == pytest.approx(0.7, abs=0.02)


def test_each_stage_of_auto_attack_is_one_draw():
    assert accuracy(seven_in_ten, {"type": "auto_attack", "profile": "rand"}) == pytest.approx(0.7**2, abs=0.02)


def noisy_margin(images, key):
    """z_0 - z_1 is the image's mean times 30, less 14, and standard normal noise."""
    margin = 30.0 * jnp.mean(images, axis=(1, 2, 3)) - 14.0 + jax.random.normal(key, (len(images),))
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)


@pytest.mark.parametrize(
    "config",
    [
        {"type": "pgd", "steps": 20, "eot": 4},
        {"type": "pgd", "steps": 20, "keep": "last", "eot": 4},
        {"type": "apgd_ce", "steps": 20, "eot": 4},
    ],
    ids=str,
)
def test_an_unlucky_draw_ends_no_search(config):
    """Single draws of the clean image are wrong in 16 %, those of the worst, 3 standard deviations lower, in 98 %."""
    worst = 0.5 * (1 + erf((1.0 - 3.0) / sqrt(2)))
    assert worst - 0.01 < accuracy(noisy_margin, config) < worst + 0.06  # a search of few steps visits better places


def test_gradients_of_the_loss_are_averaged_not_logits():
    """Two kinds of draws, z_0 - z_1 = 9 + 3u and -u for pixel u: its mean and the loss both grow with u."""

    def two_kinds(images, key):
        u = images[:, 0, 0, 0]
        margin = jnp.where(jax.random.bernoulli(key, shape=(len(images),)), 9.0 + 3.0 * u, -u)
        return jnp.stack([margin, jnp.zeros_like(margin)], axis=1)

    moved = attacked(two_kinds, {"type": "fgsm", "eot": 8}, n=200).x_adv[:, 0, 0, 0] - 0.5
    assert float(jnp.mean(moved > 0.099)) > 0.97  # not where all draws are of the first kind: 1 in 256


def test_draws_are_counted_and_repeat():
    """The pass that is differentiated is taken for every draw, the others once."""
    for config, queries, gradients in (
        ({"type": "fgsm", "eot": 4}, 4, 4),
        ({"type": "deepfool", "steps": 2, "candidates": 2, "eot": 4}, 2 * 4, 2 * 4),
        ({"type": "fab_t", "steps": 2, "eot": 4}, 2 * (4 + 1), 2 * 4),
        ({"type": "square", "queries": 5, "eot": 4}, 5, 0),
    ):
        once, again = (attacked(noisy_margin, config, n=20) for _ in range(2))
        assert (once.queries == queries).all() and (once.gradients == gradients).all()
        np.testing.assert_array_equal(once.x_adv, again.x_adv)
        np.testing.assert_array_equal(once.success, again.success)
