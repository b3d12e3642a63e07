"""AutoAttack: what it consists of, and that nothing weaker beats it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.components.registry import make
from llrflow.method.threat import Threat

L2 = {"norm": "l2", "epsilon": 0.06}
BALL = Threat.model_validate(L2)
DRAWN = np.random.default_rng(2)
HIDDEN, OUT = DRAWN.normal(size=(12, 24)).astype(np.float32), DRAWN.normal(size=(24, 6)).astype(np.float32)
IMAGES = DRAWN.uniform(size=(32, 2, 2, 3)).astype(np.float32)


def mlp(images):
    return jnp.tanh(3.0 * (images.reshape(len(images), -1) @ HIDDEN)) @ OUT


LABELS = np.argmax(mlp(IMAGES), axis=1)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (
            "standard",
            {
                "apgd_ce": {"steps": 100, "restarts": 1, "eot": 1},
                "apgd_t": {"steps": 100, "restarts": 1, "targets": 9},
                "fab_t": {"steps": 100, "restarts": 1, "targets": 9},
                "square": {"queries": 5000, "rescale": False},
            },
        ),
        (
            "plus",
            {
                "apgd_ce": {"steps": 100, "restarts": 5},
                "apgd_dlr": {"steps": 100, "restarts": 5},
                "square": {"queries": 5000, "rescale": False},
                "apgd_t": {"steps": 100, "restarts": 1, "targets": 9},
                "fab_t": {"steps": 100, "restarts": 5, "targets": 9},
            },
        ),
        ("rand", {"apgd_ce": {"restarts": 1, "eot": 20}, "apgd_dlr": {"restarts": 1, "eot": 20}}),
    ],
)
def test_profiles_are_those_of_the_authors(profile, expected):
    attack = make("attack", {"type": "auto_attack", "profile": profile})
    stages = attack.stages(BALL, 10)
    assert list(stages) == list(expected)
    for name, fields in expected.items():
        assert stages[name].registered_as == ("attack", name)
        assert {field: getattr(stages[name], field) for field in fields} == fields
    assert make("attack", attack.model_dump()) == attack


def test_standard_under_l1_is_that_of_the_authors():
    stages = make("attack", "auto_attack").stages(Threat(norm="l1", epsilon=12.0), 10)
    assert list(stages) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    apgd_ce, apgd_t, fab_t, _ = stages.values()
    assert (apgd_ce.restarts, apgd_ce.larger_balls, apgd_ce.length) == (5, True, 102)
    assert (apgd_t.restarts, apgd_t.targets, apgd_t.larger_balls) == (1, 5, True)
    assert (fab_t.restarts, fab_t.targets) == (1, 9)
    assert make("attack", "auto_attack").stages(Threat(norm="l1", epsilon=12.0), 4)["apgd_t"].targets == 3


def test_cost_is_that_of_all_stages():
    attack = make("attack", "auto_attack")
    apgd, fab, square = 2 * 100, 3 * 100 * 9, 5000
    assert attack.forwards(BALL, 10) == apgd * (1 + 9) + fab + square


def test_fewer_classes_have_fewer_targets():
    for classes, targets in ((4, 3), (10, 9), (100, 9)):
        stages = make("attack", "auto_attack").stages(BALL, classes)
        assert (stages["apgd_t"].targets, stages["fab_t"].targets) == (targets, targets)


@pytest.mark.parametrize(
    ("profile", "classes", "message"),
    [
        ("standard", 3, "standard contains apgd_t, which needs 4, not 3 classes; list apgd_ce, fab_t and square"),
        ("plus", 2, "plus contains apgd_t, which needs 4"),
        ("rand", 2, "rand contains apgd_dlr, which needs 3"),
    ],
)
def test_too_few_classes_are_refused(profile, classes, message):
    config = {"type": "auto_attack", "profile": profile}
    with pytest.raises(SpecError, match=message):
        llrflow.attack(lambda x: mlp(x)[:, :classes], IMAGES, 0 * LABELS, L2, config, jax.random.key(0))


@pytest.mark.parametrize(
    "change", [{"profile": "fast"}, {"eot": 0}, {"steps": 3}, {"profile": "rand", "eot": 0}], ids=str
)
def test_bad_configurations_are_refused(change):
    with pytest.raises(SpecError, match=next(reversed(change))):
        make("attack", {"type": "auto_attack", **change})


def test_draws_of_a_stochastic_model_can_be_set():
    config = {"type": "auto_attack", "profile": "rand", "eot": 3}
    assert [part.eot for part in make("attack", config).stages(BALL, 10).values()] == [3, 3]


def test_is_at_least_as_strong_as_pgd():
    y = np.where(np.arange(32) < 2, (LABELS + 1) % 6, LABELS)
    config = {"type": "pgd", "steps": 37, "maximize": "cross_entropy"}
    pgd = llrflow.attack(mlp, IMAGES, y, L2, config, jax.random.key(3))
    whole = llrflow.attack(mlp, IMAGES, y, L2, "auto_attack", jax.random.key(3))
    BALL.check(whole.x_adv - IMAGES, IMAGES)
    found = np.asarray(whole.success)
    assert np.all(found[:2]) and np.all(whole.queries[:2] == 0)
    assert np.all(found >= np.asarray(pgd.success)) and 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(jnp.argmax(mlp(whole.x_adv), axis=1) != y, found)
    assert np.all(whole.queries[~found] == 100 * (1 + 5) + 200 * 5 + 5000)
