"""A trial inside a worker: a Trainable of Tune whose every report is a look at a run folder.

One process runs many trials; those that differ in traced numbers alone share what the first one compiled.
"""

from __future__ import annotations

import functools
import os
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
from jax import monitoring
from ray.tune import Trainable

from llrflow.base.errors import DataError, LlrflowError, line_of
from llrflow.components.calls import plugin_files, raised_at
from llrflow.components.consent import decided_elsewhere
from llrflow.data.facts import describe
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.fork import fork
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.pipeline import Session, session
from llrflow.spec.load import load_spec
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.guard import broken_down
from llrflow.sweep.space.trials import base_of, load_trial, look_block, look_label, sweep_of
from llrflow.sweep.space.variants import VARIANT
from llrflow.sweep.tracking.looks import evaluation_of, look_at, record_of
from llrflow.sweep.tracking.storage import Ended, Storage

COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache
def _compilations() -> list[str]:
    """One entry for everything that XLA has compiled in this process since the first call."""
    found: list[str] = []

    def note(event: str, duration_secs: float, **labels: str | int) -> None:
        if event == COMPILED:
            found.append(str(labels.get("fun_name")))

    monitoring.register_event_duration_secs_listener(note)
    return found


@functools.lru_cache(maxsize=1)
def _spec(path: Path, start: str) -> Spec:
    if not path.exists():
        got = "is not there on this node"
        raise DataError(str(path), got, "the sweep's folder must be shared by all nodes under one path")
    return load_spec(path)


@functools.lru_cache(maxsize=8)
def _base(path: Path, start: str, variant: str | None) -> dict[str, Any]:
    return base_of(_spec(path, start), variant)


class TrialRunner(Trainable):
    """Trains one trial from rung to rung. `config["trial"]` is the driver's Task as a mapping."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing yet: what can fail does so in `step`, where it is put on record."""
        decided_elsewhere()  # by the driver
        self._config = config["trial"]
        self._reported = self._config["reported"]
        if jax.config.values["jax_compilation_cache_dir"] is None:  # for workers that start after others have compiled
            jax.config.update("jax_compilation_cache_dir", str(Storage(Path(self._config["storage"])).cache))
        self._stack: ExitStack = ExitStack()
        self._session: Session | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial into the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Let the run folder go, as it is."""
        self._stack.close()
        self._session = None

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """How many rungs were reported; all else is in the run folder. Asked for by schedulers that let trials wait."""
        storage, name = Storage(Path(self._config["storage"])), self._config["name"]
        if self._config["is_population"] and self._reported:
            made, step = Checkpoints(storage.run(name).checkpoints), self._config["rungs"][self._reported - 1]
            with suppress(FileNotFoundError, ValueError):  # of a rung that was only read from the record, or damaged
                made.copy_to(storage.pins(name), step)
        return {"reported": self._reported}

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        """Go on where the trial began to wait."""
        self._reported = checkpoint["reported"]

    def step(self) -> dict[str, Any]:
        """Train to the next rung and report; what is on record already is reported without training."""
        config, began = self._config, time.monotonic()
        storage, name = Storage(Path(config["storage"])), config["name"]
        spec, compiled = _spec(storage.spec, config["start"]), len(_compilations())
        try:
            report = self._advance(storage, spec)
        except Interrupted:
            raise
        except Exception as error:  # it would fail again: for Tune the trial is done, and this process takes another
            self._stack.__exit__(type(error), error, error.__traceback__)
            self._stack, self._session = ExitStack(), None
            record = record_of(storage.run(name))
            said = str(error) if isinstance(error, LlrflowError) else line_of(error)
            text = f"{type(error).__name__}{raised_at(error, plugin_files())}: {said}"
            step = 0 if record is None else record.step
            storage.end(name, Ended(state="failed", step=step, error=text, traceback=traceback.format_exc()))
            report = {"step": step, "done": True, "state": "failed"}
        worker = f"{os.uname().nodename}:{os.getpid()}"
        program = None if self._session is None else self._session.program
        return {
            sweep_of(spec).metric: config["worst"],  # where nothing was measured: Tune wants a number at each report
            **report,
            "rung": self._reported,
            "run": name,
            "worker": worker,
            "busy": time.monotonic() - began,
            "compilations": len(_compilations()) - compiled,
            "step_compilations": 0 if program is None else program.traced_steps,
        }

    def _advance(self, storage: Storage, spec: Spec) -> dict[str, Any]:
        sweep, folder = sweep_of(spec), storage.run(self._config["name"])
        trial, rungs = self._trial(spec), self._config["rungs"]
        label, record = look_label(trial, sweep), record_of(folder)
        reached = 0 if record is None else record.step
        target = rungs[self._reported]
        on = sweep.decide_on
        report = look_at(folder, target, label, on) if target <= reached else None
        if report is None:
            if not folder.run.exists():
                self._take_over(storage, trial, folder)
            opened = self._open(trial, folder.path)
            # The run has gone past rungs that nobody looked at: only where it stands can be looked at now.
            self._reported += sum(step < opened.step for step in rungs[self._reported :])
            opened.train(rungs[self._reported])
            opened.look(look_block(trial, sweep, last=opened.step == rungs[-1]), label, on)
            report = look_at(folder, opened.step, label, on)
            assert report is not None
        last = rungs[self._reported] == rungs[-1]
        finished = record is not None and record.state == "finished"
        self._reported += 1
        if not finished and (seen := self._broken_down(sweep, folder, label)):
            assert sweep.rung.guard is not None
            step, by = int(report["step"]), sweep.rung.guard.model_dump()
            storage.end(folder.path.name, Ended(state="stopped", step=step, by=by, error=seen))
            return {**report, "done": True, "state": "stopped"}
        if last:
            if not finished or evaluation_of(folder, rungs[-1]) is None:
                opened = self._open(trial, folder.path)
                opened.train()
                opened.evaluate()
            return {**report, "done": True, "state": "finished"}
        ended = storage.ended(folder.path.name)
        if ended is not None and ended.by == self._config["scheduler"] and rungs[self._reported] > ended.step:
            return {**report, "done": True, "state": "stopped"}
        return {**report, "state": "running"}

    def _take_over(self, storage: Storage, trial: Spec, folder: RunFolder) -> None:
        """Begin with the weights of another member. Where they are lost the trial trains to them by itself."""
        if self._config["source"] is None:
            return
        name, step = self._config["source"]
        pinned = storage.pins(name)
        if pinned.problem(step) is None:
            digest = spec_hash(resolve(trial, describe(trial.data)))
            fork(storage.run(name), pinned, step, trial, digest, folder.path)

    def _broken_down(self, sweep: Sweep, folder: RunFolder, label: str) -> str | None:
        """What the guard says of the rungs that were reported."""
        if sweep.rung.guard is None:
            return None
        looks = [look_at(folder, step, label, sweep.decide_on) for step in self._config["rungs"][: self._reported]]
        return broken_down(sweep.rung, [look for look in looks if look is not None])

    def _trial(self, spec: Spec) -> Spec:
        overrides, path = self._config["overrides"], Storage(Path(self._config["storage"])).spec
        return load_trial(spec, _base(path, self._config["start"], overrides.get(VARIANT)), overrides, overrides)

    def _open(self, trial: Spec, path: Path) -> Session:
        if self._session is None:
            self._session = self._stack.enter_context(session(trial, path))
        return self._session
