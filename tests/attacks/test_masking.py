"""Signs of gradient masking: seen on models that mask, not on an honest one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.attacks.masking import EXCESS, find_flags
from llrflow.attacks.network import Network, one_device
from llrflow.attacks.trial_attacks import Subject
from llrflow.method.threat import Threat

N, D, K = 48, 16, 4


@functools.cache
def honest():
    """A small two-layer network on blobs: [N,4,4,1] images with its own labels, and its logits."""
    keys = jax.random.split(jax.random.key(3), 3)
    hidden, out = 0.8 * jax.random.normal(keys[0], (D, 32)), jax.random.normal(keys[1], (32, K))

    def logits(x):
        return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ hidden) @ out

    x = np.asarray(jax.random.uniform(keys[2], (N, 4, 4, 1), minval=0.05, maxval=0.95))
    return logits, x, np.asarray(jnp.argmax(logits(x), axis=-1), np.int32)


def flags_of(network, stochastic=False, of=None):
    x, y = of or honest()[1:]
    predict = (lambda _, x, keys: network(x, keys)) if stochastic else (lambda _, x: network(x))
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    threat = Threat(norm="linf", epsilon=0.03)
    subject = Subject(Network(predict, stochastic), one_device(), (), threat, x, y, key, K, N, np.arange(N))
    return {flag.name: flag for flag in find_flags(subject)}


def fired(flags):
    return {name for name, flag in flags.items() if flag.fired}


def test_an_honest_model_raises_none():
    flags = flags_of(honest()[0])
    assert fired(flags) == set()
    assert len(flags) == 10 and all(flag.meaning and flag.measured for flag in flags.values())
    assert all(np.isfinite(list(flag.measured.values())).all() for flag in flags.values())


def test_quantised_inputs():
    logits = honest()[0]
    found = fired(flags_of(lambda x: logits(jnp.round(8 * x) / 8)))
    assert {
        "gradients_vanish",
        "loss_flat",
        "gradient_wrong",
        "survives_huge_epsilon",
        "survives_unbounded_steps",
    } <= found
    assert "black_box_wins" in found


def test_logits_of_a_huge_scale():
    logits = honest()[0]
    assert {"gradients_vanish"} <= fired(flags_of(lambda x: 1e5 * logits(x)))


@pytest.mark.parametrize("scale", [1, 10, 100])
def test_confidence_is_not_taken_for_a_large_gamma(scale):
    """The linearity error of confident networks is the whole change of the loss: the gradient promises too little."""
    logits = honest()[0]
    flag = flags_of(lambda x: scale * logits(x))["gamma_large"]
    assert not flag.fired and max(flag.measured.values()) < 0.1 * EXCESS


@pytest.mark.parametrize(("height", "frequency"), [(10, 600), (1, 5000)])
def test_a_ripple_on_the_logits(height, frequency):
    logits = honest()[0]
    flag = flags_of(lambda x: logits(x) + height * jnp.sin(frequency * x[:, 0, :, 0]))["gamma_large"]
    assert flag.fired and min(flag.measured.values()) > 3 * EXCESS


def test_a_noise_layer():
    logits = honest()[0]

    def noisy(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys)
        return logits(x + 0.05 * noise)

    flags = flags_of(noisy, stochastic=True)
    assert "stochastic" in fired(flags) and "eot" in flags["stochastic"].meaning


def test_one_step_stronger_than_many():
    """A loss with a small bump on the way to the edge of the ball, where alone the model errs: ascent stops there."""
    epsilon = 0.03

    def trapped(images):
        along = (jnp.mean(images, axis=(1, 2, 3)) / epsilon + 2) % 4 - 2  # 0 at every image of the batch
        bump, peak = (jnp.exp(-(((along - at) / 0.15) ** 2)) for at in (0.25, 1.0))
        return 5 * jnp.stack([jnp.zeros_like(along), 0.5 * bump + 3 * peak - 1], axis=-1)

    x = np.asarray(jax.random.uniform(jax.random.key(1), (N, 4, 4, 1), minval=0.3, maxval=0.7))
    x = x - x.mean(axis=(1, 2, 3), keepdims=True) + 0.48  # 16 epsilons: a whole number of periods
    flags = flags_of(trapped, of=(x, np.zeros(N, np.int32)))
    assert flags["fgsm_beats_pgd"].fired and flags["fgsm_beats_pgd"].measured["accuracy under FGSM"] < 0.1


def along_one_pixel(gap, epsilon=0.03):
    """Flags of two logits (0, gap(u)) on images labelled 0, u the change of their first pixel in epsilons."""

    def logits(images):
        z = gap((images[:, 0, 0, 0] - 0.5) / epsilon)
        return jnp.stack([jnp.zeros_like(z), z], axis=-1)

    x = np.array(honest()[1])
    x[:, 0, 0, 0] = 0.5
    return flags_of(logits, of=(x, np.zeros(N, np.int32)))


def test_a_loss_with_several_basins():
    """Errors lie beyond u = 0.6 + 1 / 3, and a fifth of all starts beyond 0.6, where ascent begins to lead there."""
    flags = along_one_pixel(lambda u: jnp.maximum(3 * (u - 0.6), 0.1 * (0.6 - u)) - 1)
    once, often = flags["restarts_gain"].measured.values()
    assert flags["restarts_gain"].fired and once > 0.6 and often < 0.5
    # One basin with errors at the same place: the first start finds what all find.
    assert not along_one_pixel(lambda u: jnp.minimum(3 * (u - 0.6), 0.1 * (u - 0.6)) - 0.02)["restarts_gain"].fired


def test_a_loss_that_flattens_inside_the_ball():
    for k, expected in ((10, {"gamma_large"}), (1, set())):

        def loss(u, k=k):  # of label 0
            return jax.nn.softplus(1.5 * jnp.tanh(k * u) - 2 + 0.3 * u)

        flags = along_one_pixel(lambda u, k=k: 1.5 * jnp.tanh(k * u) - 2 + 0.3 * u)
        assert fired(flags) == expected
        change = loss(1.0) - loss(0.0)  # ascent ends at the edge of the ball
        (measured,) = flags["gamma_large"].measured.values()
        np.testing.assert_allclose(measured, max(jax.grad(loss)(0.0) - change, 0) / change, rtol=1e-3)
