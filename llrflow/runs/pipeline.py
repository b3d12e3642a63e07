"""One spec, one run folder: train, evaluate, and pick up wherever an earlier attempt stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.errors import SpecError
from llrflow.base.files import write_atomic
from llrflow.base.progress import say
from llrflow.data.pipelines import open_split
from llrflow.data.split import Split
from llrflow.program.compile import Program, compile_spec, located
from llrflow.program.group import Group
from llrflow.runs.averages import estimated, with_statistics
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder, label_of
from llrflow.runs.interrupt import StopRequest, stop_requests
from llrflow.runs.ledger import Ledger, earlier, new_record
from llrflow.runs.records import DataRecord, EvaluationRecord, RunRecord, versions
from llrflow.runs.start import Begun, start_of
from llrflow.runs.surrogates import surrogates_of
from llrflow.runs.train import Log, Trainer, begin, receive
from llrflow.spec.load import at, load_spec
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import Evaluate, Spec
from llrflow.spec.source import dump_yaml


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with its record and the evaluation that was asked for."""

    path: Path
    record: RunRecord
    evaluation: EvaluationRecord


def run(spec: Spec, out: str | Path | None = None, fresh: bool = False, quiet: bool = True) -> Run:
    """Train and evaluate a spec in a run folder, continuing what is there; a finished run is only read again.

    The folder is `out`, or runs/<name>-<hash of the resolved spec>. `fresh` starts over in a folder that
    must be named. Raises Interrupted after Ctrl-C or SIGTERM, with everything saved; SpecError when the
    folder belongs to another spec or process; NonFiniteError when training diverges.
    """
    with session(spec, out, fresh, quiet) as opened:
        opened.train()
        return opened.evaluate()


class Session:
    """A run under way in its folder, which no other process may touch meanwhile. Made by `session`."""

    def __init__(
        self,
        program: Program,
        group: Group,
        splits: tuple[Split, Split],
        folder: RunFolder,
        checkpoints: Checkpoints,
        ledger: Ledger,
        stop: StopRequest,
        quiet: bool,
        start: Begun | None = None,
    ) -> None:
        self.program, self.group, self.folder = program, group, folder
        self._train, self._test = splits
        self._ledger, self._checkpoints, self._stop, self._quiet = ledger, checkpoints, stop, quiet
        self._surrogates = surrogates_of(program)
        log = Log(folder, checkpoints, ledger.record.spec_hash)
        self._trainer = Trainer(program, group, self._train, log, quiet)
        self._state = begin(program, group, folder, checkpoints, say, start)

    @property
    def step(self) -> int:
        """Finished training steps."""
        return int(self.program.devices.fetch(self._state.step))

    def train(self, until: int | None = None) -> None:
        """Train to step `until`, by default to the end, and save."""
        try:
            with self._ledger.timing(self._trainer.seconds):
                self._state = self._trainer.train(self._state, self._stop, until)
        finally:
            if names := self._train.corrupt_names():  # an earlier attempt may have met others
                found = dict.fromkeys([*self._ledger.record.corrupt, *names])
                self._ledger.update(corrupt=list(found))
                say(f"{len(found)} training images cannot be decoded; others took their place")

    def look(self, block: Evaluate) -> EvaluationRecord:
        """Evaluate the present state with a block of its own; its record is evaluation/<step>-<hash>.json."""
        spec = self.program.spec.model_copy(update={"evaluate": block})
        return self._evaluate(spec, "look", label_of(block.model_dump()))

    def evaluate(self) -> Run:
        """Evaluate the trained state as the spec says, and finish the run.

        This process does so alone: the group ends.
        """
        if self._ledger.record.state != "finished":
            self._ledger.update(state="trained")
        self.group.leave()
        evaluation = self._evaluate(self.program.spec, "evaluate")
        self._ledger.update(state="finished")
        return Run(self.folder.path, self._ledger.record, evaluation)

    def _evaluate(self, spec: Spec, part: str, label: str = "") -> EvaluationRecord:
        program = Program(spec, self.program.facts, self.program.devices.alone())
        seconds: dict[str, float] = {}
        with self._ledger.timing(seconds), _stopwatch(seconds, part):
            state = program.devices.fetch(self._state)
            estimate = partial(estimated, program, state, lambda: self._train, self._stop, self._quiet)
            state, images = with_statistics(program, state, self._checkpoints, program.evaluated_parameters, estimate)
            evaluator = Evaluator(
                program,
                state,
                self._test,
                self.folder,
                self._ledger.record.spec_hash,
                self._stop,
                self._quiet,
                label,
                surrogates=self._surrogates,
                statistics_images=images,
            )
            return evaluator.evaluate()


@contextmanager
def session(spec: Spec, out: str | Path | None = None, fresh: bool = False, quiet: bool = True) -> Iterator[Session]:
    """The run of a spec, to be trained in pieces, looked at and evaluated; arguments and errors as of `run`."""
    if fresh and out is None:
        raise SpecError("--fresh", "deletes what a run folder holds", "name the folder with --out DIR")
    program = compile_spec(spec)
    group = _group(program)
    with located(spec):
        splits = open_split(spec.data, "train"), open_split(spec.data, "test")
    data = DataRecord(
        image_shape=program.image_shape,
        classes=program.classes,
        fingerprint=splits[0].fingerprint,
        train=len(splits[0]),
        test=len(splits[1]),
        extra=0 if program.facts.extra is None else program.facts.extra.train,
    )
    digest = spec_hash(resolve(spec, program.facts))
    group.agree(agreed(digest, splits[0]))
    folder = RunFolder(Path(out) if out is not None else Path("runs") / run_name(spec, digest))
    # A run that cannot begin leaves no folder.
    start = None if folder.run.exists() and not fresh else start_of(program, before=None, trained=False)
    with folder.owned(), stop_requests() as stop:
        before = None if fresh else earlier(folder, digest, data)
        if fresh:
            folder.clear()
        program = _in_parts(spec, program, group, folder)
        checkpoints = Checkpoints(folder.checkpoints, program.spec.checkpoint.keep)
        if before is not None:
            start = start_of(program, before, trained=bool(checkpoints.steps()))
        record = new_record(program, spec, data, digest, before)
        if start is not None:
            record = record.model_copy(update={"start": start.record})
        # run.json is the first file: it marks the folder as a run's.
        ledger = Ledger(folder, checkpoints, record)
        write_atomic(folder.spec, dump_yaml(_storable(program.spec)).encode())
        with ledger.keeping():
            yield Session(program, group, splits, folder, checkpoints, ledger, stop, quiet, start)
            if ledger.record.state != "finished":
                left = f"left at step {ledger.record.step} of {program.steps}; run the same spec to continue"
                ledger.update(state="interrupted", error=left)


def assist(spec: Spec) -> None:
    """Train in a process of a group besides its first, which does `run`; it writes nothing and ends before evaluation.

    Raises as `run`.
    """
    program = compile_spec(spec)
    group = _group(program)
    with located(spec):
        split = open_split(spec.data, "train")
    group.agree(agreed(spec_hash(resolve(spec, program.facts)), split))
    program = _in_parts(spec, program, group, None)
    with stop_requests() as stop:
        Trainer(program, group, split, None, quiet=True).train(receive(program, group), stop)
        group.leave()


def _group(program: Program) -> Group:
    """The group that this process belongs to. SpecError, in all processes, where the spec wants another number."""
    group, spec = Group(program.devices), program.spec
    if spec.devices.hosts not in (1, group.count):
        group.leave()
        got = f"= {spec.devices.hosts}, but {group.count} process(es) train the model"
        fix = "start it with --address local|auto|HOST:PORT, or as many processes with --coordinator"
        raise at(spec, "devices.hosts", got, fix)
    return group


def _in_parts(spec: Spec, program: Program, group: Group, folder: RunFolder | None) -> Program:
    """The program with the parts of a batch that the run in `folder` began with, in all processes of the group.

    What `train.accumulate: auto` stands for may differ on other devices; with BatchNorm it changes numbers.
    """
    if spec.train.accumulate != "auto":
        return program
    begun = load_spec(folder.spec) if folder is not None and folder.spec.exists() else program.spec
    parts = int(group.share(np.int32(begun.train.parts)))
    if parts == program.spec.train.parts:
        return program
    return compile_spec(spec.model_copy(update={"train": spec.train.model_copy(update={"accumulate": parts})}))


def agreed(digest: str, split: Split) -> dict[str, str]:
    """What must be the same in all processes of a group."""
    return {"spec": digest, "dataset": split.fingerprint, "set of versions": json.dumps(versions())}


def run_name(spec: Spec, digest: str) -> str:
    """What the folder of a run is called: <name>-<hash of the resolved spec>."""
    return f"{spec.name}-{digest}"


def _storable(spec: Spec) -> dict[str, Any]:
    """The resolved spec as data, without its sweep.

    Plugin files and other runs by absolute path, since the run folder lies elsewhere.
    """
    data = {**spec.model_dump(exclude={"sweep"}), "plugins": list(spec.plugin_paths())}
    for attack in data["evaluate"]["attacks"].values():
        if attack.get("type") == "transfer":
            attack["run"] = str(Path(attack["run"]).absolute())
    return data


@contextmanager
def _stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - began
