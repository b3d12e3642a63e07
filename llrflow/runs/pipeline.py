"""One spec, one run folder: train, evaluate, and pick up wherever an earlier attempt stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import sole_owner, write_atomic
from llrflow.base.progress import say
from llrflow.data.pipelines import open_split
from llrflow.data.split import Split
from llrflow.program.compile import Program, compile_spec, located
from llrflow.program.cost import parts
from llrflow.program.group import Group
from llrflow.runs.averages import estimated, training_images, with_statistics
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.evaluate import Evaluator, Surrogate, hash_of
from llrflow.runs.folder import RunFolder, label_of
from llrflow.runs.interrupt import Interrupted, StopRequest, stop_requests
from llrflow.runs.model import chosen_step, load_model, stored_run
from llrflow.runs.presets import evaluate_block
from llrflow.runs.records import DataRecord, EvaluationRecord, RunRecord, git_state, versions
from llrflow.runs.train import Log, Trainer, begin, receive
from llrflow.spec.load import at
from llrflow.spec.resolve import spec_hash
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
        ledger: _Ledger,
        stop: StopRequest,
        quiet: bool,
    ) -> None:
        self.program, self.group, self.folder = program, group, folder
        self._train, self._test = splits
        self._ledger, self._checkpoints, self._stop, self._quiet = ledger, checkpoints, stop, quiet
        self._surrogates = _surrogates(program)
        log = Log(folder, checkpoints, ledger.record.spec_hash)
        self._trainer = Trainer(program, group, self._train, log, quiet)
        self._state = begin(program, group, folder, checkpoints, say)

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
            if self._train.corrupt:  # an earlier attempt may have met others
                found = dict.fromkeys([*self._ledger.record.corrupt, *self._train.corrupt_names()])
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

            def estimate() -> tuple[Any, int]:
                return estimated(program, state, self._train, self._stop, self._quiet)

            chosen = with_statistics(program, state, self._checkpoints, program.evaluated_parameters, estimate)
            evaluator = Evaluator(
                program,
                chosen.state,
                self._test,
                self.folder,
                self._ledger.record.spec_hash,
                self._stop,
                self._quiet,
                label,
                surrogates=self._surrogates,
                statistics_images=chosen.images,
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
    )
    digest = spec_hash(program.spec)
    group.agree(agreed(digest, splits[0]))
    folder = RunFolder(Path(out) if out is not None else Path("runs") / run_name(spec, digest))
    with _sole_owner(folder), stop_requests() as stop:
        before = None if fresh else _earlier(folder, digest, data)
        if fresh:
            _clear(folder)
        checkpoints = Checkpoints(folder.checkpoints, program.spec.checkpoint.keep)
        # run.json is the first file: it marks the folder as a run's.
        ledger = _Ledger(folder, checkpoints, _new_record(program, spec, data, digest, before))
        write_atomic(folder.spec, dump_yaml(_storable(program.spec)).encode())
        with ledger.keeping():
            yield Session(program, group, splits, folder, checkpoints, ledger, stop, quiet)
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
    group.agree(agreed(spec_hash(program.spec), split))
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


def agreed(digest: str, split: Split) -> dict[str, str]:
    """What must be the same in all processes of a group."""
    return {"spec": digest, "dataset": split.fingerprint, "set of versions": json.dumps(versions())}


def run_name(spec: Spec, digest: str) -> str:
    """What the folder of a run is called: <name>-<hash of the resolved spec>."""
    return f"{spec.name}-{digest}"


def evaluate_run(
    path: str | Path,
    step: int | Literal["best", "last"] = "last",
    quiet: bool = True,
    attacks: str | Mapping[str, Any] | None = None,
    export: bool = False,
    studies: Sequence[str] = (),
    devices: int | None = None,
) -> Run:
    """Evaluate a checkpoint of a run folder, with its spec's attacks or others.

    `step` is a number, `last` (the newest intact one) or `best` (that of the highest worst-case accuracy on record).
    `attacks` names a preset or a YAML file, or is a mapping as under `evaluate.attacks` or of a whole `evaluate`
    block; its record is evaluation/<step>-<hash>.json. `export` writes the images that each attack found. Raises
    CheckpointError when no intact checkpoint is there. `studies` (strength, linearity, surface) are made besides.
    `devices` is their number, by default all.
    """
    folder = RunFolder(Path(path))
    overrides: dict[str, Any] = {"devices.count": devices}
    label = ""
    if attacks is not None:
        block = evaluate_block(attacks)
        label = label_of(block)
        overrides |= {"evaluate.attacks": None, **{f"evaluate.attacks.{n}": a for n, a in block.pop("attacks").items()}}
        overrides |= {f"evaluate.{name}": value for name, value in block.items()}
    record, spec = stored_run(folder, overrides)
    wanted = [name for name in studies if getattr(spec.evaluate, name) is None]
    if wanted:
        _, spec = stored_run(folder, {**overrides, **{f"evaluate.{name}": {} for name in wanted}})
    program = compile_spec(spec, training=False)
    checkpoints = Checkpoints(folder.checkpoints)
    with located(spec):
        split = open_split(spec.data, "test")
    with _sole_owner(folder), stop_requests() as stop:
        chosen = chosen_step(checkpoints, _best(folder, checkpoints) if step == "best" else step)
        state = checkpoints.restore(program.abstract_state(), chosen)
        others = _surrogates(program)

        def estimate() -> tuple[Any, int]:
            return estimated(program, state, training_images(program), stop, quiet)

        evaluated = with_statistics(program, state, checkpoints, program.evaluated_parameters, estimate)
        evaluator = Evaluator(
            program,
            evaluated.state,
            split,
            folder,
            record.spec_hash,
            stop,
            quiet,
            label,
            export,
            surrogates=others,
            statistics_images=evaluated.images,
        )
        evaluation = evaluator.evaluate()
    return Run(folder.path, record, evaluation)


def _surrogates(program: Program) -> dict[str, Surrogate]:
    """The models that transfer attacks search on, by the attack's name; SpecError where one does not fit."""
    found = {}
    for name, attack in program.spec.evaluate.attacks.items():
        if not attack.needs_surrogate:
            continue
        model = load_model(attack.run, attack.checkpoint)
        if (model.image_shape, model.classes) != (program.image_shape, program.classes):
            got = f"= {attack.run!r} takes images {list(model.image_shape)} of {model.classes} classes"
            fix = f"name a run on images {list(program.image_shape)} of {program.classes} classes"
            raise at(program.spec, f"evaluate.attacks.{name}.run", got, fix)
        found[name] = Surrogate(model.network, model.variables, hash_of(model.variables))
    return found


class _Ledger:
    """Keeps run.json up to date while a run goes on, and tells how it ended."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, record: RunRecord) -> None:
        self._folder, self._checkpoints, self.record = folder, checkpoints, record
        self.update()
        checkpoints.on_save = self.update

    def update(self, **changes: Any) -> None:
        """Write the record with some fields changed; `step` is that of the newest checkpoint."""
        step = max(self._checkpoints.steps(), default=0)
        self.record = self.record.model_copy(update={"step": step, **changes})
        self.record.write(self._folder.run)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Record how the block ended when it did not end well."""
        try:
            yield
        except Interrupted as stopped:
            self.update(state="interrupted", error=str(stopped))
            raise
        except Exception as error:
            self.update(state="failed", error=f"{type(error).__name__}: {error}")
            raise

    @contextmanager
    def timing(self, seconds: dict[str, float]) -> Iterator[None]:
        """Add the times that the block leaves in `seconds` to the record, however it ends."""
        try:
            yield
        finally:
            total = {k: round(self.record.seconds.get(k, 0.0) + v, 3) for k, v in seconds.items()}
            self.update(seconds={**self.record.seconds, **total})


def _new_record(program: Program, spec: Spec, data: DataRecord, digest: str, before: RunRecord | None) -> RunRecord:
    if before is not None:  # what trained the network so far stays on record
        state = "finished" if before.state == "finished" else "training"
        return before.model_copy(update={"name": spec.name, "state": state, "error": None})
    return RunRecord(
        name=spec.name,
        spec_hash=digest,
        state="training",
        step=0,
        steps=program.steps,
        seed=spec.seed,
        data=data,
        devices=[str(device) for device in program.devices.all],
        versions=versions(),
        git=git_state(),
        seconds={},
        origins=spec.origins(),
        forward_equivalents=sum(part.total for part in parts(program).values()),
    )


def _earlier(folder: RunFolder, digest: str, data: DataRecord) -> RunRecord | None:
    """The record of the run that the folder holds, if it is this run."""
    record = folder.record()
    if record is None:
        return None
    if record.spec_hash != digest:
        got = f"holds a run of another spec (hash {record.spec_hash}, this one has {digest})"
        raise SpecError(str(folder.path), got, "choose another --out, or start over there with --fresh --out")
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


def _best(folder: RunFolder, checkpoints: Checkpoints) -> int:
    """The step of the highest worst-case accuracy among the evaluations with the spec's own attacks."""
    kept = set(checkpoints.steps())
    found = {step: record.worst_case.accuracy for step, record in folder.evaluations().items() if step in kept}
    if not found:
        fix = "evaluate the steps first with --checkpoint STEP"
        raise CheckpointError(str(folder.evaluation), "holds no evaluation to choose the best checkpoint by", fix)
    return max(found, key=lambda step: (found[step], step))


def _storable(spec: Spec) -> dict[str, Any]:
    """The resolved spec as data, without its sweep.

    Plugin files and other runs by absolute path, since the run folder lies elsewhere.
    """
    data = {**spec.model_dump(exclude={"sweep"}), "plugins": list(spec.plugin_paths())}
    for attack in data["evaluate"]["attacks"].values():
        if attack.get("type") == "transfer":
            attack["run"] = str(Path(attack["run"]).absolute())
    return data


def _clear(folder: RunFolder) -> None:
    """Delete a run's files, and nothing that a run does not write."""
    for path in (folder.checkpoints, folder.evaluation, folder.events):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder.spec, folder.metrics, folder.run):  # last what marks the folder as a run's
        path.unlink(missing_ok=True)


@contextmanager
def _sole_owner(folder: RunFolder) -> Iterator[None]:
    """Hold the folder's lock, which a killed process lets go.

    SpecError when another process has it, or when the folder holds files that are not a run's.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        foreign = next(
            (p.name for p in folder.path.iterdir() if p.name != ".lock" and not p.name.startswith(".run.json.")), None
        )
    except OSError as error:
        raise SpecError(str(folder.path), f"cannot be a run folder: {error.strerror}", "choose another --out") from None
    if foreign is not None and not folder.run.exists():
        got = f"holds {foreign} but no run.json: it is not a run folder"
        raise SpecError(str(folder.path), got, "choose an empty or a new folder as --out")
    with sole_owner(folder.path, "llrflow process"):
        yield


@contextmanager
def _stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - began
