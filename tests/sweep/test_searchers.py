"""The searchers that Tune wraps, each where its package is installed: hyperopt is in the tests' extra."""

import inspect
import math

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.data.facts import describe
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.decisions.searchers import LIBRARIES, Observation, asked, check
from llrflow.sweep.space.trials import trials_of

LAMBDA, RATE = "objective.terms.gamma.weight", "optimizer.learning_rate"
NUMBERS = {
    "lambda": {"type": "loguniform", "low": 0.01, "high": 1, "path": LAMBDA},
    "mu": {"type": "derived", "path": "objective.terms.slope.weight", "from": LAMBDA, "times": 0.75},
    RATE: {"type": "uniform", "low": 0.001, "high": 0.1},
}
MIXED = {
    **NUMBERS,
    "model": {"type": "choice", "values": [{"type": "mlp", "widths": [8]}, {"type": "cnn", "channels": [4]}]},
    "dense": {"type": "integer", "low": 4, "high": 8, "path": "model.dense", "when": {"model.type": "cnn"}},
    "train.batch_size": {"type": "choice", "values": [32]},
}
KINDS = {
    "hyperopt": {"n_initial_points": 8, "gamma": 2.0},  # of the default's few good points it learns slowly
    "bayesopt": {"random_search_steps": 8},
    "nevergrad": {"optimizer": "OnePlusOne"},
    "bohb": {"bohb_config": {"min_points_in_model": 8}},
}


@pytest.fixture
def searched(sweeping):
    """searched(kind, **fields of the sweep block) -> the sweep's spec, its package being there."""

    def make(kind, **fields):
        for module in LIBRARIES[kind].modules:
            pytest.importorskip(module)
        search = {"type": kind, "arguments": KINDS.get(kind, {}), **fields.pop("search", {})}
        return llrflow.load_spec(sweeping(**{"trials": 40, "search": search, "parameters": NUMBERS, **fields}))

    return make


def near(values):
    """A metric that is best at lambda = 0.1; -0.5 in the mean of random draws, with a deviation of 0.08 for 12."""
    return -abs(math.log10(values[LAMBDA]) + 1)


def rounds(spec, value=near, count=None, stopped=None):
    observed = []
    while len(observed) < (count or (24 if spec.sweep.search.type == "bayesopt" else 60)):
        new = asked(spec, observed, len(observed), 4)
        observed += [Observation(n, found, value(found), stopped) for n, found in enumerate(new, len(observed))]
    return observed


def mean_of_the_last(observed):
    return np.mean([near(one.values) for one in observed[-12:]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_each_finds_what_is_good_and_draws_the_same_again(searched, kind):
    spec = searched(kind)
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    found = rounds(spec)
    assert np.random.rand() == expected, "the generator of others is as it was"
    assert found == rounds(spec) and found[:4] != rounds(searched(kind, search={"seed": 1}), count=4)
    assert mean_of_the_last(found) > -0.35
    assert mean_of_the_last(rounds(searched(kind, metric="objective"))) < -0.65, "where less is better, the opposite"
    for one in found:
        values = one.values
        assert values["objective.terms.slope.weight"] == pytest.approx(0.75 * values[LAMBDA], rel=1e-5)
        assert 0.01 <= values[LAMBDA] <= 1 and 0.001 <= values[RATE] <= 0.1
    assert len({one.values[LAMBDA] for one in found}) > 0.9 * len(found), "the draws of a round differ"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bayesopt"])
@pytest.mark.filterwarnings("ignore")
def test_choices_and_conditions(searched, kind):
    spec = searched(kind, parameters=MIXED)
    found = rounds(spec, lambda values: near(values) - 2 * (values["model"]["type"] == "mlp"))
    for values in (one.values for one in found):
        assert values["train.batch_size"] == 32 and ("model.dense" in values) == (values["model"]["type"] == "cnn")
        assert values.get("model.dense", 4) in range(4, 9)
    assert sum(one.values["model"]["type"] == "cnn" for one in found[-12:]) >= 9


def test_failed_and_masked_configurations_are_bad_ones_and_stopped_ones_teach(searched):
    spec = searched("hyperopt")
    large = rounds(spec, lambda values: values[LAMBDA])
    bad = rounds(spec, lambda values: None if values[LAMBDA] > 0.1 else values[LAMBDA])  # any other is better
    counts = [sum(one.values[LAMBDA] > 0.1 for one in observed[-12:]) for observed in (large, bad)]
    assert counts[0] >= 9 and counts[1] <= 4
    assert mean_of_the_last(rounds(spec, stopped=4)) > -0.35


def test_a_trial_that_was_stopped_is_told_to_be_no_better_than_one_that_finished(searched):
    from llrflow.sweep.decisions.searchers import _told

    values = {LAMBDA: 0.1, "objective.terms.slope.weight": 0.075, RATE: 0.01}
    came = [(0.5, None), (0.7, None), (0.9, 4), (0.3, 8), (None, None)]
    observed = [Observation(number, values, *one) for number, one in enumerate(came)]
    spec = searched("hyperopt")
    assert _told(spec, spec.sweep, observed)[1] == [0.5, 0.7, 0.5, 0.3, 0.3]
    spec = searched("hyperopt", metric="objective")
    assert _told(spec, spec.sweep, observed)[1] == [0.5, 0.7, 0.9, 0.7, 0.9]


def test_what_the_space_has_no_longer_is_not_learnt_from(searched):
    old = rounds(searched("hyperopt"))
    narrow = {**NUMBERS, "lambda": {**NUMBERS["lambda"], "low": 0.2}}
    inside = [one for one in old if one.values[LAMBDA] >= 0.2]
    spec = searched("hyperopt", parameters=narrow)
    assert 0 < len(inside) < 60 and asked(spec, old, 60, 4) == asked(spec, inside, 60, 4)
    wider = searched("hyperopt", parameters={**NUMBERS, "threat.epsilon": {"type": "uniform", "low": 0.1, "high": 0.2}})
    assert asked(wider, old, 60, 4) == asked(wider, [], 60, 4) and asked(spec, old, 60, 4) != asked(spec, [], 60, 4)


def test_a_searcher_that_has_nothing_to_say_draws_at_random(searched, monkeypatch):
    from ray.tune.search.hyperopt import HyperOptSearch

    monkeypatch.setattr(HyperOptSearch, "suggest", lambda self, trial: None)
    spec = searched("hyperopt", search={"seed": 5})
    plain = searched("hyperopt", search={"type": "random", "arguments": {}, "seed": 5})
    drawn = [trial.overrides for trial in trials_of(plain, describe)[:4]]
    assert all(found.items() <= whole.items() for found, whole in zip(asked(spec, [], 0, 4), drawn, strict=True))


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"type": "hyperopt", "arguments": {"n_inital_points": 5}},
         r"sweep\.search\.arguments\.n_inital_points is not an argument of hyperopt; it has gamma, n_initial_points$"),
        ({"type": "hyperopt", "arguments": {"random_state_seed": 5}}, "seed is not an argument of hyperopt"),
        ({"type": "hyperopt", "arguments": {"n_initial_points": "many"}},
         r"sweep\.search: hyperopt cannot draw with these arguments: TypeError: .*correct `arguments`, or pip install"),
        ({"type": "optuna", "arguments": {"seed": 1}}, "seed is not an argument of optuna; it has .*n_ei_candidates"),
        ({"type": "nevergrad", "arguments": {"optimizer": "OnePlusTwo"}},
         r"sweep\.search\.arguments\.optimizer = 'OnePlusTwo' is none of nevergrad's; did you mean 'OnePlusOne'"),
        ({"type": "bayesopt", "arguments": {"utility_kwargs": {"kind": "best"}}}, "bayesopt cannot draw .*ucb"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_wrong_arguments(searched, search, says):
    spec = searched(search["type"], search=search)
    with pytest.raises(SpecError, match=says):
        check_trials(spec, trials_of(spec, describe), describe)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"search": {"type": "random", "arguments": {"a": 1}}}, r"sweep\.search\.arguments has no effect on random"),
        ({"search": {"type": "hyperopt", "startup": 3}}, r"sweep\.search\.startup has no effect on hyperopt"),
        (
            {"search": "bayesopt", "parameters": MIXED},
            "domain choice\\) is no number, and bayesopt learns nothing else",
        ),
        ({"search": "hyperopt", "scheduler": "hyperband"}, "waits for more trials than a round of hyperopt has"),
        ({"search": "hyperoptt"}, "hyperopt"),
    ],
)
def test_wrong_blocks(fields, says, sweeping):
    fields = {
        **fields,
        "search": fields["search"] if isinstance(fields["search"], dict) else {"type": fields["search"]},
    }
    with pytest.raises(SpecError, match=says):
        llrflow.load_spec(sweeping(**fields))


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_package_it_says_what_to_install(sweeping, monkeypatch, kind):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=rf"sweep\.search: needs .*; pip install 'llrflow\[{kind}\]'"):
        check(llrflow.load_spec(sweeping(search={"type": kind})))


def test_the_arguments_are_those_of_tune():
    """What llrflow gives to a searcher, or hides, is an argument of it; this needs no package."""
    from ray.tune.search import SEARCH_ALG_IMPORT

    for kind, library in LIBRARIES.items():
        if kind != "optuna":
            arguments = inspect.signature(SEARCH_ALG_IMPORT[kind]()).parameters.keys()
            assert library.hidden <= arguments and (library.seed is None or library.seed in library.hidden)


def test_nothing_to_learn(searched):
    spec = searched("hyperopt", parameters={"train.batch_size": {"type": "choice", "values": [32]}})
    with pytest.raises(SpecError, match="nothing to learn; use random"):
        check(spec)
