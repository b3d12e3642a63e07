"""ELLE-A: the factor's rule in NumPy, and its running state in metrics, checkpoints and on several devices.

tests/runs/test_kill_and_resume.py kills a run with it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.method.probe import Probe
from llrflow.method.term import ask
from llrflow.method.threat import Threat
from llrflow.runs.checkpoint import Checkpoints

ELLE_A = {"type": "elle_a", "sensitivity": 0.5, "decay": 0.9, "weight": 10.0}


def factors(errors, sensitivity, decay):
    """The factor of each step, and whether it jumped after it: the rule of the paper, all earlier errors kept."""
    factor, found, jumped = 0.0, [], []
    for step, error in enumerate(errors):
        found.append(factor)
        before = errors[:step]
        jumped.append(step >= 3 and error > np.mean(before) + sensitivity * np.std(before))
        factor = 1.0 if jumped[-1] else decay * factor
    return np.array(found), np.array(jumped)


@pytest.fixture
def answers(load_term, monkeypatch):
    """answers(errors, fields) -> the term's answer in each step, whose batch has the given errors [steps,B]."""

    def run(errors, **fields):
        term = load_term("elle", {"type": "elle_a", **fields})
        shape = (errors.shape[1], 2, 2, 1)
        keys = jax.random.split(jax.random.key(0), len(errors[0]))
        state, found = None, []
        for batch in jnp.asarray(errors, jnp.float32):
            monkeypatch.setattr(type(term), "error", lambda self, probe, a, b, alpha, batch=batch: batch)
            probe = Probe(lambda images: None, jnp.zeros(shape), jnp.zeros(shape[0], int), keys, Threat(epsilon=0.1))
            found.append(ask(term, probe, None, state))
            state = found[-1].state
        return found

    return run


def means(seed, steps=40):
    """Positive batch means with two spikes."""
    values = np.random.default_rng(seed).gamma(2.0, 1.0, steps)
    values[12] *= 20
    values[30] *= 200
    return values


@pytest.mark.parametrize(("sensitivity", "decay"), [(2.0, 0.99), (1.0, 0.5), (0.0, 0.9), (2.0, 0.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_factor_follows_the_rule(answers, seed, sensitivity, decay):
    errors = means(seed)[:, None] * np.array([0.5, 1.5])  # the rule sees their mean
    expected, jumped = factors(errors.mean(axis=1), sensitivity, decay)
    found = answers(errors, sensitivity=sensitivity, decay=decay)
    np.testing.assert_allclose([answer.metrics["factor"] for answer in found], expected, rtol=1e-4)
    for answer, error, factor in zip(found, errors, expected, strict=True):
        np.testing.assert_allclose(answer.value, factor * error, rtol=1e-4)
        np.testing.assert_allclose(answer.metrics["error"], error, rtol=1e-6)
    assert jumped[12] and jumped[30] and not np.all(jumped[3:]) and not np.any(expected[:4])


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]),  # not above the mean
        ([5, 1, 1, 9, 1, 1], [0, 0, 0, 0, 1, 0.5]),  # 9 > 2.33 + 2 * 1.89
        ([0, 0, 9, 0, 0, 0], [0, 0, 0, 0, 0, 0]),  # two earlier ones are too few
        ([1, 3, 2, 3.6, 0, 0], [0, 0, 0, 0, 0, 0]),  # 3.6 < 2 + 2 * 0.816
        ([1, 3, 2, 3.8, 0, 0], [0, 0, 0, 0, 1, 0.5]),  # 3.8 > it, but not > 2 + 2 * 1 of a sample's std
    ],
)
def test_the_rule_on_paper(answers, errors, expected):
    found = answers(np.array(errors, float)[:, None], decay=0.5)
    np.testing.assert_allclose([answer.metrics["factor"] for answer in found], expected)


@pytest.fixture(scope="module")
def with_elle_a(load, repository):
    """with_elle_a(changes) -> the tiny spec with ELLE-A as `lin`, logged at every step."""
    plugin = str(repository / "plugins" / "elle" / "elle.py")

    def made(changes=None):
        fixed = {"plugins": [plugin], "objective.terms.lin": ELLE_A, "train.log_every": 1, "evaluate.attacks": {}}
        return load({**fixed, **(changes or {})})

    return made


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(with_elle_a, tmp_path_factory):
    """Folder of a run of 24 steps on one device."""
    spec = with_elle_a({"train.steps": 24, "checkpoint.every": 8})
    return llrflow.run(spec, tmp_path_factory.mktemp("alone") / "run").path


def test_a_run_logs_factor_and_error(alone):
    lines = logged(alone)
    expected, jumped = factors([line["lin.error"] for line in lines], 0.5, 0.9)
    assert np.any(jumped) and len(lines) == 24
    np.testing.assert_allclose([line["lin.factor"] for line in lines], expected, rtol=1e-5)
    for line in lines:
        assert line["lin"] == pytest.approx(line["lin.factor"] * line["lin.error"], rel=1e-4)
        total = line["loss"] + 0.2 * line["gamma"] + 0.1 * line["slope"] + 10.0 * line["lin"]
        assert line["objective"] == pytest.approx(total, rel=1e-5)


def test_a_checkpoint_holds_the_state(alone, with_elle_a):
    lines, checkpoints = logged(alone), Checkpoints(alone / "checkpoints")
    target = llrflow.compile(with_elle_a()).abstract_state()
    assert checkpoints.steps()[-1] == 24 and len(checkpoints.steps()) > 1
    for step in checkpoints.steps():
        state = checkpoints.restore(target, step).terms["lin"]
        errors = [line["lin.error"] for line in lines[:step]]
        assert state["count"] == step and state["mean"] == pytest.approx(np.mean(errors), rel=1e-5)
        assert state["deviation"] / step == pytest.approx(np.var(errors), rel=1e-3)
        if step < 24:
            assert state["factor"] == pytest.approx(lines[step]["lin.factor"], rel=1e-6)


def test_two_devices_have_one_factor(alone, with_elle_a, tmp_path):
    llrflow.run(with_elle_a({"devices.count": 2, "train.steps": 24}), tmp_path / "run")
    single, double = logged(alone), logged(tmp_path / "run")
    factor = [line["lin.factor"] for line in single]
    assert max(factor) == 1.0 and [line["lin.factor"] for line in double] == factor
    for one, two in zip(single, double, strict=True):
        assert two["lin.error"] == pytest.approx(one["lin.error"], rel=1e-3)


def test_two_plugins_and_three_terms_are_validated_and_planned(tmp_path, command, write_spec, with_elle_a, plugin_file):
    changes = {
        "plugins": [plugin_file("elle"), plugin_file("grad_align")],
        "objective.terms.align": {"type": "grad_align", "weight": 0.1},
        "objective.terms.slope": None,
        "train.steps": 200,
        "devices.count": 2,
    }
    spec = write_spec(tmp_path / "spec.yaml", with_elle_a(changes).model_dump())
    assert len(llrflow.load_spec(spec).objective.terms) == 3
    code, out, err = command("validate", spec)
    assert code == 0 and "200 steps on 2" in out, err
    code, out, err = command("plan", spec, "--json")
    # Clean pass and its gradient (4), a search of 2 steps and its pass (7), a slope (3), three points of ELLE (9), and
    # a pass, a gradient and a derivative at GradAlign's point (7).
    assert code == 0 and json.loads(out)["forward_equivalents_per_step"] == 30, (out, err)
