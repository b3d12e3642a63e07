"""Averages of parameters: how they begin, and the BatchNorm statistics that belong to them."""

import jax
import numpy as np
import pytest
from tree_difference import relative

import llrflow
from llrflow.data.pipelines import open_split
from llrflow.program.averages import short_average
from llrflow.program.state import Batch

NORMED = {"type": "cnn", "channels": [4], "dense": 0, "norm": "batch"}
PGD = {
    "objective.terms": None,
    "objective.perturbations.llr": None,
    "objective.perturbations.pgd": {"maximize": {"type": "cross_entropy"}, "steps": 2},
    "objective.loss.at": "pgd",
}
GROWING = {"type": "linear_schedule", "init_value": 0.01, "end_value": 0.3, "transition_steps": 3}
STILL = {"type": "sgd", "learning_rate": 0.0}
EQUAL = {"type": "equal_average", "begin": "50%"}


def compiled(load, **changes):
    return llrflow.compile(load({"model": NORMED, "train.ema": 0.5, **changes}))


def batches_of(program, count):
    split = open_split(program.spec.data, "train", 0)
    return [Batch(*batch) for batch in split.batches(program.spec.seed, range(count), program.spec.train.batch_size)]


def by_training(still, state, batches):
    """The mean over batches of the statistics that a training step leaves which moves no parameter."""
    found = []
    for step, batch in enumerate(batches):
        empty = {
            name: {key: leaf if key == "average" else 0 * leaf for key, leaf in leaves.items()}
            for name, leaves in state.model_state.items()
        }
        start = still.abstract_state()._replace(params=state.ema, model_state=empty, step=np.int32(step))
        after, _ = still.train_step(still.devices.replicate(start), batch, int(state.step))
        found.append(still.devices.fetch(after).model_state)
    return averages(jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *found))


def averages(model_state):
    return {name: leaves["average"] for name, leaves in model_state.items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {**PGD, "objective.perturbations.pgd.epsilon": GROWING}, {"data.augment": {"flip": {"type": "flip"}}}],
    ids=["llr", "pgd with a schedule", "flip"],
)
def test_statistics_are_those_that_training_would_leave_at_the_averaged_parameters(load, train, changes):
    program = compiled(load, **changes, **{"train.steps": 6})
    state = train(program, 6)[0][-1]
    batches = batches_of(program, 3)
    found = averages(program.averaged_statistics(state, batches))
    assert relative(found, by_training(compiled(load, **changes, optimizer=STILL), state, batches)) < 1e-5
    assert relative(found, averages(state.model_state)) > 0.01  # those of training are others


def test_statistics_of_perturbed_images_are_not_those_of_clean_ones(load, train):
    plain = compiled(load, **{"objective.terms": None, "objective.perturbations": None, "train.steps": 6})
    state, batches = train(plain, 6)[0][-1], batches_of(plain, 2)
    perturbed = averages(compiled(load, **PGD).averaged_statistics(state, batches))
    assert relative(averages(plain.averaged_statistics(state, batches)), perturbed) > 1e-3


def test_statistics_do_not_depend_on_the_number_of_devices(load, train):
    state = train(compiled(load), 6)[0][-1]
    one, two = (compiled(load, **{"devices.count": count}) for count in (1, 2))
    batches = batches_of(one, 2)
    assert relative(*(averages(p.averaged_statistics(state, batches)) for p in (one, two))) < 1e-5


def test_an_average_forgets_where_it_began(load, train):
    program = compiled(load, **{"train.ema": 0.999})
    states = train(program, 12)[0]
    expected = states[0].params
    for n, state in enumerate(states[1:]):
        decay = min(0.999, (1 + n) / (10 + n))
        expected = jax.tree.map(lambda e, p, decay=decay: decay * e + (1 - decay) * p, expected, state.params)
    assert relative(states[-1].ema, expected) < 1e-5
    decays = program.inputs.over_training("train.ema")
    assert np.prod(decays) < 1e-5 and 0.999**12 > 0.98  # what is left of the initial parameters, then and before


def test_a_schedule_of_the_decay_is_taken_as_it_stands(load):
    decays = compiled(load, **{"train.ema": EQUAL}).inputs.over_training("train.ema")
    np.testing.assert_allclose(decays, [0] * 6 + [n / (n + 1) for n in range(6)], rtol=1e-6)


@pytest.mark.parametrize(
    ("ema", "says"),
    [
        (None, None),
        (0.5, None),
        (EQUAL, None),
        (0.999, "takes 8,990 steps to warm up and training has 12: it ends at 0.571, an average of about"),
        ({"type": "constant_schedule", "value": 0.9}, "leaves the initial parameters 28% of the average"),
        ({"type": "equal_average", "begin": 11}, "averages nothing but the last step"),
    ],
)
def test_a_training_too_short_for_its_average_is_told(load, ema, says):
    program = compiled(load, **{"train.ema": ema})
    found = short_average(program.spec, program.inputs)
    assert found is None if says is None else says in found
