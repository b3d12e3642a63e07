"""What values parameters take, and that schedulers have Tune's own arguments."""

import inspect

import numpy as np
import pytest

from llrflow.base.errors import SpecError
from llrflow.components.registry import entries, make
from llrflow.sweep.decisions.schedulers import TIME

U = np.linspace(0, 1 - 1e-9, 1001)


def drawn(config, value_of=None):
    domain = make("domain", config)
    return np.array([domain.draw(u, value_of) for u in U])


def test_uniform_and_loguniform_have_their_quantiles():
    uniform, log = (drawn({"type": kind, "low": 0.1, "high": 10}) for kind in ("uniform", "loguniform"))
    for values in (uniform, log):
        assert values[0] == 0.1 and values[-1] == pytest.approx(10, rel=1e-5) and (np.diff(values) > 0).all()
    assert np.median(uniform) == pytest.approx(5.05, rel=1e-4)
    assert np.median(log) == pytest.approx(1.0, rel=1e-4)


def test_a_quantum_rounds_and_stays_inside():
    values = drawn({"type": "uniform", "low": 0.1, "high": 1, "quantum": 0.25})
    assert set(values) == {0.1, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("log", [False, True])
def test_integers_reach_both_ends(log):
    values = drawn({"type": "integer", "low": 1, "high": 8, "log": log})
    assert set(values) == set(range(1, 9))
    few, many = (values == 1).mean(), (values == 8).mean()
    assert (few > 2 * many) if log else few == pytest.approx(many, abs=0.01)


def test_choice_and_grid_take_every_value():
    for kind in ("choice", "grid"):
        domain = make("domain", {"type": kind, "values": ["a", {"type": "mlp"}, 3]})
        assert domain.listed() == ["a", {"type": "mlp"}, 3]
        assert [domain.draw(u, None) for u in (0.0, 0.34, 0.99)] == domain.listed()


@pytest.mark.parametrize(
    "config",
    [
        {"type": "uniform", "low": -1, "high": 3},
        {"type": "uniform", "low": 0.1, "high": 1, "quantum": 0.25},
        {"type": "loguniform", "low": 1e-3, "high": 10},
        {"type": "integer", "low": 0, "high": 7},
        {"type": "integer", "low": 1, "high": 900, "log": True},
        {"type": "choice", "values": ["a", {"type": "mlp"}, 3]},
    ],
)
def test_a_value_leads_back_to_where_it_is_drawn(config):
    domain = make("domain", config)
    for u in U[::10]:
        value = domain.draw(u, None)
        assert domain.draw(domain.place(value), None) == value
    for value in (1e9, "b"):
        with pytest.raises(ValueError, match=r"not from|not in tuple"):
            domain.place(value)


def test_a_derived_number():
    assert drawn({"type": "derived", "from": "a.b", "times": 0.75, "plus": 1}, {"a.b": "8/255"}.get)[0] == 1.02353


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"type": "loguniform", "low": 0, "high": 1}, "low = 0.0 must be > 0"),
        ({"type": "uniform", "low": 1, "high": 1}, "high = 1.0 is not above low = 1"),
        ({"type": "integer", "low": 2, "high": 1}, "high = 1 is below low = 2"),
        ({"type": "integer", "low": 0, "high": 1, "log": True}, "low = 0 must be at least 1"),
        ({"type": "choice", "values": []}, "at least 1 item"),
        ({"type": "choise", "values": [1]}, "did you mean 'choice'"),
        ({"type": "derived", "form": "x"}, "did you mean 'from'"),
        ({"type": "uniform", "low": 0, "high": 1, "quantum": 0}, "greater than 0"),
    ],
)
def test_wrong_domains(config, says):
    with pytest.raises(SpecError, match=says):
        make("domain", config)


@pytest.mark.parametrize("name", ["fifo", "asha", "hyperband", "median"])
def test_a_scheduler_has_the_arguments_of_tunes(name):
    from ray.tune import schedulers

    tunes = {
        "fifo": schedulers.FIFOScheduler,
        "asha": schedulers.AsyncHyperBandScheduler,
        "hyperband": schedulers.HyperBandScheduler,
        "median": schedulers.MedianStoppingRule,
    }[name]
    assert set(entries("scheduler")[name].cls.model_fields) <= set(inspect.signature(tunes).parameters)
    built = make("scheduler", name).build(10)
    assert type(built) is tunes
    if name != "fifo":
        assert built._time_attr == TIME


def test_an_argument_that_tune_does_not_know_is_refused():
    with pytest.raises(SpecError, match="did you mean 'grace_period'"):
        make("scheduler", {"type": "asha", "grace_perod": 2})
