"""Soft labels: every term of one-hot labels is that of their classes, and of others what is written on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.components.plugins import load_plugin
from llrflow.components.registry import entries, make
from llrflow.method.labels import at_label, cross_entropy, largest_other, likeliest
from llrflow.method.probe import Probe
from llrflow.method.term import ask
from llrflow.method.terms.classification import dlr, margin
from llrflow.method.threat import Threat

PLUGINS = ("elle", "grad_align", "mart", "confidence")
LOGITS = np.random.default_rng(0).normal(scale=2, size=(40, 5)).astype(np.float32)
FIRST, SECOND = np.random.default_rng(1).integers(0, 5, (2, 40))
SHARE = np.random.default_rng(2).uniform(0, 1, (40, 1)).astype(np.float32)
SOFT = SHARE * np.eye(5, dtype=np.float32)[FIRST] + (1 - SHARE) * np.eye(5, dtype=np.float32)[SECOND]


@pytest.fixture(autouse=True, scope="module")
def plugins(repository):
    for name in PLUGINS:
        load_plugin(str(repository / "plugins" / name / f"{name}.py"))


def term_names():
    own = [name for name, entry in entries("term").items() if entry.origin == "llrflow"]
    return [*own, "elle", "grad_align", "boosted_cross_entropy", "weighted_kl", "confidence"]


def values(reference, config):
    """(params, labels) -> a term's values [B] at the reference's perturbation."""
    keys = jax.random.split(jax.random.key(3), len(reference.x))

    def found(params, y):
        probe = Probe(lambda images: reference.apply(params, images), reference.x, y, keys, Threat(epsilon=0.1))
        return ask(make("term", config), probe, reference.delta).value

    return found


@pytest.mark.parametrize("name", term_names())
def test_a_one_hot_label_gives_the_value_and_gradient_of_its_class(name, reference):
    found = values(reference, {"type": name})

    def total(params, y):
        value = found(params, y)
        return jnp.sum(value**2), value

    @jax.jit
    def both(params):
        hot = jax.nn.one_hot(reference.y, 5)
        return [jax.grad(total, has_aux=True)(params, y) for y in (hot, reference.y)]

    soft, hard = map(jax.tree.leaves, both(reference.params))
    for ours, theirs in zip(soft, hard, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=5e-6 * float(jnp.max(jnp.abs(theirs))) + 1e-7)
    assert np.any(hard[-1])


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
def test_a_loss_of_two_classes_in_shares_is_the_sum_of_its_parts(loss):
    first, second = (np.asarray(loss(jnp.asarray(LOGITS), jnp.asarray(k))) for k in (FIRST, SECOND))
    found = loss(jnp.asarray(LOGITS), jnp.asarray(SOFT))
    np.testing.assert_allclose(found, SHARE[:, 0] * first + (1 - SHARE[:, 0]) * second, rtol=1e-4, atol=1e-5)


def test_label_smoothing_of_soft_labels():
    images = jnp.asarray(LOGITS)[:, None, None, :]
    probe = Probe(lambda images: images[:, 0, 0, :], images, jnp.asarray(SOFT))
    log_p = np.float64(LOGITS) - np.log(np.exp(np.float64(LOGITS)).sum(axis=1, keepdims=True))
    found = make("term", {"type": "cross_entropy", "label_smoothing": 0.2})(probe, None)
    np.testing.assert_allclose(found, -((0.8 * SOFT + 0.2 / 5) * log_p).sum(axis=1), rtol=1e-4)


def test_the_linearity_error_is_that_of_the_soft_loss(reference):
    """Not the expectation of errors: the loss itself is the one of soft labels."""
    soft = jnp.asarray(SOFT[: len(reference.x)])

    @jax.jit
    def by_hand(x, delta):
        def loss(images):
            return -jnp.sum(soft * jax.nn.log_softmax(reference.apply(reference.params, images)), axis=-1)

        gradient = jax.grad(lambda images: jnp.sum(loss(images)))(x)
        return loss(x), loss(x + delta), gradient, jnp.sum(delta * gradient, axis=(1, 2, 3))

    clean, moved, gradient, slope = by_hand(reference.x, reference.delta)
    for name, expected in {
        "cross_entropy": moved,
        "local_linearity": np.abs(moved - clean - slope),
        "gradient_inner_product": np.abs(slope),
    }.items():
        found = jax.jit(values(reference, {"type": name}))(reference.params, soft)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    norms = Probe(lambda images: reference.apply(reference.params, images), reference.x, soft).input_gradient()
    np.testing.assert_allclose(norms, gradient, rtol=1e-4, atol=1e-6)


def test_the_largest_other_value_of_every_class():
    tied = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
    for table in (LOGITS, tied):
        others = [[max(np.delete(row, k)) for k in range(len(row))] for row in table]
        np.testing.assert_array_equal(largest_other(jnp.asarray(table)), others)


def test_a_class_without_probability_adds_nothing_to_value_or_gradient():
    table, labels = jnp.array([[1.0, -jnp.inf, 4.0]]), jnp.array([[0.25, 0.0, 0.75]])
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(at_label(v, labels)))(table)
    assert value == 3.25
    np.testing.assert_array_equal(gradient, labels)
    assert cross_entropy(table, labels) == pytest.approx(0.75 * 0.0486 + 0.25 * 3.0486, rel=1e-3)


def test_the_class_of_a_mixed_label_is_its_likeliest():
    np.testing.assert_array_equal(likeliest(jnp.asarray(SOFT)), np.where(SHARE[:, 0] > 0.5, FIRST, SECOND))
    np.testing.assert_array_equal(likeliest(jnp.asarray(FIRST)), FIRST)
