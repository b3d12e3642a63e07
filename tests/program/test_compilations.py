"""Numbers are inputs of the compiled step: changing them compiles nothing (contract 2)."""

from contextlib import contextmanager

import jax
import pytest
from jax import monitoring

import llrflow

CONSTANTS = {
    "objective.terms.gamma.weight": 7.0,
    "objective.terms.slope.weight": 0.5,
    "objective.perturbations.llr.step.size": 0.07,
    "threat.epsilon": "8/255",
    "optimizer.learning_rate": 3e-4,
    "optimizer.b1": 0.8,
    "optimizer.clip_norm": 0.5,
    "train.ema": 0.5,
    "seed": 7,
    "train.steps": 30,
    "train.log_every": 1,
    "checkpoint.every": 7,
    "name": "another",
    "evaluate.attacks": {},
}
RAMP = {"type": "linear_schedule", "init_value": 0, "end_value": 2, "transition_steps": 5}
SCHEDULES = {"objective.terms.gamma.weight": RAMP, "optimizer.learning_rate": {**RAMP, "end_value": 0.01}}
BASE = {
    "train.ema": 0.9,
    "optimizer.clip_norm": 1.0,
    "objective.perturbations.llr.step": {"type": "steepest", "size": 0.1},
}


@contextmanager
def compilations():
    """The functions that XLA is asked to compile while the block runs."""
    asked = []

    def note(event, duration, **labels):
        if event == "/jax/core/compile/backend_compile_duration":
            asked.append(labels.get("fun_name"))

    monitoring.register_event_duration_secs_listener(note)
    try:
        yield asked
    finally:
        monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def compiled_by(load, batch_of):
    """compiled_by(changes, steps) -> what it compiles to begin a run of the changed spec and train a few steps."""

    def count(changes, steps=2):
        program = llrflow.compile(load({**BASE, **changes}))
        batches = [batch_of(program, step) for step in range(steps)]
        with compilations() as asked:
            state = program.init()
            for step, batch in enumerate(batches):
                state, _ = program.train_step(state, batch, step)
            jax.block_until_ready(state)
        return asked

    return count


def test_specs_that_differ_in_numbers_share_one_compilation(compiled_by):
    compiled_by({})
    assert compiled_by({}, steps=10) == []  # nor does any later step compile
    for changes in (*({path: value} for path, value in CONSTANTS.items()), CONSTANTS, SCHEDULES):
        assert compiled_by(changes) == [], changes


@pytest.mark.parametrize(
    "changes",
    [
        {"objective.perturbations.llr.steps": 3},
        {"model.widths": [8]},
        {"objective.terms.slope": {"type": "margin", "at": "llr"}},
    ],
    ids=["search steps", "model", "term"],
)
def test_a_change_of_structure_compiles_init_and_step_once_each(compiled_by, changes):
    compiled_by({})
    assert len(compiled_by(changes, steps=3)) == 2
    assert compiled_by({**changes, "threat.epsilon": 0.2}) == []
    assert compiled_by({}) == []  # the first program has not been thrown away


def test_the_evaluation_of_a_second_model_compiles_no_attack_anew(load, tmp_path):
    changes = {"train.steps": 2, "evaluate.checks.examples": 20, "objective.terms.gamma.weight": 0.3}
    llrflow.run(load(changes), tmp_path / "first")
    changes |= {"objective.terms.gamma.weight": 0.7, "threat.epsilon": 0.1, "seed": 3}
    with compilations() as asked:
        llrflow.run(load(changes), tmp_path / "second")
    assert asked == [], asked
