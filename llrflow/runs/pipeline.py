"""One spec, one run folder: train, evaluate, and pick up wherever an earlier attempt stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np

from llrflow.base.errors import SpecError
from llrflow.base.files import write_atomic
from llrflow.base.progress import say
from llrflow.components.consent import remember
from llrflow.data.facts import describe
from llrflow.data.pipelines import Role, open_split, roles
from llrflow.data.split import Part, Split
from llrflow.program.compile import Program, compile_spec, located
from llrflow.program.group import Group
from llrflow.program.state import TrainState
from llrflow.runs.averages import estimated, with_statistics
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator
from llrflow.runs.folder import RunFolder, label_of
from llrflow.runs.interrupt import StopRequest, stop_requests
from llrflow.runs.ledger import Ledger, earlier, new_record
from llrflow.runs.looks import PREFIX, Chosen, chosen, ended_early, look_block, look_steps, measured
from llrflow.runs.model import stored_run
from llrflow.runs.predictions import spread
from llrflow.runs.records import DataRecord, EvaluationRecord, Images, RunRecord, versions
from llrflow.runs.start import Begun, start_of
from llrflow.runs.stored import stored_result
from llrflow.runs.surrogates import surrogates_of
from llrflow.runs.trackers import RunShower, require_trackers, run_shown
from llrflow.runs.train import Log, Trainer, begin, receive
from llrflow.spec.load import at, load_spec
from llrflow.spec.resolve import make_runs_absolute, resolve, spec_hash
from llrflow.spec.schema import Best, Checks, Evaluate, Spec
from llrflow.spec.source import dump_yaml


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with its record and the evaluation that was asked for."""

    path: Path
    record: RunRecord
    evaluation: EvaluationRecord
    why: str | None = None
    """What must be known of the choice of its checkpoint: it is not the newest, since that is damaged, or the best of
    few."""


def run(spec: Spec, out: str | Path | None = None, fresh: bool = False, quiet: bool = True) -> Run:
    """Train and evaluate a spec in a run folder, continuing what is there; a finished run is only read again.

    The folder is `out`, or runs/<name>-<hash of the resolved spec>. `fresh` starts over in a folder that
    must be named. What a folder that cannot be written holds of a finished run is given as it is. Raises
    Interrupted after Ctrl-C or SIGTERM, with everything saved; SpecError when the folder belongs to another
    spec or process, or would have to be written and cannot be; NonFiniteError when training diverges.
    """
    require_trackers(spec.train.trackers, "train.trackers", spec)
    folder = folder_of(spec, out)
    # The processes of a group wait for each other; `process_count` would start JAX's backend before devices are chosen.
    grouped = jax.distributed.is_initialized()
    if not grouped and not fresh and (why := folder.unwritable()) is not None:
        return Run(folder.path, *stored_result(spec, folder, why))
    with session(spec, out, fresh, quiet) as opened, opened.shown() as shower:
        opened.train()
        done = opened.evaluate()
        shower.evaluation(done.evaluation)
        return done


RUNS = Path("runs")
"""Where runs are written that no folder is named for."""


def folder_of(spec: Spec, out: str | Path | None) -> RunFolder:
    """Where the run of a spec is written."""
    if out is not None:
        return RunFolder(Path(out))
    with located(spec):
        return RunFolder(RUNS / run_name(spec, spec_hash(resolve(spec, describe(spec.data)))))


class Session:
    """A run under way in its folder, which no other process may touch meanwhile. Made by `session`."""

    def __init__(
        self,
        program: Program,
        group: Group,
        splits: dict[Role, Split],
        folder: RunFolder,
        checkpoints: Checkpoints,
        ledger: Ledger,
        stop: StopRequest,
        quiet: bool,
        start: Begun | None = None,
    ) -> None:
        self.program, self.group, self.folder = program, group, folder
        self._splits = splits
        self._ledger, self._checkpoints, self._stop, self._quiet = ledger, checkpoints, stop, quiet
        self._surrogates = surrogates_of(program)
        self._log = Log(folder, checkpoints, ledger.record.spec_hash)
        self._trainer = Trainer(program, group, splits["train"], self._log, quiet)
        self._state = begin(program, group, folder, checkpoints, say, start)
        ledger.rewind_metrics(self.step, program.spec.train.log_every)
        self._keep_best()

    @property
    def step(self) -> int:
        """Finished training steps."""
        return int(self.program.devices.fetch(self._state.step))

    @contextmanager
    def shown(self) -> Iterator[RunShower]:
        """Show what is logged to the trackers of `train.trackers` while the block runs. Raises SpecError."""
        with run_shown(self.program.spec, self.folder.path, self._ledger.record.spec_hash) as shower:
            self._log.also = shower.metrics
            yield shower

    def train(self, until: int | None = None) -> None:
        """Train to step `until`, by default to the end, and save; on the way look for the best checkpoint if asked."""
        best, end = self.program.spec.checkpoint.best, self.program.steps if until is None else until
        try:
            with self._log.opened(self.step):
                for step in pieces(self.program, self.step, end):
                    with self._ledger.timing(self._trainer.seconds):
                        self._state = self._trainer.train(self._state, self._stop, step)
                    if best is not None and self._enough(best, step):
                        break
        finally:
            if corrupt := self._splits["train"].corrupt_names():  # an earlier attempt may have met others
                found = dict.fromkeys([*self._ledger.record.corrupt, *corrupt])
                self._ledger.update(corrupt=list(found))
                say(f"{len(found)} training images cannot be decoded; others took their place")

    def _enough(self, best: Best, step: int) -> bool:
        """Look at a step that is to be looked at, unless that is on record, and say whether training is to stop."""
        if step not in look_steps(best, self.program.steps):
            return False
        found = chosen(self.folder.metric_lines())
        if found is None or found.last < step:
            block = look_block(self.program.spec.evaluate, best.attacks, Checks(examples=0))
            whole = self._splits["validation"]
            images = whole if best.images is None else Part(whole, spread(np.arange(len(whole)), best.images))
            spec = self.program.spec.model_copy(update={"evaluate": block})
            label = label_of({"images": best.images, **block.model_dump()})
            # The others of a group wait: only together they can stop.
            stop = self._stop if self.group.count == 1 else StopRequest()
            record = self._evaluate(spec, "look", self._fetched(), label, "validation", images, stop, quiet=True)
            self._log.write(step, {f"{PREFIX}{name}": value for name, value in measured(record).items()})
            self._log.flush()
            found = self._keep_best()
            assert found is not None
            if not self._quiet:
                known = f"the best so far {found.best_robust:.2%} at step {found.best}"
                say(f"step {step}: worst case {record.worst_case.accuracy:.2%} of validation images, {known}")
        return bool(self.group.share(np.bool_(ended_early(best, found))))

    def _keep_best(self) -> Chosen | None:
        """Protect the best checkpoint by the looks on record, and no other."""
        found = chosen(self.folder.metric_lines())
        self._checkpoints.protected = None if found is None else found.best
        return found

    def look(self, block: Evaluate, label: str, images: Images) -> EvaluationRecord:
        """Evaluate the present state with a block of its own; its record is evaluation/<step><label>.json, or in
        validation/ that of images held back."""
        spec = self.program.spec.model_copy(update={"evaluate": block})
        return self._evaluate(spec, "look", self._fetched(), label, images)

    def evaluate(self) -> Run:
        """Evaluate the trained state, or the best if looks have chosen one, as the spec says, and finish the run.

        This process does so alone: the group ends.
        """
        if self._ledger.record.state != "finished":
            self._ledger.update(state="trained")
        self.group.leave()
        state, found = self._fetched(), chosen(self.folder.metric_lines())
        if found is not None and found.best != int(state.step):
            state = self._checkpoints.restore(self.program.abstract_state(), found.best)
        evaluation = self._evaluate(self.program.spec, "evaluate", state)
        self._ledger.update(state="finished")
        return Run(self.folder.path, self._ledger.record, evaluation)

    def _fetched(self) -> TrainState:
        return self.program.devices.fetch(self._state)

    def _evaluate(
        self,
        spec: Spec,
        part: str,
        state: TrainState,
        label: str = "",
        images: Images = "test",
        split: Split | None = None,
        stop: StopRequest | None = None,
        quiet: bool | None = None,
    ) -> EvaluationRecord:
        program = Program(spec, self.program.facts, self.program.devices.alone())
        split, stop = self._splits[images] if split is None else split, self._stop if stop is None else stop
        quiet, seconds = self._quiet if quiet is None else quiet, {}
        with self._ledger.timing(seconds), _stopwatch(seconds, part):
            estimate = partial(estimated, program, state, lambda: self._splits["train"], stop, quiet)
            state, used = with_statistics(program, state, self._checkpoints, program.evaluated_parameters, estimate)
            evaluator = Evaluator(
                program,
                state,
                split,
                self.folder,
                self._ledger.record.spec_hash,
                stop,
                quiet,
                label,
                surrogates=self._surrogates,
                statistics_images=used,
                images=images,
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
        splits: dict[Role, Split] = {role: open_split(spec.data, role, spec.seed) for role in roles(spec.data)}
    train = splits["train"]
    data = DataRecord(
        image_shape=program.image_shape,
        classes=program.classes,
        fingerprint=train.fingerprint,
        train=len(train),
        test=len(splits["test"]),
        validation=program.facts.validation,
        extra=0 if program.facts.extra is None else program.facts.extra.train,
    )
    digest = spec_hash(resolve(spec, program.facts))
    group.agree(agreed(digest, train))
    if program.facts.warning is not None:
        say(f"warning: {program.facts.warning}")
    folder = RunFolder(Path(out) if out is not None else RUNS / run_name(spec, digest))
    # A run that cannot begin leaves no folder.
    start = None if folder.run.exists() and not fresh else start_of(program, before=None, trained=False)
    with folder.owned(), stop_requests() as stop:
        folder.clean()
        before = None if fresh else earlier(folder, digest, data)
        if fresh:
            folder.clear()
        program = _in_parts(spec, program, group, None if before is None else folder)
        taken_over = -1 if before is None else before.taken_over
        checkpoints = Checkpoints(folder.checkpoints, program.spec.checkpoint.keep, digest, taken_over)
        if before is not None:
            start = start_of(program, before, trained=bool(checkpoints.steps()))
        stored, seal = stored_spec(program.spec)
        record = new_record(program, spec, data, digest, before).model_copy(update=seal)
        if start is not None:
            record = record.model_copy(update={"start": start.record})
        # run.json is the first file: it marks the folder as a run's.
        ledger = Ledger(folder, checkpoints, record)
        write_atomic(folder.spec, stored)
        remember(spec.plugin_paths())
        with ledger.keeping():
            checkpoints.clean()
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
        split = open_split(spec.data, "train", spec.seed)
    group.agree(agreed(spec_hash(resolve(spec, program.facts)), split))
    program = _in_parts(spec, program, group, None)
    with stop_requests() as stop:
        trainer, state = Trainer(program, group, split, None, quiet=True), receive(program, group)
        looks = look_steps(program.spec.checkpoint.best, program.steps)
        for step in pieces(program, int(program.devices.fetch(state.step)), program.steps):
            state = trainer.train(state, stop, step)
            if step in looks and group.share(np.bool_(False)):
                break
        group.leave()


def pieces(program: Program, first: int, end: int) -> list[int]:
    """The steps up to which a training that is at step `first` goes on without a look, to step `end`."""
    looks = look_steps(program.spec.checkpoint.best, program.steps)
    return sorted({end, *(step for step in looks if first <= step <= end)})


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

    What `train.accumulate: auto` stands for may differ on other devices; with BatchNorm it changes numbers. Raises
    CheckpointError where the folder's spec.yaml is not what the run began with.
    """
    if spec.train.accumulate != "auto":
        return program
    begun = stored_run(folder)[1] if folder is not None and folder.spec.exists() else program.spec
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


def stored_spec(spec: Spec) -> tuple[bytes, dict[str, str]]:
    """What spec.yaml holds of a resolved spec, without its sweep, and what run.json knows of it.

    Plugin files and other runs stand there by absolute path, since the run folder lies elsewhere.
    """
    data = {**spec.model_dump(exclude={"sweep"}), "plugins": list(spec.plugin_paths())}
    make_runs_absolute(spec, data)
    stored = dump_yaml(data).encode()
    return stored, {"spec_sha256": hashlib.sha256(stored).hexdigest(), "stored_hash": spec_hash(load_spec(data))}


@contextmanager
def _stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - began
