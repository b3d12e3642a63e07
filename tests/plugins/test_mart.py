"""MART's boosted cross-entropy and weighted KL against their formulas in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from llrflow.method.probe import Probe

LABELS = np.array([0, 1, 2, 3, 3, 0])
CLEAN = np.random.default_rng(0).normal(0, 2, (6, 4))
PERTURBED = np.random.default_rng(1).normal(0, 2, (6, 4))
CLEAN[0], PERTURBED[0] = (30, 0, -5, 2), (25, 1, 0, 0)  # certain and right
CLEAN[1], PERTURBED[1] = (40, -40, 0, 1), (40, -40, 0, 1)  # certain and wrong: one probability underflows


@pytest.fixture
def probe():
    """Images whose pixels are logits: the network is the identity, delta leads from CLEAN to PERTURBED."""
    x = jnp.asarray(CLEAN[:, None, None, :], jnp.float32)
    return Probe(lambda images: images[:, 0, 0, :], x, jnp.asarray(LABELS))


DELTA = jnp.asarray((PERTURBED - CLEAN)[:, None, None, :], jnp.float32)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


ROWS = np.arange(6)


def test_boosted_cross_entropy(load_term, probe):
    q = softmax(PERTURBED)
    wrong = np.where(np.eye(4, dtype=bool)[LABELS], -1, q).max(axis=1)
    expected = -np.log(q[ROWS, LABELS]) - np.log(1.0001 - wrong + 1e-12)
    np.testing.assert_allclose(load_term("mart", "boosted_cross_entropy")(probe, DELTA), expected, rtol=1e-3)
    assert expected[1] > 80 and expected[0] < 1e-3


def test_weighted_kl(load_term, probe):
    p, q = softmax(CLEAN), softmax(PERTURBED)
    kl = np.sum(p * (np.log(p + 1e-12) - np.log(q + 1e-12)), axis=1)
    expected = kl * (1.0000001 - p[ROWS, LABELS])
    found = np.asarray(load_term("mart", "weighted_kl")(probe, DELTA))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.all(expected[2:] > 0.01)
    # Above any loss of weight: the plain divergence is larger wherever the network is right.
    assert np.all(found[2:] < kl[2:])


def test_weighted_kl_needs_a_perturbation(load, plugin_file):
    import llrflow

    changes = {"plugins": [plugin_file("mart")], "objective.terms.extra": {"type": "weighted_kl"}}
    with pytest.raises(llrflow.SpecError, match=r"objective\.terms\.extra \(weighted_kl\) is evaluated at a perturb"):
        load(changes)


def test_a_perturbation_of_zero_has_no_divergence(load_term, probe):
    np.testing.assert_allclose(load_term("mart", "weighted_kl")(probe, jnp.zeros_like(DELTA)), 0.0, atol=1e-7)
