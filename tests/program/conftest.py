"""Shared by the tests of programs: one training step after another, without a run folder."""

import pytest


@pytest.fixture(scope="session")
def batch_of():
    """batch_of(program, step) -> the Batch that a run feeds to that step."""
    from llrflow.data.pipelines import open_split
    from llrflow.program.state import Batch

    def make(program, step):
        spec = program.spec
        split = open_split(spec.data, "train", 0)
        return Batch(*next(split.batches(spec.seed, range(step, step + 1), spec.train.batch_size)))

    return make


@pytest.fixture(scope="session")
def train(batch_of):
    """train(program, steps) -> ([state before step 0, after it, ...], [metrics of step 0, ...]), unreplicated."""

    def run(program, steps):
        state = program.init()
        states, metrics = [program.devices.fetch(state)], []
        for step in range(steps):
            state, made = program.train_step(state, batch_of(program, step), step)
            states.append(program.devices.fetch(state))
            metrics.append(program.devices.fetch(made))
        assert states[-1].step == steps
        return states, metrics

    return run
