"""What a training step carries from one step to the next, and what it is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """Everything that a checkpoint holds, unreplicated; on devices each leaf has a leading device axis."""

    params: Any
    model_state: Any
    """Moving statistics of norm layers; empty for networks without."""
    optimizer_state: Any
    ema: Any
    """Exponential moving average of the parameters, or an empty tuple. Its BatchNorm statistics are no part of the
    state: they are estimated where it is evaluated."""
    terms: dict[str, Any]
    """Running states of stateful terms, by the term's name in the objective."""
    step: jax.Array
    """Number of finished steps, int32."""


class Batch(NamedTuple):
    """Training examples as they lie in memory."""

    images: Any
    """uint8 [B,H,W,C]."""
    labels: Any
    """int32 [B]."""
    ids: Any
    """int32 [B]: row of the example in its split; randomness is keyed by it."""
    partners: Any = None
    """Batch of the examples that these are mixed with, one each; None where nothing is mixed."""


class Placed(NamedTuple):
    """What a training step takes besides its state, on the devices."""

    batch: Batch
    """This process's part, its images still uint8: each leaf [D, B/D, ...]."""
    numbers: jax.Array
    """Values of the traced numbers at the step, float32 [D, N]."""
