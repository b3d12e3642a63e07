"""Mixing inside a training step: the partners, whatever the devices and parts of a batch, and what is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tree_difference import relative

import llrflow
from llrflow.data.augment import augment
from llrflow.data.mix import mix
from llrflow.method.keys import example_keys, purpose_key

CHANGES = {
    "model": {"type": "mlp", "widths": [64]},
    "objective.terms": None,
    "objective.perturbations": None,
    "data.augment": {"crop": {"type": "pad_crop", "pad": 1}},
    "data.mix": {"m": {"type": "mixup", "p": 0.5}, "c": {"type": "cutmix", "p": 0.3}},
    "optimizer": {"type": "adam", "learning_rate": 0.01},
    "train.steps": 60,
}


@pytest.fixture(scope="module")
def whole(load, train):
    """(program, states, metrics) of 60 steps on one device."""
    program = llrflow.compile(load(CHANGES))
    return program, *train(program, 60)


@pytest.mark.parametrize("changes", [{"devices.count": 2, "train.accumulate": 2}, {"devices.count": 4}], ids=str)
def test_partners_do_not_depend_on_devices_or_parts(changes, load, train, whole):
    _, states, metrics = whole
    others, made = train(llrflow.compile(load({**CHANGES, **changes})), 4)
    assert relative(others[-1].params, states[4].params) < 1e-5
    for ours, other in zip(metrics, made, strict=False):
        for name in ours:
            np.testing.assert_allclose(other[name], ours[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_a_step_mixes_each_augmented_example_with_the_one_before_it(batch_of, whole):
    program, states, metrics = whole
    batch, data = batch_of(program, 0), program.spec.data
    before = np.roll(np.arange(64), 1)

    def keys(purpose):
        return example_keys(jax.random.fold_in(purpose_key(0, purpose), 0), batch.ids)

    @jax.jit
    def made():
        x = augment(jnp.float32(batch.images) / 255, keys("augment"), data.augment)
        images, labels = mix(x, batch.labels, x[before], batch.labels[before], keys("mix"), data.mix, 10)
        return labels, jax.nn.log_softmax(program.logits_fn(states[0].params, states[0].model_state)(images))

    labels, log_p = map(np.asarray, made())
    assert metrics[0]["loss"] == pytest.approx(-np.mean(np.sum(labels * log_p, axis=1)), rel=1e-5)
    assert metrics[0]["accuracy"] == pytest.approx(labels[np.arange(64), log_p.argmax(axis=1)].mean(), abs=1e-6)


def test_the_loss_of_mixed_examples_falls(whole):
    losses = [float(made["loss"]) for made in whole[2]]
    assert np.mean(losses[-5:]) < 0.6 * losses[0], losses


def test_numbers_of_mixing_are_compiled_in(load):
    def compiled(alpha):
        return llrflow.compile(load({"data.mix": {"m": {"type": "mixup", "alpha": alpha}}}))._compiled

    assert compiled(0.4) is compiled(0.4) and compiled(0.4) is not compiled(1.0)


def test_soft_labels_go_through_searches_and_gradients(load, train):
    changes = {
        "objective.perturbations.p": {"maximize": "kl_divergence", "steps": 1, "restarts": 2, "keep": "best"},
        "objective.terms": {"kl": {"type": "kl_divergence", "at": "p"}, "bend": "curvature"},
        "objective.loss": {"type": "margin", "at": "p"},
    }
    kept = {name: value for name, value in CHANGES.items() if not name.startswith("objective")}
    program = llrflow.compile(load({**kept, **changes}))
    assert program.spec.objective.entries().keys() == {"loss", "gamma", "slope", "kl", "bend"}
    _, metrics = train(program, 2)
    assert all(np.isfinite(value) for made in metrics for value in made.values())
    assert min(metrics[0][name] for name in ("gamma", "slope", "kl", "bend")) > 0
