"""Projected gradient descent and its targeted form: as strong as foolbox's, the best over targets, no step too many."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow

KEYS = jax.random.split(jax.random.key(8), 3)
HIDDEN, OUT = 0.7 * jax.random.normal(KEYS[0], (36, 24)), jax.random.normal(KEYS[1], (24, 6))
X = jax.random.uniform(KEYS[2], (64, 6, 6, 1))
THREATS = [{"norm": "linf", "epsilon": 0.02}, {"norm": "l2", "epsilon": 0.08}]
WITH_THREATS = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat["norm"])


def logits(images):
    return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ HIDDEN) @ OUT


Y = jnp.argmax(logits(X), axis=-1)


def attacked(threat, config, **options):
    return llrflow.attack(logits, X, Y, threat, config, jax.random.key(0), **options)


@WITH_THREATS
def test_as_strong_as_foolbox(threat):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat["norm"]](steps=20)
        model = foolbox.JAXModel(jax.jit(logits), bounds=(0, 1))
        theirs = int(attack(model, X, Y, epsilons=threat["epsilon"])[2].sum())
    for maximize in ("cross_entropy", "margin"):
        ours = attacked(threat, {"type": "pgd", "steps": 20, "maximize": maximize})
        assert 10 < theirs < 60 and int(ours.success.sum()) >= theirs - 1


@WITH_THREATS
def test_multi_targeted_finds_what_one_target_does_and_more(threat):
    one, all_ = (attacked(threat, {"type": "multi_targeted", "steps": 10, "targets": t}) for t in (1, "all"))
    assert bool(jnp.all(all_.success >= one.success)) and int(all_.success.sum()) > 10
    wrong = ~np.asarray(all_.success)
    assert (all_.gradients[wrong] == 5 * 10).all()  # every target, with all its steps
    assert (all_.gradients[~wrong] < 5 * 10).any()
    pgd = attacked(threat, {"type": "pgd", "steps": 10})
    assert int(all_.success.sum()) >= int(pgd.success.sum())


def test_random_targets_differ_between_restarts():
    config = {"type": "multi_targeted", "steps": 10, "targets": "random"}
    once, often = (attacked(THREATS[0], {**config, "restarts": count}) for count in (1, 8))
    assert int(often.success.sum()) > int(once.success.sum())


@pytest.mark.parametrize("config", ["pgd", "multi_targeted"])
def test_a_small_batch_gives_the_same(config):
    whole, parts = (attacked(THREATS[0], {"type": config, "steps": 6}, batch_size=size) for size in (None, 7))
    np.testing.assert_array_equal(whole.success, parts.success)
    np.testing.assert_allclose(whole.x_adv, parts.x_adv, atol=1e-5)
    np.testing.assert_array_equal(whole.gradients, parts.gradients)


def test_another_call_compiles_nothing():
    config = {"type": "pgd", "steps": 3, "step": {"type": "steepest", "size": 0.01}}
    attacked(THREATS[0], config)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        import logging

        patch.setattr(logging.Logger, "warning", lambda self, message, *rest: compiled.append(message))
        attacked({**THREATS[0], "epsilon": 0.03}, {**config, "step": {"type": "steepest", "size": 0.02}})
    assert not [m for m in compiled if "_fn" in str(m)]


def test_one_function_takes_images_of_several_shapes_and_labels_of_several_types():
    def mean(images):
        level = jnp.mean(images, axis=(1, 2, 3))
        return jnp.stack([level - 0.5, 0.5 - level], axis=-1)

    for shape, dtype in (((4, 6, 6, 1), np.int32), ((4, 5, 7, 3), np.int32), ((4, 6, 6, 1), np.uint8)):
        x, y = np.full(shape, 0.51, np.float32), np.zeros(4, dtype)
        result = llrflow.attack(mean, x, y, THREATS[0], {"type": "pgd", "steps": 3}, jax.random.key(0))
        assert result.x_adv.shape == shape and result.success.all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "multi_targeted", "targets": 0}, "targets = 0.*write `all`, `random`"),
        ({"type": "multi_targeted", "maximize": "kl_divergence"}, "takes no target"),
        ({"type": "multi_targeted", "maximize": {"type": "margin", "target": 1}}, "is set by this attack"),
        ({"type": "pgd", "drops": [1.5]}, "drops"),
        ({"type": "transfer"}, "pass `surrogate`"),
        ({"type": "transfer", "attack": "deepfool"}, "does not transfer"),
    ],
)
def test_wrong_settings_are_refused(config, message):
    with pytest.raises(llrflow.SpecError, match=message):
        attacked(THREATS[0], config)


def test_transfer_is_judged_on_the_attacked_model():
    other = lambda images: jnp.tanh((images.reshape(len(images), -1) - 0.5) @ (HIDDEN + 0.3)) @ OUT  # noqa: E731
    config = {"type": "transfer", "attack": {"type": "pgd", "steps": 10}}
    result = attacked(THREATS[0], config, surrogate=other)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits(result.x_adv), axis=-1) != Y)
    itself = attacked(THREATS[0], config, surrogate=logits)
    assert 0 < int(result.success.sum()) < int(itself.success.sum())


@pytest.mark.parametrize(("norm", "decay"), [("linf", 1.0), ("l2", 0.5)])
def test_a_momentum_step_makes_the_mi_fgsm_of_dong_et_al(norm, decay, trained_like):
    """Algorithm 1: g' = mu g + grad J / ||grad J||_1, x' = x + epsilon / T sign(g'); of l2 g' / ||g'||_2 (eq. 7)."""
    logits, x, y = trained_like
    x, epsilon, steps = jnp.clip(x, 0.2, 0.8), 0.1, 5  # the box does not bind
    config = {"type": "pgd", "maximize": "cross_entropy", "start": "zero", "steps": steps, "reach": 1.0, "keep": "last",
              "step": {"type": "momentum", "decay": decay}}  # fmt: skip
    result = llrflow.attack(logits, x, y, {"norm": norm, "epsilon": epsilon}, config, jax.random.key(0))
    loss = lambda images: -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits(images)), y[:, None], 1))  # noqa: E731
    delta, g = np.zeros_like(x), 0.0
    for _ in range(steps):
        gradient = np.asarray(jax.grad(loss)(x + delta))
        g = decay * g + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        step = np.sign(g) if norm == "linf" else g / np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True))
        delta = delta + epsilon / steps * step
    np.testing.assert_allclose(result.x_adv, x + delta, atol=1e-5)
