"""A run's run.json: what an earlier attempt left in it, how it begins, and how it is kept up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from llrflow.base.errors import CheckpointError, LlrflowError, SpecError
from llrflow.base.files import no_room, write_atomic
from llrflow.base.progress import say
from llrflow.program.compile import Program
from llrflow.program.cost import parts
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.records import DataRecord, RunRecord, StretchRecord, git_state, versions
from llrflow.spec.schema import Spec


class Ledger:
    """Keeps run.json up to date while a run goes on, and tells how it ended."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, record: RunRecord) -> None:
        self._folder, self._checkpoints, self.record = folder, checkpoints, record
        self._seals = False
        self.update()
        checkpoints.on_save = self.update

    def update(self, **changes: Any) -> None:
        """Write the record with some fields changed; `step` is that of the newest checkpoint."""
        step = max(self._checkpoints.steps(), default=0)
        known = {"metrics": self._folder.metrics_known()} if self._seals else {}
        self.record = self.record.model_copy(update={"step": step, **known, **changes})
        self.record.write(self._folder.run)

    def rewind_metrics(self, step: int, log_every: int) -> None:
        """Drop the metric lines after `step`, which training writes again; say what is missing of those before."""
        kept, problem = self._folder.metrics_up_to(step), self._folder.metrics_problem(self.record)
        there = self._folder.metrics_known(kept)
        expected = step // log_every + (step == self.record.steps and step % log_every > 0)
        if there.lines - there.looks < expected and self.record.forked is None:
            problem = f"{self._folder.metrics} holds {there.lines - there.looks} of {expected} lines up to step {step}"
        if problem is not None and step > 0:  # before the first step no line is missed
            say(f"{problem}: the run goes on without what is missing")
            found = dict.fromkeys([*self.record.found_changed, problem])
            self.record = self.record.model_copy(update={"found_changed": list(found)})
        # First what will be true: a kill before the file is cut leaves one that begins as run.json says.
        self.update(metrics=there)
        write_atomic(self._folder.metrics, kept)
        self._seals = True

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Record how the block ended when it did not end well."""
        try:
            yield
        except Interrupted as stopped:
            self.update(state="interrupted", error=str(stopped))
            raise
        except Exception as error:
            self._checkpoints.clean()  # of a full disk this is some room
            full = no_room(error)
            told = f"{type(error).__name__}: {error}" if full is None else full
            with suppress(OSError) if full else nullcontext():
                self.update(state="failed", error=told)
            if full is None:
                raise
            where = f"{self._folder.path}: {full}; step {self.record.step} is the last that was saved"
            raise LlrflowError(f"{where}; make room, and run the same command to continue") from error

    @contextmanager
    def timing(self, seconds: dict[str, float]) -> Iterator[None]:
        """Add the times that the block leaves in `seconds` to the record, however it ends."""
        try:
            yield
        finally:
            total = {k: round(self.record.seconds.get(k, 0.0) + v, 3) for k, v in seconds.items()}
            self.update(seconds={**self.record.seconds, **total})


def new_record(program: Program, spec: Spec, data: DataRecord, digest: str, before: RunRecord | None) -> RunRecord:
    """The record that a run begins with: its own, or the one `before` that it goes on from."""
    devices = [str(device) for device in program.devices.all]
    if before is not None:  # what trained the network so far stays on record
        state = "finished" if before.state == "finished" else "training"
        stretches = before.stretches if before.state in ("finished", "trained") else _stretches(before, devices)
        return before.model_copy(update={"name": spec.name, "state": state, "error": None, "stretches": stretches})
    return RunRecord(
        name=spec.name,
        spec_hash=digest,
        state="training",
        step=0,
        steps=program.steps,
        seed=spec.seed,
        data=data,
        devices=devices,
        versions=versions(),
        git=git_state(),
        seconds={},
        origins=spec.origins(),
        trained_on_test=program.facts.trained_on_test,
        forward_equivalents=sum(part.total for part in parts(program).values()),
    )


def _stretches(before: RunRecord, devices: list[str]) -> list[StretchRecord]:
    """Those of a run that goes on here; what is not as it was is said."""
    last: RunRecord | StretchRecord = before.stretches[-1] if before.stretches else before
    now, then = versions(), last.versions
    changed = [f"{name} {now[name]}, before {then.get(name)}" for name in now if now[name] != then.get(name)]
    if devices != last.devices:
        changed.append(f"{len(devices)} device(s) ({devices[0]}...), before {len(last.devices)} ({last.devices[0]}...)")
    if not changed:
        return before.stretches
    say(f"goes on from step {before.step} with {'; '.join(changed)}: numbers may differ from those of an unbroken run")
    return [*before.stretches, StretchRecord(step=before.step, devices=devices, versions=now)]


def earlier(folder: RunFolder, digest: str, data: DataRecord) -> RunRecord | None:
    """The record of the run that the folder holds, or None where none has begun.

    Raises SpecError where it is another spec's run, CheckpointError where run.json cannot be read or the dataset has
    changed since.
    """
    record = folder.record()
    if record is None:
        return None
    if record.spec_hash != digest:
        got = f"holds a run of another spec (hash {record.spec_hash}, this one has {digest})"
        raise SpecError(str(folder.path), got, "choose another --out, or start over there with --fresh --out")
    if record.imported is not None:
        got = f"holds a network that was imported from {record.imported.path}, which is not trained further there"
        fix = f"to train on from it set model.start.run={folder.path} in a spec, with another --out"
        raise SpecError(str(folder.path), got, fix)
    if record.data != data:
        got = f"the dataset has changed since this run began: {_difference(record.data, data)}"
        raise CheckpointError(str(folder.run), got, "restore the dataset, or start over with --fresh --out")
    return record


def _difference(before: DataRecord, now: DataRecord) -> str:
    """What is not the same any more."""
    fields = [name for name in DataRecord.model_fields if getattr(before, name) != getattr(now, name)]
    told = [name for name in fields if name != "fingerprint"]
    if not told:
        return f"its content has (fingerprint {before.fingerprint[:12]}, now {now.fingerprint[:12]})"
    return ", ".join(f"{name} was {getattr(before, name)}, is {getattr(now, name)}" for name in told)
