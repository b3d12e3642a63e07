"""Numbers that follow a schedule: what the table holds, and that training really uses it."""

import re
import textwrap

import numpy as np
import optax
import pytest
import yaml

import llrflow
from llrflow.base.errors import LlrflowError


def ramp(end, steps, start=0):
    return {"type": "linear_schedule", "init_value": start, "end_value": end, "transition_steps": steps}


def test_the_table_holds_what_optax_computes(load):
    changes = {
        "train.steps": 22 * 3,  # three epochs of 1,437 images in batches of 64
        "optimizer.learning_rate": {"type": "cosine_decay_schedule", "init_value": 2e-3, "decay_steps": "100%"},
        "objective.terms.gamma.weight": ramp(4.0, "1 epoch"),
        "objective.perturbations.llr.epsilon": ramp(0.15, "50%"),
        "objective.terms.slope.weight": {
            "type": "piecewise",
            "pieces": {0: 3, "50%": ramp(4.0, "2 epochs"), 60: "1/3"},
        },
        "train.ema": {
            "type": "piecewise_constant_schedule",
            "init_value": 0.5,
            "boundaries_and_scales": {"2 epochs": 1.5},
        },
    }
    inputs = llrflow.compile(load(changes)).inputs
    expected = {
        "optimizer.learning_rate": optax.cosine_decay_schedule(2e-3, 66),
        "objective.terms.gamma.weight": optax.linear_schedule(0, 4.0, 22),
        "objective.perturbations.llr.epsilon": optax.linear_schedule(0, 0.15, 33),
        "train.ema": optax.piecewise_constant_schedule(0.5, {44: 1.5}),
        "objective.terms.slope.weight": lambda step: 3 if step < 33 else min(step / 11, 4) if step < 60 else 1 / 3,
        "threat.epsilon": lambda step: 0.15,
    }
    assert set(expected) < set(inputs.names)
    for step in (0, 1, 10, 22, 33, 43, 44, 45, 65):
        values = dict(zip(inputs.names, inputs.at(step), strict=True))
        for name, schedule in expected.items():
            assert values[name] == pytest.approx(float(schedule(step)), rel=1e-6, abs=1e-9), (name, step)
    np.testing.assert_array_equal(inputs.at(1000), inputs.at(65))


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ({0: 1, 5: ramp(4.0, "200%")}, "follows a schedule of 24 steps, training has 12"),
        ({0: 1, "200%": 2}, "follows a schedule of 24 steps, training has 12"),
        ({0: -1}, "would reward the term"),
        ({0: 1, 6: 5, "50%": 2}, "has two entries for one step"),
    ],
)
def test_pieces_that_cannot_all_hold_are_refused(pieces, says, load):
    weight = {"type": "piecewise", "pieces": pieces}
    with pytest.raises(LlrflowError, match=says):
        llrflow.compile(load({"objective.terms.gamma.weight": weight}))


def test_a_weight_warm_up_changes_the_objective_as_computed_by_hand(load, train):
    weight = ramp(6.0, 4)
    program = llrflow.compile(load({"objective.terms.gamma.weight": weight, "train.steps": 6}))
    _, metrics = train(program, 6)
    for step, found in enumerate(metrics):
        scale = 6.0 * min(step / 4, 1.0)
        by_hand = found["loss"] + scale * found["gamma"] + 0.1 * found["slope"]
        assert found["objective"] == pytest.approx(by_hand, rel=1e-5), step
    assert metrics[3]["gamma"] > 1e-4  # or the weight would not matter


def test_an_epsilon_warm_up_is_the_radius_of_its_search(load, train):
    changes = {"objective.perturbations.llr.epsilon": ramp(0.15, 3), "optimizer": {"type": "sgd", "learning_rate": 0.0}}
    _, metrics = train(llrflow.compile(load({**changes, "train.steps": 5})), 5)
    assert abs(metrics[0]["gamma"]) < 1e-6 and metrics[0]["slope"] == 0  # radius 0, and two passes that may round apart
    for step, radius in ((1, 0.05), (2, 0.10), (3, 0.15), (4, 0.15)):
        fixed = {**changes, "objective.perturbations.llr.epsilon": radius, "train.steps": 5}
        _, constant = train(llrflow.compile(load(fixed)), step + 1)
        assert metrics[step]["gamma"] == pytest.approx(constant[step]["gamma"], rel=1e-5)
        assert constant[step]["gamma"] > 0


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("objective.perturbations.llr.epsilon", ramp(0.1, 5, -0.1), r"takes the value -0\.1, which must be >= 0"),
        ("optimizer.learning_rate", ramp(-1, 11), r"takes the value -1, which must be >= 0"),
        ("train.ema", ramp(1.0, 4), r"takes the value 1, which must be < 1"),
        (
            "objective.terms.gamma.weight",
            {"type": "exponential_decay", "init_value": 1, "transition_steps": 1, "decay_rate": 1e30},
            r"takes the value inf, which is not finite",
        ),
        (
            "optimizer.learning_rate",
            {"type": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 0},
            r"decay_steps",
        ),
    ],
    ids=["negative radius", "negative rate", "ema of 1", "overflow", "no steps"],
)
def test_a_schedule_that_leaves_its_bounds_is_refused_before_training(load, path, value, says):
    with pytest.raises(llrflow.SpecError, match=says) as caught:
        llrflow.compile(load({path: value}))
    assert path in str(caught.value)


def test_an_attack_cannot_follow_a_schedule_and_the_spec_says_so_before_training(load):
    with pytest.raises(llrflow.SpecError, match="schedule"):
        llrflow.compile(load({"evaluate.attacks.pgd.step": {"type": "sign", "size": ramp(0.1, 5, 0.01)}}))


def test_rates_that_rise_and_fall_are_those_of_the_documentation(load, repository):
    page = (repository / "docs" / "training.md").read_text()
    section = page.split("## Rates that rise and fall")[1].split("\n## ")[0]
    blocks = [yaml.safe_load(textwrap.dedent(block)) for block in re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)]
    corners = (  # at some of 100 steps
        {0: 0.2 / 25, 15: (0.2 + 0.2 / 25) / 2, 30: 0.2, 65: (0.2 + 0.2 / 25 / 1e4) / 2},
        {0: 0, 20: 0.1, 40: 0.2, 70: 0.1, 97: 0.01},
        {0: 0.01, 25: 0.2, 50: 0.01, 75: 0.1, 99: 0.0136},
    )
    for block, values in zip(blocks, corners, strict=True):
        inputs = llrflow.compile(load({**block, "train.steps": 100})).inputs
        at = inputs.names.index("optimizer.learning_rate")
        rates = [float(inputs.at(step)[at]) for step in range(100)]
        assert max(rates) == pytest.approx(0.2)
        assert {step: rates[step] for step in values} == pytest.approx(values, rel=1e-5, abs=1e-8), block
