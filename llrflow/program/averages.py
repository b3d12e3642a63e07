"""Averages of parameters: how they begin, what they weigh, and BatchNorm statistics of their own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from llrflow.components.registry import Component
from llrflow.models.network import mean_with, restarted
from llrflow.program.inputs import Inputs
from llrflow.program.state import Batch, TrainState
from llrflow.program.step import Pieces, neighbours, objective_at
from llrflow.spec.schema import Spec

MOST_OF_START = 0.01
"""Weight of the initial parameters in an average from which on `plan` warns of them."""


def with_batch(pieces: Pieces, state: TrainState, batch: Batch, seed: jax.Array) -> Any:
    """Moving statistics that take one more batch into account: the mean of those of batches 0 to `state.step`.

    `state` holds the parameters, and the mean over the batches before this one; for batch 0 the statistics that passes
    with moving ones shall begin with. Each batch's are those that a training step would take in: of the pass that the
    policy names, at the images that it would see.
    """
    if pieces.mix is not None:
        batch = batch._replace(partners=neighbours(batch))
    again = state._replace(model_state=restarted(state.model_state))
    _, (_, found) = objective_at(pieces, state.params, again, batch, seed, None, lambda probe: None)
    mean = mean_with(state.model_state, found.model_state, state.step)
    return pieces.frozen.kept_statistics(state.params, state.model_state, mean)


def short_average(spec: Spec, inputs: Inputs) -> str | None:
    """What is wrong with the average of a training that is too short for it, or None."""
    ema = spec.train.ema
    if ema is None:
        return None
    decays = inputs.over_training("train.ema").astype(np.float64)
    after = np.append(np.cumprod(decays[::-1])[::-1], 1.0)  # what is left of the parameters before each step
    weights = (1.0 - decays) * after[1:]
    if not isinstance(ema, Component) and decays[-1] < np.float32(ema):
        needed = int(np.ceil((10 * ema - 1) / (1 - ema)))
        return (
            f"train.ema = {ema:g} takes {needed:,} steps to warm up and training has {len(decays):,}: it ends at "
            f"{decays[-1]:.3g}, an average of about {1 / np.sum(weights**2):.0f} steps"
        )
    if after[0] > MOST_OF_START:
        return f"train.ema leaves the initial parameters {after[0]:.0%} of the average"
    if weights[-1] > 1.0 - MOST_OF_START:
        return "train.ema averages nothing but the last step"
    return None
