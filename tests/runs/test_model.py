"""A run's model in Python: what it answers, and what a notebook shows."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.data.resident import load_split


@pytest.fixture(scope="module")
def subject(finished, load):
    """(model, images [24,H,W,C], labels [24])."""
    split = load_split(load().data, "test")
    return llrflow.load_model(finished), jnp.asarray(split.images[:24] / np.float32(255)), split.labels[:24]


def test_predictions_are_those_of_the_logits(subject):
    model, x, _ = subject
    logits = np.asarray(model.logits(x), np.float64)
    np.testing.assert_array_equal(model.predict(x), logits.argmax(-1))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(x), softmax, rtol=1e-5)


def test_an_attack_is_llrflow_attack_within_the_threat_of_the_spec(subject):
    model, x, y = subject
    config = {"type": "pgd", "steps": 3}
    ours = model.attack(x, y, config, seed=5)
    given = llrflow.attack(model.logits, x, y, {"norm": "linf", "epsilon": 0.15}, config, jax.random.key(5))
    np.testing.assert_array_equal(ours.x_adv, given.x_adv)
    assert not np.array_equal(ours.x_adv, model.attack(x, y, config, seed=6).x_adv)
    smaller = model.attack(x, y, config, threat={"norm": "linf", "epsilon": 0.01})
    assert float(smaller.distance.max()) <= 0.0101
    transfer = {"type": "transfer", "run": "elsewhere", "attack": config}
    np.testing.assert_array_equal(model.attack(x, y, transfer, surrogate=model).x_adv.shape, x.shape)


def test_linearity_is_that_of_the_term_and_its_search_finds_more_than_noise(subject):
    model, x, y = subject
    delta = 0.1 * jax.random.uniform(jax.random.key(0), x.shape, minval=-1)
    line = model.linearity(x, y, delta)
    term = llrflow.make("term", "local_linearity")
    np.testing.assert_allclose(line.gamma, term(llrflow.Probe(model.logits, x, y), delta), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(line.gamma, np.abs(line.change - line.slope), atol=1e-6)
    np.testing.assert_array_equal(line.delta, delta)
    searched = model.linearity(x, y, steps=10)
    assert float(jnp.abs(searched.delta).max()) <= 0.15 * 1.0001
    noise = model.linearity(x, y, model.attack(x, y, "noise").x_adv - x)
    assert np.mean(searched.gamma >= noise.gamma) > 0.9 and searched.gamma.mean() > 2 * noise.gamma.mean()


def test_a_notebook_shows_text(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "<script>alert(1)<")
    model = llrflow.load_model(folder)
    shown = model._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;alert(1)&lt;" in shown and "1,210 (raw)" in shown
    assert "classes 10, threat linf 0.15, step 12" in repr(model)


def test_parameters_that_are_not_there(finished):
    with pytest.raises(llrflow.SpecError, match="has no moving average of its parameters; ask for `raw`"):
        llrflow.load_model(finished, parameters="ema")


@pytest.mark.parametrize(
    ("shape", "fix"),
    [
        ((2, 1, 8, 8), r"put the channels last: x\.transpose\(0, 2, 3, 1\)"),
        ((8, 8, 1), r"give it a batch axis: x\[None\]"),
        ((2, 9, 8, 1), r"pass images \[B,8,8,1\]"),
        ((2, 64), r"pass images \[B,8,8,1\]"),
    ],
)
def test_images_of_another_shape_are_one_line(subject, shape, fix):
    model, _, _ = subject
    x, y = jnp.zeros(shape), jnp.zeros(2, int)
    says = rf"images: are \[{', '.join(map(str, shape))}\], and tiny takes \[B,8,8,1\]; {fix}(\n|$)"
    threat, key = {"norm": "linf", "epsilon": 0.1}, jax.random.key(0)
    asked = [lambda: model.logits(x), lambda: model.predict(x), lambda: jax.jit(model.logits)(x)]
    asked += [lambda: model.attack(x, y), lambda: model.linearity(x, y)]
    if len(shape) == 4:
        asked.append(lambda: llrflow.attack(model.logits, x, y, threat, "pgd", key))
    for ask in asked:
        with pytest.raises(llrflow.SpecError, match=says):
            ask()
    if len(shape) == 4:  # a function of somebody else's tells of its images in words of its own
        with pytest.raises(
            llrflow.SpecError, match=r"^logits_fn: fails on images \[2, .*\]: .*; pass images as it takes"
        ):
            llrflow.attack(lambda x: x.reshape(-1, 64) @ jnp.ones((63, 10)), x, y, threat, "pgd", key)
