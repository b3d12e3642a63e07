"""The training step's keys, and which pass may touch the moving statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llrflow.components.registry import make
from llrflow.method.objective import Objective
from llrflow.method.threat import Threat
from llrflow.models.network import AXIS
from llrflow.program.state import Batch
from llrflow.program.step import Pieces, Statistics, example_keys, initialise, network_of, purpose_key, train_step

LLR = {
    "perturbations": {"llr": {"maximize": "local_linearity", "steps": 1}},
    "terms": {"gamma": {"type": "local_linearity", "at": "llr"}},
}
SEARCH_ONLY = {"perturbations": LLR["perturbations"]}


def test_an_example_has_the_same_key_wherever_it_stands():
    key = purpose_key(jnp.uint32(3), "augment")
    data = jax.random.key_data(example_keys(key, jnp.array([7, 2, 9])))
    moved = jax.random.key_data(example_keys(key, jnp.array([9, 7])))
    np.testing.assert_array_equal(moved, data[jnp.array([2, 0])])
    assert len({row.tobytes() for row in np.asarray(data)}) == 3


def test_purposes_and_seeds_have_keys_of_their_own():
    keys = {
        jax.random.key_data(purpose_key(jnp.uint32(s), p)).tobytes() for s in (0, 1) for p in ("augment", "terms", "a")
    }
    assert len(keys) == 6


def step_of(objective, statistics):
    """(moving statistics before, after, batch statistics of a clean pass) of one training step of a BatchNorm net."""
    network = network_of(make("model", {"type": "cnn", "channels": [2], "dense": 0, "norm": "batch"}), 3)
    pieces = Pieces(
        network,
        3,
        Objective.model_validate(objective),
        Threat(epsilon=0.2),
        optax.sgd(0.0),
        None,
        {},
        statistics,
        1,  # part of each batch
        "unroll",
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 4, 4, 1), np.uint8)
    batch = Batch(images, np.arange(8, dtype=np.int32)[None] % 3, np.arange(8, dtype=np.int32)[None])

    def one(batch):
        before = initialise(pieces, (4, 4, 1), jnp.uint32(0))
        after, metrics = train_step(pieces, before, batch, jnp.uint32(0))
        clean = network.apply(before.params, before.model_state, None, batch.images / 255.0, True)[1]
        return before.model_state, after.model_state, clean, metrics

    return jax.jit(jax.vmap(one, axis_name=AXIS))(batch)


def equal(a, b):
    return all(np.allclose(x, y, atol=1e-6) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("search", ["batch", "moving"])
@pytest.mark.parametrize("objective", [SEARCH_ONLY, LLR], ids=["search only", "llr"])
def test_published_fault_search_updates_moving_statistics(search, objective):
    """However a search and the perturbed pass run, the moving statistics see the clean batch once."""
    before, after, clean, metrics = step_of(objective, Statistics("batch", search, "auto"))
    assert equal(after, clean) and not equal(after, before)
    assert all(np.all(np.isfinite(metric)) for metric in metrics.values())


def test_the_perturbed_pass_updates_them_on_request():
    before, after, clean, _ = step_of(LLR, Statistics("batch", "moving", "perturbed"))
    assert not equal(after, clean) and not equal(after, before)


def test_adversarial_training_without_a_clean_pass_still_updates_them():
    objective = {"loss": {"type": "cross_entropy", "at": "p"}, "perturbations": {"p": {"steps": 1}}}
    before, after, _, _ = step_of(objective, Statistics("batch", "moving", "auto"))
    assert not equal(after, before)


@pytest.mark.parametrize("search", ["batch", "moving"])
def test_what_a_search_asks_of_the_clean_images_does_not_make_a_clean_pass(search):
    objective = {"loss": {"type": "cross_entropy", "at": "llr"}, "perturbations": LLR["perturbations"]}
    before, after, clean, _ = step_of(objective, Statistics("batch", search, "auto"))
    assert not equal(after, clean) and not equal(after, before)


@functools.cache
def _weighted_parts():
    objective = LLR | {"terms": {"gamma": {"type": "local_linearity", "at": "llr", "weight": 2.5}}}
    return step_of(objective, Statistics("batch", "batch", "auto"))[3]


def test_metrics_are_means_and_terms_are_unweighted():
    metrics = _weighted_parts()
    np.testing.assert_allclose(metrics["objective"], metrics["loss"] + 2.5 * metrics["gamma"], rtol=1e-5)
    assert float(metrics["gamma"][0]) > 0 and 0 <= float(metrics["accuracy"][0]) <= 1
