"""The training loop: batches in; metrics, checkpoints and a trained state out."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import jax

from llrflow.data.split import Split
from llrflow.errors import NonFiniteError
from llrflow.files import sync
from llrflow.program.compile import Program
from llrflow.program.state import Batch, TrainState
from llrflow.progress import progress
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.runs.records import RunFolder


def begin(program: Program, folder: RunFolder, checkpoints: Checkpoints, report: Callable[[str], None]) -> TrainState:
    """The state to train on from: the newest intact checkpoint, or a fresh one. Undoes whatever came after it."""
    step = checkpoints.newest_intact(report)
    checkpoints.discard_after(-1 if step is None else step)
    folder.rewind_metrics(step or 0)
    if step is None:
        return program.init()
    report(f"continuing from step {step} of {program.steps}")
    return program.devices.replicate(checkpoints.restore(program.abstract_state(), step))


class Trainer:
    """The training loop, from a state to the last step or to one before it."""

    def __init__(
        self, program: Program, split: Split, folder: RunFolder, checkpoints: Checkpoints, spec_hash: str, quiet: bool
    ) -> None:
        self.program, self.split, self.folder, self.checkpoints = program, split, folder, checkpoints
        self.spec_hash, self.quiet = spec_hash, quiet
        self.seconds = {"compile": 0.0, "train": 0.0}  # of the last call
        self._warm = False
        self._pending: deque[tuple[int, dict[str, Any]]] = deque()
        self._finite: tuple[int, dict[str, float]] | None = None

    def train(self, state: TrainState, stop: StopRequest, until: int | None = None) -> TrainState:
        """Train to step `until` (default the last) and save. Raises Interrupted after saving, NonFiniteError when the
        objective stops being finite."""
        from tensorboardX import SummaryWriter

        program, spec = self.program, self.program.spec
        first, end = int(program.devices.fetch(state.step)), program.steps if until is None else until
        with (
            self.folder.metrics.open("a") as log,
            SummaryWriter(str(self.folder.events), purge_step=first + 1) as events,
            progress("training", program.steps, self.quiet, first) as report,
            contextlib.ExitStack() as stack,  # however training ends, its time counts
        ):
            began = time.monotonic()
            self.seconds["compile"] = 0.0
            stack.callback(lambda: self.seconds.update(train=time.monotonic() - began))
            steps = range(first, end)
            batches = self.split.batches(spec.seed, steps, spec.train.batch_size)
            for step, batch in zip(steps, batches, strict=True):
                state, metrics = program.train_step(state, Batch(*batch), step)
                if not self._warm:
                    jax.block_until_ready(metrics)
                    self.seconds["compile"], began = time.monotonic() - began, time.monotonic()
                    self._warm = True
                self._pending.append((step + 1, metrics))
                done, last = step + 1, step + 1 == end
                if done % spec.train.log_every == 0 or last:
                    values = self._settle(log, events)
                    report(done, f"objective {values['objective']:.4g}, accuracy {values['accuracy']:.1%}")
                if done % spec.checkpoint.every == 0 or last or stop.signum is not None:
                    self._save(state, log, events)
                if stop.signum is not None and not last:
                    message = f"stopped at step {done} of {program.steps} and saved; run the same command to continue"
                    raise Interrupted(stop.signum, message)
        return state

    def _settle(self, log: TextIO, events: Any) -> dict[str, float]:
        """Fetch the pending metrics, refuse a non-finite objective, log the steps that are due; the last values."""
        values: dict[str, float] = {}
        spec = self.program.spec
        while self._pending:
            step, metrics = self._pending.popleft()
            values = {name: float(value) for name, value in self.program.devices.fetch(metrics).items()}
            if not math.isfinite(values["objective"]) or not math.isfinite(values["gradient_norm"]):
                raise NonFiniteError(self._obituary(step, values))
            self._finite = (step, values)
            if step % spec.train.log_every == 0 or step == self.program.steps:
                log.write(json.dumps({"step": step, **values}) + "\n")
                for name, value in values.items():
                    events.add_scalar(f"train/{name}", value, step)
        log.flush()
        return values

    def _save(self, state: TrainState, log: TextIO, events: Any) -> None:
        self._settle(log, events)
        sync(Path(log.name))  # the lines up to a checkpoint must outlive it
        self.checkpoints.save(self.program.devices.fetch(state), self.spec_hash)

    def _obituary(self, step: int, values: dict[str, float]) -> str:
        what = "gradient" if math.isfinite(values["objective"]) else "objective"
        last = "it never was finite"
        if self._finite is not None:
            last = f"last finite values, step {self._finite[0]}: " + _listed(self._finite[1])
        kept = self.checkpoints.steps()
        saved = f"checkpoint {kept[-1]} is kept" if kept else "no checkpoint was saved yet"
        return (
            f"the {what} is not finite at step {step} ({_listed(values)}); {last}; {saved}. "
            "Try a smaller learning rate, optimizer.clip_norm, or a warm-up of the weights"
        )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
