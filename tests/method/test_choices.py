"""Choices among perturbations: the strongest has the highest value, the drawn one is that of its search alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.method.keys import purpose_key
from llrflow.method.mixture import drawn
from llrflow.method.objective import Objective, perturb
from llrflow.method.probe import Probe
from llrflow.method.threat import Threat

THREAT = Threat(epsilon=0.05)
PERTURBATIONS = {
    "linf": {"steps": 4, "restarts": 2},
    "l2": {"norm": "l2", "epsilon": 0.345, "steps": 3, "step": "momentum", "restarts": 2, "keep": "best"},
    "l1": {"norm": "l1", "epsilon": 1.0, "steps": 2, "restarts": 2},
}
NAMES = list(PERTURBATIONS)
TERMS = {name: {"type": "cross_entropy", "at": name} for name in NAMES}


@pytest.fixture(scope="module")
def net(net):
    """The reference network with more images, over which the members of a choice are spread."""
    x = jnp.concatenate([jnp.clip(0.5 + c * (net.x - 0.5), 0, 1) for c in (0.1, 0.5, 0.9, 1.3)])
    return SimpleNamespace(logits=net.logits, x=x, y=jnp.tile(net.y, 4))


def chosen(net, take, by, terms=TERMS):
    """{name: delta} of a choice among the three, which terms stand at as well."""
    places = {"loss": {"type": "cross_entropy", "at": "any"}, "terms": terms}
    choices = {"any": {"of": NAMES, "take": take}}
    objective = Objective.model_validate({"perturbations": PERTURBATIONS, "choices": choices, **places})
    probe = Probe(net.logits, net.x, net.y)
    return perturb(objective, probe, THREAT, lambda name: keys_of(name, len(net.x)), by)


def keys_of(name, n):
    return jax.random.split(purpose_key(jnp.uint32(0), name), n)


@pytest.mark.parametrize("by", ["unroll", "scan"])
def test_what_is_drawn_is_what_its_search_finds_alone(net, by):
    found = jax.jit(lambda: chosen(net, "drawn", by))()
    which = np.asarray(drawn(keys_of("any", len(net.x)), 3))
    assert set(which) == {0, 1, 2}, "take another key"
    for member, name in enumerate(NAMES):
        np.testing.assert_allclose(found["any"][which == member], found[name][which == member], atol=1e-6)
        assert np.abs(found["any"] - found[name])[which != member].max() > 0.01


def test_the_strongest_has_the_highest_value(net):
    found = jax.jit(lambda: chosen(net, "strongest", "unroll"))()
    losses = {name: np.asarray(Probe(net.logits, net.x, net.y).loss(delta)) for name, delta in found.items()}
    highest = np.max([losses[name] for name in NAMES], axis=0)
    np.testing.assert_allclose(losses["any"], highest, rtol=1e-6)
    assert len({int(np.argmax([losses[name][i] for name in NAMES])) for i in range(len(net.x))}) > 1, "no choice"
    assert chosen(net, "strongest", "unroll", {}).keys() == {"any"}, "nothing else stands where no term does"


def test_draws_are_of_the_example_and_even():
    keys = jax.random.split(jax.random.key(1), 3000)
    which = np.asarray(drawn(keys, 3))
    assert np.bincount(which).min() > 900
    np.testing.assert_array_equal(drawn(keys[::-1], 3), which[::-1])


L2 = {"norm": "l2", "epsilon": 0.3, "steps": 2}
BASE = {
    "objective.perturbations.p": {"steps": 2},
    "objective.perturbations.l2": L2,
    "objective.terms.a": {"type": "cross_entropy", "at": "any"},
    "objective.choices.any": {"of": ["p", "l2"], "take": "drawn"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.choices.any.of": ["p", "l3"]},
            "choices.any.of has 'l3', which is no perturbation; choose from l2",
        ),
        ({"objective.choices.any.of": ["p", "p"]}, "choices.any.of has a perturbation twice"),
        ({"objective.choices.any.of": ["p"]}, "choices.any.of"),
        ({"objective.choices.any.take": "random"}, "choices.any.take = 'random'"),
        ({"objective.terms.a.at": "p"}, "choices.any is used by no term"),
        ({"objective.terms.a.at": "eny"}, "terms.a.at = 'eny' is not a perturbation .* did you mean 'any'"),
        ({"objective.choices.l2": {"of": ["p", "l2"], "take": "drawn"}}, "choices.l2 has the name of a perturbation"),
        ({"objective.perturbations.l2.restarts": 2}, "choices.any.of has searches that differ in `restarts`"),
        ({"objective.perturbations.l2.maximize": "margin"}, "choices.any.of has searches that differ in `maximize`"),
        ({"objective.perturbations.more": L2}, "perturbations.more is used by no term"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_choices_that_make_no_sense_are_one_line(load, changes, message):
    load(BASE)
    with pytest.raises(llrflow.SpecError, match=message):
        load({**BASE, **changes})
