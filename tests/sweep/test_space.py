"""All trials of a sweep are known, named and checked before it starts."""

import itertools
import re
from unittest.mock import Mock

import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError, DataError, SpecError
from llrflow.components.registry import forget
from llrflow.data.facts import describe
from llrflow.program.compile import compile_spec
from llrflow.spec.resolve import spec_hash
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.space.cost import sweep_cost
from llrflow.sweep.space.trials import kinds_of, trials_of

LAMBDA, MU = "objective.terms.gamma.weight", "objective.terms.slope.weight"


@pytest.fixture(scope="module")
def trials(sweeping):
    """trials(fields, overrides) -> the trials of the tiny sweep with other fields of its block."""

    def make(fields=None, overrides=None):
        return trials_of(llrflow.load_spec(sweeping(**(fields or {})), overrides or {}), describe)

    return make


def test_a_larger_random_search_begins_with_the_smaller(trials):
    few, many = trials({"trials": 3}), trials({"trials": 9})
    assert [t.name for t in few] == [t.name for t in many[:3]] and len({t.name for t in many}) == 9
    assert [t.name for t in trials({"trials": 3, "search": {"type": "random", "seed": 1}})] != [t.name for t in few]


def test_a_trial_is_the_spec_with_set(trials, sweeping):
    for trial in trials():
        base = {key: value for key, value in sweeping().items() if key != "sweep"}
        own = compile_spec(llrflow.load_spec(base, trial.overrides))
        assert trial.name == f"tiny-{spec_hash(own.spec)}"
        assert own.spec.objective.terms["slope"].weight == pytest.approx(0.75 * trial.parameters["lambda"], rel=1e-5)
        assert trial.rungs == (4, 8, 12)


def test_a_trial_has_as_many_devices_as_cpus_unless_the_spec_says(trials):
    for cpu, count, expected in ((1, None, 1), (2.5, None, 2), (0.5, None, 1), (2, 1, 1)):
        (trial,) = trials({"trials": 1, "resources": {"cpu": cpu}}, {"devices.count": count})
        assert trial.spec.devices.count == expected
    (trial,) = trials({"trials": 1, "resources": {"gpu": 1}}, {"devices.count": None})
    assert trial.spec.devices.count is None, "all that Ray shows to its worker"


def test_the_draws_fill_their_range(trials):
    values = np.log([t.parameters["lambda"] for t in trials({"trials": 200})])
    shares, _ = np.histogram(values, np.linspace(np.log(0.01), np.log(1), 5))
    assert shares.sum() == 200 and shares.min() > 30


def test_a_grid_takes_every_combination_and_what_follows_follows(trials):
    grid = {
        LAMBDA: {"type": "choice", "values": [0.1, 0.2]},
        "train.steps": {"type": "integer", "low": 4, "high": 6},
        "mu": {"type": "derived", "path": MU, "from": LAMBDA},
    }
    found = trials({"parameters": grid, "search": {"type": "grid"}, "trials": None})
    combinations = [(t.parameters[LAMBDA], t.parameters["train.steps"]) for t in found]
    assert combinations == list(itertools.product([0.1, 0.2], [4, 5, 6]))
    assert all(t.parameters["mu"] == t.parameters[LAMBDA] for t in found)
    assert [t.rungs for t in found[:3]] == [(4,), (4, 5), (4, 6)]


def test_a_random_search_repeats_its_draws_for_each_value_of_a_grid(trials):
    parameters = {
        "optimizer.learning_rate": {"type": "grid", "values": [0.01, 0.1]},
        LAMBDA: {"type": "uniform", "low": 0, "high": 1},
    }
    found = trials({"parameters": parameters, "trials": 3})
    assert [t.parameters["optimizer.learning_rate"] for t in found] == [0.01, 0.1] * 3
    assert [t.parameters[LAMBDA] for t in found[::2]] == [t.parameters[LAMBDA] for t in found[1::2]]


def test_a_condition_leaves_a_parameter_out_and_equal_trials_are_one(trials):
    parameters = {
        "model": {"type": "choice", "values": [{"type": "mlp", "widths": [8]}, {"type": "cnn", "channels": [4]}]},
        "dense": {"type": "choice", "values": [8, 16], "path": "model.dense", "when": {"model.type": "cnn"}},
    }
    found = trials({"parameters": parameters, "search": {"type": "grid"}, "trials": None})
    assert [t.spec.model.registered_as[1] for t in found] == ["mlp", "cnn", "cnn"]
    assert ["dense" in t.parameters for t in found] == [False, True, True]
    assert len(kinds_of(found)) == 3


def test_seeds_make_trials_of_one_configuration(trials):
    found = trials({"seeds": 3, "trials": 2}, {"seed": 5})
    assert [(t.configuration, t.seed) for t in found] == [(0, 5), (0, 6), (0, 7), (1, 5), (1, 6), (1, 7)]
    assert len({t.name for t in found}) == 6 and len(kinds_of(found)) == 1


def test_the_cost_counts_the_steps_of_every_trial(sweeping):
    def cost(values, **more):
        steps = {"train.steps": {"type": "choice", "values": values}}
        fields = {"parameters": steps, "search": {"type": "grid"}, "trials": None, **more}
        return sweep_cost(llrflow.load_spec(sweeping(**fields)))

    one, other, both = cost([4]), cost([40]), cost([4, 40])
    assert both["kinds"] == 1 and both["steps"] == 44 and other["training_forwards"] == 10 * one["training_forwards"]
    for part in ("training_forwards", "look_forwards", "evaluation_forwards"):
        assert both[part] == one[part] + other[part] > one[part]
    assert "escalation_forwards" not in both
    top = [cost([4, 8, 12], escalate={"top": n, "attacks": "quick"})["escalation_forwards"] for n in (1, 2, 5)]
    images = llrflow.compile(llrflow.load_spec(sweeping())).facts.test
    assert top == [n * images * (1 + 2 + 20 * 2) for n in (1, 2, 3)]  # clean, FGSM, 20 steps of PGD


def test_a_preset_that_does_not_fit_the_data_is_refused_before_anything_runs(sweeping, tmp_path):
    options = {"height": 4, "width": 4, "channels": 1, "classes": 2, "train": 64, "test": 8}
    fields = {"data": {"name": "synthetic", "options": options, "dir": str(tmp_path)}}
    spec = llrflow.load_spec({**sweeping(escalate={"attacks": "auto_attack"}), **fields})
    with pytest.raises(SpecError, match=r"sweep: trial 0 .*classes"):
        check_trials(spec, trials_of(spec, describe), describe)


POWERED = """
from llrflow.plugin import Component, register
@register("term", "powered")
class Powered(Component):
    power: int = 1
    def __call__(self, probe, delta):
        if self.power > 2:
            raise ValueError("too much")
        return probe.loss(delta) ** self.power
"""


def test_a_plugins_error_names_parameter_value_and_lines(tiny, write_spec, command, tmp_path):
    (tmp_path / "plug.py").write_text(POWERED)
    block = {"parameters": {"k": {"type": "choice", "values": [1, 3], "path": "objective.terms.p.power"}}}
    block |= {"search": {"type": "grid"}, "decide_on": "test"}
    term = {"plugins": ["plug.py"], "objective.terms.p": {"type": "powered", "weight": 0.1}, "sweep": block}
    path = write_spec(tmp_path / "spec.yaml", tiny(), term)
    at = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if line == "    k:")
    code, out, err = command("validate", path)
    assert (code, out) == (2, "") and err.startswith(f"error: {path}:{at}:5: sweep: trial 1 (k = 3): objective.terms.p")
    assert f"failed at {tmp_path / 'plug.py'}:8: ValueError: too much; fix the plugin" in err and err.count("\n") == 1
    forget(str(tmp_path / "plug.py"))


@pytest.mark.parametrize(
    ("raised", "variants", "place", "says"),
    [
        (DataError("/data/info.json", "is damaged", "put it back"), None, "sweep", r" (k = 3): /data/info.json: is"),
        (SpecError("spec", "train.steps is odd", ""), None, "k", r" (k = 3): train.steps is odd"),
        (CheckpointError("/runs/a", "is gone", ""), {"base": {}}, "sweep", r" (base, k = 3): /runs/a: is gone"),
    ],
)
def test_an_error_of_a_trial_keeps_its_own_place(raised, variants, place, says, tiny, write_spec, tmp_path):
    """The parameter's line only where it can be at fault; a file that is damaged by its name."""
    block = {"parameters": {"k": {"type": "choice", "values": [3], "path": "train.steps"}}, "search": {"type": "grid"}}
    changes = {"sweep": {**block, "decide_on": "test", **({"variants": variants} if variants else {})}}
    path = write_spec(tmp_path / "spec.yaml", tiny(), changes)
    at = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if line.strip() == f"{place}:")
    spec, raising = llrflow.load_spec(path), Mock(side_effect=raised)
    with pytest.raises(type(raised)) as error:
        check_trials(spec, trials_of(spec, describe), raising)
    assert str(error.value).startswith(f"{path}:{at}:") and f": sweep: trial 0{says}" in str(error.value)


def test_looks_know_the_norms_of_all_trials(trials, sweeping):
    fields = {
        "parameters": {"threat.norm": {"type": "choice", "values": ["l2", "linf"]}},
        "search": {"type": "grid"},
        "trials": None,
        "rung": {"every": 4, "attacks": {"cw": {"type": "carlini_wagner"}}},
    }
    changes = {"threat.norm": "l2"}
    spec = llrflow.load_spec(sweeping(**fields), changes)
    with pytest.raises(SpecError, match=r"sweep\.rung\.attacks\.cw .* cannot look at a trial under linf"):
        check_trials(spec, trials(fields, changes), describe)


def test_a_sweep_does_not_change_the_hash_of_its_spec(tiny, sweeping):
    with_sweep, without = (compile_spec(llrflow.load_spec(make())) for make in (sweeping, tiny))
    assert spec_hash(with_sweep.spec) == spec_hash(without.spec)


WRONG = {
    "a path that names no field": (
        {"objective.terms.gama.weight": "{type: uniform, low: 0, high: 1}"},
        r"objective\.terms\.gama\.weight: .*has no `type`",
    ),
    "a misspelt field": (
        {"objective.terms.gamma.wieght": "{type: uniform, low: 0, high: 1}"},
        "is not a field of term local_linearity; did you mean 'weight'",
    ),
    "a value out of bounds": ({"threat.epsilon": "{type: uniform, low: 2, high: 3}"}, "larger than the pixel range"),
    "the seed": ({"seed": "{type: integer, low: 0, high: 3}"}, "sets seed, which cannot be swept; use `seeds`"),
    "the place of the data": ({"data.dir": "{type: choice, values: [a]}"}, "which cannot be swept"),
    "twice the same": (
        {"a": "{type: choice, values: [1], path: threat.epsilon}", "threat.epsilon": "{type: choice, values: [1]}"},
        "sets threat.epsilon, as 'a' does",
    ),
    "derived from nothing": (
        {"threat.epsilon": "{type: derived, from: objective.terms.nothing.weight}"},
        "follows objective.terms.nothing.weight, which is no value of this spec",
    ),
    "derived from text": ({"threat.epsilon": "{type: derived, from: threat.norm}"}, "= 'linf', which is not a number"),
    "a batch that divides over no device": (
        {"train.batch_size": "{type: choice, values: [64, 9999]}"},
        "9999 is more than the 1437 training examples",
    ),
    "a wrong schedule": (
        {"optimizer.learning_rate": "{type: choice, values: [{type: linear_schedule, init_value: -1, end_value: 0, "
         "transition_steps: 3}]}"},
        "takes the value -1, which must be >= 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parameters_are_refused_at_their_line(case, write_spec, tiny, tmp_path):
    parameters, says = WRONG[case]
    path = write_spec(tmp_path / "spec.yaml", tiny())
    before = len(path.read_text().splitlines())
    lines = [f"    {name}: {domain}" for name, domain in parameters.items()]
    head = ["sweep:", "  trials: 2", "  decide_on: test", "  parameters:"]
    path.write_text(path.read_text() + "\n".join([*head, *lines, ""]))
    with pytest.raises(SpecError, match=says) as error:
        spec = llrflow.load_spec(path)
        check_trials(spec, trials_of(spec, describe), describe)
    line = int(re.match(rf"{re.escape(str(path))}:(\d+):\d+: ", str(error.value))[1])
    assert before < line <= before + 4 + len(lines), error.value


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metric": "worst_case.acuracy"}, r"= 'worst_case.acuracy' is not measured at a rung; did you mean "
         r"'worst_case.accuracy'\?"),
        ({"metric": "attacks.apgd.accuracy"}, "is not measured at a rung"),
        ({"trials": None}, "has no `trials`"),
        ({"search": {"type": "grid"}}, r"sweep.parameters.lambda \(domain loguniform\) has no list of values"),
        ({"rung": {"attacks": {"l2": {"type": "carlini_wagner"}}}}, "cannot look at a run under linf"),
        ({"scheduler": "ahsa"}, "did you mean 'asha'"),
        ({"trials": 10**6}, "make fewer than"),
        ({"resources": {"cpus": 2}}, "is not a field of resources"),
        ({"parameters": {}}, "sweep.parameters"),
    ],
)  # fmt: skip
def test_wrong_blocks(trials, fields, says):
    with pytest.raises(SpecError, match=says):
        trials(fields)
