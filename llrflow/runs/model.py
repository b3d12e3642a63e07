"""The model of a run folder, for use in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.progress import say
from llrflow.data.facts import DatasetFacts
from llrflow.program.compile import Program
from llrflow.program.devices import Devices
from llrflow.program.state import TrainState
from llrflow.runs.averages import with_statistics
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.classifier import Classifier, parameter_count
from llrflow.runs.folder import RunFolder, Step
from llrflow.runs.looks import chosen
from llrflow.runs.records import RunRecord
from llrflow.spec.load import load_spec
from llrflow.spec.resolve import spec_hash
from llrflow.spec.schema import Spec


class Model(Classifier):
    """The trained classifier of a run folder."""

    def __init__(self, program: Program, state: TrainState, parameters: Literal["raw", "ema"], path: Path) -> None:
        self.spec, self.threat, self.name, self.path = program.spec, program.spec.threat, program.spec.name, path
        self.classes, self.step = program.classes, int(state.step)
        self.parameters: Literal["raw", "ema"] = parameters
        self.image_shape, self.network = program.image_shape, program.network
        self.params = state.ema if parameters == "ema" else state.params
        self.variables = (self.params, state.model_state)
        self._logits = jax.jit(program.logits_fn(self.params, state.model_state))

    def _facts(self) -> dict[str, Any]:
        size = f"{parameter_count(self.params):,} ({self.parameters})"
        return {"network": self.spec.model.label(), "parameters": size, **super()._facts(), "run": self.path}


def load_model(
    run_dir: str | Path,
    step: Step | None = None,
    parameters: Literal["raw", "ema"] | None = None,
    trust_plugins: bool = False,
) -> Model:
    """The model of a run's checkpoint, chosen as `chosen_step` says; needs no dataset.

    `parameters` is `raw` or `ema`; default what the run evaluates. `trust_plugins` lets plugins run that the folder's
    spec names and that are neither installed nor such as you have trained with on this machine. Raises CheckpointError,
    also where nobody has yet evaluated averaged parameters that need BatchNorm statistics of their own; SpecError for
    `ema` where training kept none; PluginError for such plugins.
    """
    folder = RunFolder(Path(run_dir))
    record, spec = stored_run(folder, trust_plugins=trust_plugins)
    facts = recorded_facts(record, spec)
    if parameters == "ema" and spec.train.ema is None:
        raise SpecError(str(folder.path), "has no moving average of its parameters", "ask for `raw`")
    program = Program(spec, facts, Devices(1))
    checkpoints = checkpoints_of(folder, record)
    state = checkpoints.restore(program.abstract_state(), chosen_step(folder, checkpoints, step).step)
    kind = parameters or program.evaluated_parameters
    return Model(program, with_statistics(program, state, checkpoints, kind).state, kind, folder.path)


def recorded_facts(record: RunRecord, spec: Spec) -> DatasetFacts:
    """What a run's record knows of its dataset, which need not be here."""
    stored = record.data
    place = spec.data.directory / spec.data.name
    return DatasetFacts(spec.data.name, "", place, stored.image_shape, stored.classes, {}, stored.train, stored.test)


def stored_run(
    folder: RunFolder, overrides: dict[str, Any] | None = None, trust_plugins: bool = False
) -> tuple[RunRecord, Spec]:
    """The record and the spec of a run folder, some values of the spec changed.

    Raises CheckpointError, also where spec.yaml is not that of the run any more: name, devices, trackers and where data
    lie may have been edited, as they change no number. PluginError as `load_spec` does without `trust_plugins`.
    """
    record = folder.existing()
    edited = record.spec_sha256 is None or folder.spec_problem(record) is not None
    spec = load_spec(folder.spec, trust_plugins=trust_plugins)
    if edited or spec.plugins:
        _check_hash(folder, record, spec, edited)
    return record, load_spec(folder.spec, overrides, trust_plugins=trust_plugins) if overrides else spec


def _check_hash(folder: RunFolder, record: RunRecord, spec: Spec, edited: bool) -> None:
    """Raise CheckpointError where the stored spec, with its plugins as they are now, is not what was trained."""
    found, wanted = spec_hash(spec), record.stored_hash or record.spec_hash
    # Older runs do not know what they wrote; in spec.yaml paths are absolute and `accumulate: auto` is a number.
    rewritten = spec.train.accumulate != 1 or any(attack.needs_surrogate for attack in spec.evaluate.attacks.values())
    if found == wanted or (record.stored_hash is None and rewritten):
        return
    got = f"is not the spec of this run any more (hash {found}, run.json has {wanted})"
    if not edited:
        got = f"names plugins that have changed since the run was trained: {', '.join(spec.plugins)}"
    fix = "put the original back, or train what it says in a folder of its own"
    raise CheckpointError(str(folder.spec), got, fix)


def checkpoints_of(folder: RunFolder, record: RunRecord) -> Checkpoints:
    """The checkpoints of a run, and no other's."""
    return Checkpoints(folder.checkpoints, spec_hash=record.spec_hash, taken_over=record.taken_over)


class ChosenStep(NamedTuple):
    """The checkpoint that is taken."""

    step: int
    why: str | None = None
    """What whoever reads its numbers must know of the choice: it is not the newest, or the best of few."""


def chosen_step(folder: RunFolder, checkpoints: Checkpoints, step: Step | None = None) -> ChosenStep:
    """The checkpoint that is asked for, by default the best if looks have chosen one, else the newest intact one.

    `best` without looks is that of the highest worst-case accuracy among the evaluations with the spec's own attacks,
    on test images. Damaged checkpoints that are passed over are said. Raises CheckpointError.
    """
    found = chosen(folder.metric_lines())
    if step in (None, "best"):
        _check_looks(folder)
    if step is None:
        step = "last" if found is None else "best"
    if step == "best":
        return _best_evaluated(folder, checkpoints) if found is None else ChosenStep(found.best)
    if step != "last":
        return ChosenStep(step)
    problems: list[str] = []
    newest = checkpoints.newest_intact(problems.append)
    record = folder.existing()
    if not problems and newest is not None and newest < record.step:  # run.json can only be behind
        problems.append(f"checkpoint {record.step} is missing")
    for problem in problems:
        say(problem)
    if newest is None:
        raise CheckpointError(str(checkpoints.directory), "has no intact checkpoint", "train the run again")
    return ChosenStep(newest, f"step {newest} is not the newest: {'; '.join(problems)}" if problems else None)


def _check_looks(folder: RunFolder) -> None:
    """Raise CheckpointError where the looks that choose the best checkpoint are not those that the run wrote."""
    record = folder.existing()
    if record.metrics is not None and record.metrics.looks and (problem := folder.metrics_problem(record)):
        got = f"{problem.removeprefix(f'{folder.metrics} ')}, and its looks choose the best checkpoint"
        raise CheckpointError(str(folder.metrics), got, "name the step to take, or `last`")


def _best_evaluated(folder: RunFolder, checkpoints: Checkpoints) -> ChosenStep:
    kept = set(checkpoints.steps())
    found = {step: record.worst_case.accuracy for step, record in folder.evaluations().items() if step in kept}
    if not found:
        fix = "evaluate the steps first with --checkpoint STEP"
        raise CheckpointError(str(folder.evaluation), "holds no evaluation to choose the best checkpoint by", fix)
    best = max(found, key=lambda step: (found[step], step))
    why = f"step {best} is the best by test images: {len(found)} of {len(kept)} checkpoints evaluated"
    if left := sorted(kept - set(found)):
        why += f", not {', '.join(map(str, left))}: llrflow evaluate {folder.path} --checkpoint {left[0]}"
    return ChosenStep(best, why)
