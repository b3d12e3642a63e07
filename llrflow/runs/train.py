"""The training loop: batches in; metrics, checkpoints and a trained state out."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from llrflow.base.errors import CheckpointError, NonFiniteError
from llrflow.base.files import sync
from llrflow.base.progress import progress
from llrflow.data.split import Split
from llrflow.program.compile import Program
from llrflow.program.group import Group
from llrflow.program.state import Batch, Placed, TrainState
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.events import Events
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.looks import PREFIX, is_look
from llrflow.runs.start import Begun


def begin(
    program: Program,
    group: Group,
    folder: RunFolder,
    checkpoints: Checkpoints,
    report: Callable[[str], None],
    start: Begun | None = None,
) -> TrainState:
    """The state to train on from: the newest intact checkpoint, or a fresh one. Undoes whatever came after it.

    A fresh one has the arrays of `start`. The other processes of the group get it by `receive`. Raises CheckpointError
    where the run needs its start once more, and it is gone.
    """
    step = checkpoints.newest_intact(report)
    if step is None and program.spec.model.start is not None and start is None:
        got = "has no intact checkpoint any more, and its `model.start` is gone"
        raise CheckpointError(str(folder.path), got, "put it back, or start over with --fresh --out")
    checkpoints.discard_after(-1 if step is None else step)
    group.share(np.bool_(step is not None))
    if step is None:
        return _fresh(program, group, start)
    report(f"continuing from step {step} of {program.steps}")
    return program.devices.replicate(group.share(checkpoints.restore(program.abstract_state(), step)))


def receive(program: Program, group: Group) -> TrainState:
    """The state that process 0 begins with."""
    if not group.share(np.bool_(False)):
        return _fresh(program, group, None)
    return program.devices.replicate(group.share(program.abstract_state()))


def _fresh(program: Program, group: Group, start: Begun | None) -> TrainState:
    """A fresh state, with the arrays of process 0's `start` where the spec names some."""
    state = program.init()
    if program.spec.model.start is None:
        return state
    fresh = program.devices.fetch(state)
    return program.devices.replicate(group.share(fresh if start is None else start.into(fresh)))


class Log:
    """What training leaves in a run folder: metric lines, events and checkpoints."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, spec_hash: str) -> None:
        self.checkpoints = checkpoints
        self.also: Callable[[int, dict[str, float]], None] = lambda step, values: None
        """Called with every line."""
        self._folder, self._spec_hash = folder, spec_hash

    @contextlib.contextmanager
    def opened(self, first: int) -> Iterator[None]:
        """Append lines, and events from step `first` on, while the block runs."""
        with (
            self._folder.metrics.open("a") as self._lines,
            contextlib.closing(Events(self._folder.events, first + 1)) as self._events,
        ):
            yield

    def write(self, step: int, values: dict[str, float]) -> None:
        """The values of a step."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            tag = name if is_look(values) else f"train/{name}"
            self._events.add(tag.replace(PREFIX, "validation/"), value, step)
        self.also(step, values)

    def flush(self) -> None:
        """Let readers see the lines."""
        self._lines.flush()
        self._events.flush()

    def save(self, state: TrainState) -> None:
        """Save an unreplicated state."""
        sync(self._folder.metrics)  # the lines up to a checkpoint must outlive it
        self.checkpoints.save(state, self._spec_hash)


AHEAD = 2
"""Batches that are on the devices, or on their way, before their step begins; and steps under way at once."""


def ahead(placed: Iterator[Placed]) -> Iterator[Placed]:
    """The same, of which `AHEAD` more than were handed out are on their way to the devices."""
    waiting = deque(itertools.islice(placed, AHEAD))
    while waiting:
        waiting.extend(itertools.islice(placed, 1))
        yield waiting.popleft()


class Trainer:
    """The training loop, from a state to the last step or to one before it."""

    def __init__(self, program: Program, group: Group, split: Split, log: Log | None, quiet: bool) -> None:
        """The log must be open while it trains. Without one nothing is written: so train the processes of a group
        besides its first."""
        self.program, self.group, self.split, self.log, self.quiet = program, group, split, log, quiet
        self.seconds = {"compile": 0.0, "train": 0.0}  # of the last call
        self._warm = False
        self._pending: deque[tuple[int, dict[str, Any]]] = deque()
        """Steps whose metrics are on the devices still."""
        self._finite: tuple[int, dict[str, float]] | None = None

    def train(self, state: TrainState, stop: StopRequest, until: int | None = None) -> TrainState:
        """Train to step `until` (default the last) and save. Raises Interrupted after saving, NonFiniteError when the
        objective stops being finite; then all processes of the group do, and it has ended."""
        try:
            return self._train(state, stop, until)
        except (Interrupted, NonFiniteError):
            self.group.leave()
            raise

    def _train(self, state: TrainState, stop: StopRequest, until: int | None) -> TrainState:
        program, group, spec = self.program, self.group, self.program.spec
        first, end = int(program.devices.fetch(state.step)), program.steps if until is None else until
        with (
            progress("training", program.steps, self.quiet, first) as report,
            contextlib.ExitStack() as stack,  # however training ends, its time counts
        ):
            began = time.monotonic()
            self.seconds["compile"] = 0.0
            stack.callback(lambda: self.seconds.update(train=time.monotonic() - began))
            steps = range(first, end)
            batches = self.split.batches(spec.seed, steps, spec.train.batch_size, group.index, group.count)
            made = (program.place(Batch(*batch), step) for step, batch in zip(steps, batches, strict=True))
            for step, placed in zip(steps, ahead(made), strict=True):
                if len(self._pending) >= AHEAD:
                    jax.block_until_ready(self._pending[-AHEAD][1])
                state, metrics = program.advance(state, placed)
                if not self._warm:
                    jax.block_until_ready(metrics)
                    self.seconds["compile"], began = time.monotonic() - began, time.monotonic()
                    self._warm = True
                signum = group.stop_signal(stop.signum)
                self._pending.append((step + 1, metrics))
                done, last = step + 1, step + 1 == end
                if step % spec.train.log_every == 0:  # the step before is due; this one computes while it is fetched
                    self._settle(report, keep=1)
                if done % spec.checkpoint.every == 0 or last or signum is not None:
                    self._settle(report)
                    if self.log:
                        self.log.save(program.devices.fetch(state))
                if signum is not None and not last:
                    message = f"stopped at step {done} of {program.steps} and saved; run the same command to continue"
                    raise Interrupted(signum, message)
        return state

    def _settle(self, report: Callable[[int, str], None], keep: int = 0) -> None:
        """Fetch the pending metrics, but for those of the last `keep` steps; refuse a non-finite objective, and log the
        steps that are due."""
        due = [self._pending.popleft() for _ in range(len(self._pending) - keep)]
        for (step, _), fetched in zip(due, self.program.devices.fetch([metrics for _, metrics in due]), strict=True):
            values = {name: float(value) for name, value in fetched.items()}
            if not math.isfinite(values["objective"]) or not math.isfinite(values["gradient_norm"]):
                raise NonFiniteError(self._obituary(step, values))
            self._finite = (step, values)
            if step % self.program.spec.train.log_every == 0 or step == self.program.steps:
                report(step, f"objective {values['objective']:.4g}, accuracy {values['accuracy']:.1%}")
                if self.log:
                    self.log.write(step, values)
        if self.log:
            self.log.flush()

    def _obituary(self, step: int, values: dict[str, float]) -> str:
        what = "gradient" if math.isfinite(values["objective"]) else "objective"
        last = "it never was finite"
        if self._finite is not None:
            last = f"last finite values, step {self._finite[0]}: " + _listed(self._finite[1])
        kept = self.log.checkpoints.steps() if self.log else []
        saved = f"checkpoint {kept[-1]} is kept" if kept else "no checkpoint was saved yet"
        return (
            f"the {what} is not finite at step {step} ({_listed(values)}); {last}; {saved}. "
            "Try a smaller learning rate, optimizer.clip_norm, or a warm-up of the weights"
        )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
