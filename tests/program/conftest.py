"""Shared by the tests of programs: one training step after another, without a run folder."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def batch_of():
    """batch_of(program, step) -> the Batch that a run feeds to that step."""
    from llrflow.data.batches import batch_ids
    from llrflow.data.resident import load_split
    from llrflow.program.state import Batch

    def make(program, step):
        spec = program.spec
        split = load_split(spec.data, spec.data.train)
        ids = batch_ids(spec.seed, step, len(split.labels), spec.train.batch_size)
        return Batch(split.images[ids], split.labels[ids], ids.astype(np.int32))

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
