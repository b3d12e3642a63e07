"""optax's optimizers and schedules as components: their numbers traced, their results those of optax itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llrflow.base.errors import SpecError
from llrflow.components.optimizers import OPTIMIZERS, SCHEDULES, resolve_duration
from llrflow.components.registry import make
from llrflow.components.traced import bind, numbers

RATES = {"adadelta": 100.0, "lars": 5.0, "lion": 0.05, "rprop": 0.01, "sgd": 0.1, "optimistic_gradient_descent": 0.1}
START = {"matrix": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "vector": np.full(4, 0.7, np.float32)}


def quadratic(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def descend(optimizer, steps=10):
    """[(updates, parameters)] of some steps down the quadratic, from START."""
    params, state, path = START, optimizer.init(START), []
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_with_traced_numbers_equals_optax(name):
    rate = RATES.get(name, 0.05)
    component = make("optimizer", {"type": name, "learning_rate": rate})
    values = {path: value for path, value, _ in numbers(component)}
    assert "learning_rate" in values

    traced = jax.jit(lambda values: descend(bind(component, values).build(), 3))(values)
    direct = jax.jit(lambda: descend(getattr(optax, name)(rate), 3))()
    for ours, theirs in zip(jax.tree.leaves(traced), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert quadratic(traced[-1]) < quadratic(START)


SCHEDULE_TABLE = {
    "constant_schedule": {"value": 0.3},
    "cosine_decay_schedule": {"init_value": 1.0, "decay_steps": 8, "alpha": 0.1},
    "cosine_onecycle_schedule": {"transition_steps": 9, "peak_value": 2.0},
    "exponential_decay": {"init_value": 1.0, "transition_steps": 3, "decay_rate": 0.5, "staircase": True},
    "linear_onecycle_schedule": {"transition_steps": 9, "peak_value": 2.0},
    "linear_schedule": {"init_value": 0.0, "end_value": 4.0, "transition_steps": 6, "transition_begin": 1},
    "piecewise_constant_schedule": {"init_value": 1.0, "boundaries_and_scales": {2: 0.5, 5: 0.1}},
    "polynomial_schedule": {"init_value": 1.0, "end_value": 0.1, "power": 2.0, "transition_steps": 6},
    "warmup_constant_schedule": {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3},
    "warmup_cosine_decay_schedule": {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 9},
    "warmup_exponential_decay_schedule": {
        "init_value": 0.0, "peak_value": 1.0, "warmup_steps": 3, "transition_steps": 4, "decay_rate": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_optax(name):
    ours = make("schedule", {"type": name, **SCHEDULE_TABLE[name]}).build()
    theirs = getattr(optax, name)(**SCHEDULE_TABLE[name])
    found = [float(ours(step)) for step in (0, 1, 3, 7, 12)]
    assert found == pytest.approx([float(theirs(step)) for step in (0, 1, 3, 7, 12)])
    assert name == "constant_schedule" or len(set(found)) > 1


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (200, 200),
        (0, 0),
        ("200 steps", 200),
        ("1 step", 1),
        ("2 epochs", 100),
        ("1 epoch", 50),
        ("0.5 epochs", 25),
        ("2epochs", 100),
        ("5%", 25),
        ("12.5 %", 62),
        (" 100% ", 500),
    ],
)
def test_duration(duration, steps):
    kept = make("schedule", {"type": "cosine_decay_schedule", "init_value": 1, "decay_steps": duration}).decay_steps
    assert resolve_duration(kept, steps_per_epoch=50, total_steps=500) == steps


@pytest.mark.parametrize("duration", [-1, 1.5, True, "5", "five epochs", "-2 epochs", "2 weeks", "5 % of it", None])
def test_wrong_duration_is_refused(duration):
    with pytest.raises(SpecError, match=r"decay_steps.*is not a duration; write steps"):
        make("schedule", {"type": "cosine_decay_schedule", "init_value": 1, "decay_steps": duration})


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("optimizer", {"type": "adam", "learning_rat": 1}, "did you mean 'learning_rate'"),
        ("optimizer", {"type": "adma", "learning_rate": 1}, "did you mean 'adam"),
        ("optimizer", {"type": "adam"}, "learning_rate is missing"),
        ("optimizer", {"type": "adam", "learning_rate": -1}, "must be >= 0"),
        (
            "optimizer",
            {"type": "adam", "learning_rate": 0.1, "mu_dtype": "bfloat16"},
            "is not a field of optimizer adam",
        ),
        ("optimizer", {"type": "adam", "learning_rate": 0.1, "nesterov": 1}, "nesterov"),
        ("schedule", {"type": "linear_schedule", "init_valu": 1}, "did you mean 'init_value'"),
        ("schedule", {"type": "piecewise", "pieces": {5: 1}}, "has no piece for the first steps; add one at 0"),
        ("schedule", {"type": "piecewise", "pieces": {0: "x"}}, "is not a number"),
        ("schedule", {"type": "piecewise", "pieces": {0: 1, "soon": 1}}, "is not a duration"),
        ("schedule", {"type": "linear", "init_value": 1}, "did you mean 'linear_schedule'|choose from"),
    ],
)
def test_wrong_configuration_is_refused(kind, config, message):
    with pytest.raises(SpecError, match=message):
        make(kind, config)


def test_a_schedule_may_stand_for_a_number():
    optimizer = make("optimizer", {"type": "sgd", "learning_rate": {"type": "constant_schedule", "value": 0.1}})
    ((path, value, _),) = [found for found in numbers(optimizer) if found[0] == "learning_rate"]
    assert path == "learning_rate" and value.build()(3) == 0.1


@pytest.mark.parametrize(
    ("nesterov", "expected"),
    # PyTorch: d = g + 0.1 p, buf = 0.9 buf + d, p -= 0.5 (d + 0.9 buf if nesterov else buf), from p = 2 with g = 1, 3.
    # d1 = 1.2, buf1 = 1.2; then d2 = 3 + 0.1 p1, buf2 = 1.08 + d2.
    [(False, [1.4, -0.71]), (True, [0.86, -2.5577])],
)
def test_decay_of_sgd_is_that_of_pytorch(nesterov, expected):
    config = {"type": "sgd", "learning_rate": 0.5, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    optimizer = make("optimizer", config).build()
    params, found = jnp.asarray(2.0), []
    state = optimizer.init(params)
    for gradient in (1.0, 3.0):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        found.append(float(params))
    assert found == pytest.approx(expected, rel=1e-6)


OWN = {"adadelta", "adafactor", "adamaxw", "adamw", "adan", "lamb", "lars", "lion", "nadamw", "novograd"}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - OWN))
def test_an_optimizer_without_decay_sees_a_gradient_with_it(name):
    component = make("optimizer", {"type": name, "learning_rate": 0.1, "weight_decay": 0.3})
    assert ("weight_decay", 0.3) in [(path, value) for path, value, _ in numbers(component)]
    decayed, plain = component.build(), getattr(optax, name)(0.1)
    gradient = jax.tree.map(lambda leaf: leaf**2 + 0.1, START)
    ours, _ = decayed.update(gradient, decayed.init(START), START)
    added = jax.tree.map(lambda g, p: g + 0.3 * p, gradient, START)
    theirs, _ = plain.update(added, plain.init(START), START)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize("name", sorted(OWN))
def test_an_optimizer_has_one_decay(name):
    fields = set(type(make("optimizer", {"type": name, "learning_rate": 0.1})).model_fields)
    assert len(fields & {"weight_decay", "weight_decay_rate"}) == 1


def test_no_decay_leaves_no_trace():
    assert "weight_decay" not in make("optimizer", {"type": "sgd", "learning_rate": 0.1}).model_dump()
