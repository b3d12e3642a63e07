"""Traced numbers: what is an input of a compiled step and what decides the program."""

import jax
import jax.numpy as jnp
import pytest

from llrflow.components.registry import make
from llrflow.components.traced import bind, numbers, static_key
from llrflow.method.objective import Objective
from llrflow.method.threat import Threat

SCHEDULE = {"type": "linear_schedule", "init_value": 0, "end_value": 4, "transition_steps": 10}
BASE = {
    "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    "perturbations": {
        "llr": {
            "epsilon": 0.1,
            "maximize": {"type": "cross_entropy"},
            "steps": 3,
            "step": {"type": "sign", "size": 0.02},
            "start": {"type": "uniform"},
        }
    },
    "terms": {"gamma": {"type": "local_linearity", "at": "llr", "weight": 4}, "n": {"type": "gradient_norm"}},
}
PATHS = {
    "loss.label_smoothing": 0.1,
    "loss.weight": 1.0,
    "perturbations.llr.epsilon": 0.1,
    "perturbations.llr.maximize.label_smoothing": 0.0,
    "perturbations.llr.reach": 2.5,
    "perturbations.llr.start.radius": 1.0,
    "perturbations.llr.step.size": 0.02,
    "terms.gamma.weight": 4.0,
    "terms.n.weight": 1.0,
}


def changed(path, value):
    """The base objective with one field changed."""

    def put(mapping, keys):
        below = put(mapping.get(keys[0], {}), keys[1:]) if keys[1:] else value
        return {**mapping, keys[0]: below}

    return Objective.model_validate(put(BASE, path.split(".")))


def test_numbers_are_found_by_dotted_path():
    assert {path: value for path, value, _ in numbers(Objective.model_validate(BASE))} == PATHS


def test_bind_replaces_the_named_numbers_alone():
    objective = Objective.model_validate(BASE)
    values = {path: value + 0.5 for path, value in PATHS.items()}
    bound = bind(objective, values)
    assert {path: value for path, value, _ in numbers(bound)} == values
    assert {path: value for path, value, _ in numbers(objective)} == PATHS
    assert bind(bound, PATHS) == objective and bind(objective, {}) == objective
    assert type(bound.terms["gamma"]) is type(objective.terms["gamma"])


def test_bound_numbers_are_inputs_of_a_jitted_function():
    traces = []

    @jax.jit
    def radius(values):
        traces.append(values)
        return bind(Threat(norm="l2", epsilon=1), values).uniform(
            jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 1, 1, 1))
        )

    small, large = radius({"epsilon": 0.5}), radius({"epsilon": 2.0})
    assert len(traces) == 1 and jnp.allclose(large, 4 * small)


@pytest.mark.parametrize("value", [0.7, SCHEDULE], ids=["number", "schedule"])
@pytest.mark.parametrize("path", PATHS)
def test_numbers_do_not_decide_the_program(path, value):
    assert static_key(changed(path, value)) == static_key(Objective.model_validate(BASE))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("perturbations.llr.steps", 4),
        ("perturbations.llr.keep", "best"),
        ("perturbations.llr.restarts", 2),
        ("perturbations.llr.maximize", "margin"),
        ("perturbations.llr.start", "zero"),
        ("perturbations.llr.step.size", "auto"),
        ("perturbations.llr.step.type", "steepest"),
        ("perturbations.llr.epsilon", None),
        ("perturbations.other", {}),
        ("loss.at", "llr"),
        ("terms.n.p", 1),
        ("terms.n.squared", True),
        ("terms.more", {"type": "margin"}),
    ],
)
def test_structure_decides_the_program(path, value):
    assert static_key(changed(path, value)) != static_key(Objective.model_validate(BASE))


def test_order_of_terms_does_not_matter_to_the_key():
    backwards = BASE | {"terms": dict(reversed(BASE["terms"].items()))}
    assert static_key(Objective.model_validate(backwards)) == static_key(Objective.model_validate(BASE))


def test_attack_and_optimizer_numbers():
    optax_step = {"type": "optax", "optimizer": {"type": "adam", "learning_rate": 0.1}}
    attack = make("attack", {"type": "pgd", "step": optax_step})
    found = {path for path, _, _ in numbers(attack)}
    assert {"start.radius", "step.optimizer.learning_rate", "step.optimizer.b1"} <= found
