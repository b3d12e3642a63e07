"""Arrays of another run or of a file that a network begins with (`model.start`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llrflow.base.arrays import NotArrays, read_npz
from llrflow.base.errors import CheckpointError, InputError, line_of
from llrflow.base.validation import some
from llrflow.models.head import head_of
from llrflow.models.network import STATISTICS
from llrflow.program.compile import Program
from llrflow.program.state import TrainState
from llrflow.runs.classifier import hash_of
from llrflow.runs.folder import RunFolder
from llrflow.runs.model import load_model
from llrflow.runs.records import RunRecord, StartRecord
from llrflow.spec.load import at

Arrays = dict[str, dict[str, Any]]
"""By module and name, as Haiku keeps them."""


class Begun(NamedTuple):
    """What a network begins with, whole: what the source does not hold is freshly initialised."""

    params: Arrays
    model_state: Arrays
    record: StartRecord

    def into(self, state: TrainState) -> TrainState:
        """A fresh unreplicated state with these arrays; optimizers begin with nothing of the parameters."""
        return state._replace(
            params={**state.params, **self.params},
            model_state={**state.model_state, **self.model_state},
            ema=() if state.ema == () else {**state.ema, **self.params},
        )


def start_of(program: Program, before: RunRecord | None, trained: bool) -> Begun | None:
    """What `model.start` names, checked against the network and against what the run began with, or None without one.

    A run that was `trained` to some checkpoint needs it no more, and it may be gone then. Raises SpecError,
    CheckpointError.
    """
    start = program.spec.model.start
    if start is None:
        return None
    try:
        found = _read(program)
    except InputError:
        if trained and before is not None:
            return None
        raise
    if before is not None and before.start is not None and before.start.sha256 != found.record.sha256:
        got = f"= {str(start.path)!r} holds other arrays than this run began with"
        raise at(program.spec, "model.start", got, "put them back, or start over with --fresh --out")
    return found


def _read(program: Program) -> Begun:
    start, spec = program.spec.model.start, program.spec
    if start.npz is not None:
        params, state, step = *_of_file(program, start.path), None
    else:
        params, state, step = _of_run(program, start.path)
    head = None
    if start.head == "new" and (head := head_of(spec.model, program.classes, program.image_shape)) is None:
        got = f"= 'new', but no layer of {spec.model.registered_as[1]} makes the logits"
        raise at(spec, "model.start.head", got, "keep it")
    wanted = program.abstract_state()
    if start.npz is not None:
        state = completed(state, wanted.model_state)
    _check(program, params | state, {**wanted.params, **wanted.model_state}, head)
    record = StartRecord(path=str(start.path), step=step, head=head, sha256=hash_of((params, state)))
    return Begun({module: held for module, held in params.items() if module != head}, state, record)


def _of_run(program: Program, path: Path) -> tuple[Arrays, Arrays, int]:
    start, spec = program.spec.model.start, program.spec
    try:
        record = RunFolder(path).existing()
    except CheckpointError as error:
        raise at(spec, "model.start.run", f"= {str(path)!r} {error.got}", error.fix) from None
    if record.state != "finished":
        got = f"= {str(path)!r} is a run that is {record.state}, at step {record.step} of {record.steps}"
        raise at(spec, "model.start.run", got, "finish it with `llrflow run`, or name another")
    model = load_model(path, start.checkpoint)
    params, state = model.variables
    return params, state, model.step


def _of_file(program: Program, path: Path) -> tuple[Arrays, Arrays]:
    """Parameters and states of an npz file, by module and name. Raises SpecError."""
    spec, found = program.spec, {"params": {}, "state": {}}
    try:
        arrays = read_npz(path)
    except NotArrays as error:
        got = f"= {str(path)!r} cannot be read: {line_of(error)}"
        raise at(spec, "model.start.npz", got, "name an .npz file of arrays") from None
    for full, array in arrays.items():
        kind, _, rest = full.partition("/")
        module, _, name = rest.rpartition("/")
        if kind not in found or not module or array.dtype.kind not in "fiu":
            got = f"= {str(path)!r} holds {full} ({array.dtype})"
            raise at(spec, "model.start.npz", got, "name its arrays params/MODULE/NAME and state/MODULE/NAME")
        found[kind].setdefault(module, {})[name] = array
    return found["params"], found["state"]


def completed(state: Arrays, wanted: Arrays) -> Arrays:
    """Moving statistics of which a file holds `average` alone, with what Haiku counts beside: as after many batches."""
    result = dict(state)
    for module, held in state.items():
        if module.rpartition("/")[2] in STATISTICS and module in wanted and set(held) == {"average"}:
            counter = np.full_like(wanted[module]["counter"], 10_000)  # DECAY**counter is 0
            result[module] = {"average": held["average"], "hidden": held["average"], "counter": counter}
    return result


def _check(program: Program, given: Arrays, wanted: Arrays, head: str | None) -> None:
    """Raise SpecError with the names of arrays that are missing, unknown or of another shape; the head's do not
    count."""
    here, there = ({f"{m}/{n}": list(np.shape(a)) for m, held in tree.items() if m != head for n, a in held.items()}
                   for tree in (wanted, given))  # fmt: skip
    shapes = [f"{n} is {there[n]}, wanted {here[n]}" for n in here if n in there and here[n] != there[n]]
    problems = [
        some("", shapes, "; "),
        some("missing: ", [f"{n} {here[n]}" for n in here if n not in there]),
        some("not in this network: ", [f"{n} {there[n]}" for n in there if n not in here]),
    ]
    if not any(problems):
        return
    spec = program.spec
    got = f"= {str(spec.model.start.path)!r} does not fit {spec.model.registered_as[1]}: "
    wrong = {n for n in {*here, *there} if here.get(n) != there.get(n)}
    made = head_of(spec.model, program.classes, program.image_shape) if head is None else None
    fix = "name one of the same network"
    if made is not None and all(name.rpartition("/")[0] == made for name in wrong):
        fix = f"set `head: new`, which leaves {made} as freshly initialised"
    raise at(spec, "model.start", got + "; ".join(filter(None, problems)), fix)
