"""BatchNorm statistics of averaged parameters: estimated from training images once, and kept with their checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from llrflow.base.errors import CheckpointError, DataError
from llrflow.base.progress import progress
from llrflow.data.pipelines import open_split
from llrflow.data.split import Split
from llrflow.models.network import has_statistics
from llrflow.program.compile import Program
from llrflow.program.state import Batch, TrainState
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.spec.load import at

SAMPLES = 10_000
"""Training images that statistics are estimated from, or all: 1,000 to 10,000 do (Wu & Johnson 2021, arXiv:2105.07576).
"""


class Chosen(NamedTuple):
    """A checkpoint's state whose statistics belong to the parameters that were asked for."""

    state: TrainState
    images: int | None
    """Training images that its statistics were estimated from; None where they are those of training."""


def with_statistics(
    program: Program,
    state: TrainState,
    checkpoints: Checkpoints,
    parameters: Literal["raw", "ema"],
    estimate: Callable[[], tuple[Any, int]] | None = None,
) -> Chosen:
    """The state of a saved checkpoint with BatchNorm statistics of its averaged parameters, if these are asked for.

    They are those kept with the checkpoint, or else what `estimate` gives, which is kept. Raises CheckpointError where
    there are none and no `estimate`.
    """
    if parameters == "raw" or not has_statistics(state.model_state):
        return Chosen(state, None)
    step = int(state.step)
    kept = checkpoints.statistics(step, state.model_state)
    if kept is None:
        if estimate is None:
            got = f"has no BatchNorm statistics of checkpoint {step}'s averaged parameters yet"
            fix = f"estimate them by `llrflow evaluate RUN --checkpoint {step}`, or ask for `raw` parameters"
            raise CheckpointError(str(checkpoints.directory), got, fix)
        kept = estimate()
        checkpoints.keep_statistics(step, *kept)
    statistics, images = kept
    return Chosen(state._replace(model_state=statistics), images)


def training_images(program: Program) -> Split:
    """The training split, to estimate statistics from. Raises SpecError where it cannot be opened."""
    try:
        return open_split(program.spec.data, "train", program.spec.seed)
    except DataError as error:
        got = f"averages a network with BatchNorm, whose statistics need training images: {error.where} {error.got}"
        raise at(program.spec, "train.ema", got, f"{error.fix}, or evaluate with `parameters: raw`") from None


def estimated(
    program: Program, state: TrainState, images: Callable[[], Split], stop: StopRequest, quiet: bool
) -> tuple[Any, int]:
    """BatchNorm statistics of the averaged parameters, and from how many training images.

    The batches are the first ones of training, of the size that one computation of the gradient sees on one host.
    Raises Interrupted between batches.
    """
    split = images()
    train, devices = program.spec.train, len(program.devices)
    share = train.batch_size // (train.parts * program.spec.devices.hosts)
    size = max(devices, share // devices * devices)
    count = max(1, min(len(split), SAMPLES) // size)
    batches = (Batch(*batch) for batch in split.batches(program.spec.seed, range(count), size))
    with progress("statistics of the averaged parameters", count * size, quiet) as report:

        def between(done: int) -> None:
            report(done * size)
            if stop.signum is not None:
                raise Interrupted(stop.signum, "evaluation stopped; run the same command to continue")

        return program.averaged_statistics(state, batches, between), count * size
