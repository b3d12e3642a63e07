"""A run folder made of somebody's weights: evaluated, attacked, reported and begun from like one that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from pydantic import ValidationError

from llrflow.base.errors import CheckpointError, DataError, SpecError, line_of
from llrflow.base.files import sha256_file, write_atomic
from llrflow.base.validation import first_problem, some
from llrflow.components.consent import remember
from llrflow.components.registry import validate
from llrflow.data.pipelines import open_split
from llrflow.data.well_known import describe_or_known
from llrflow.program.compile import Program, compile_spec
from llrflow.program.state import TrainState
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.pipeline import stored_spec
from llrflow.runs.records import DataRecord, ImportRecord, RunRecord, git_state, versions
from llrflow.runs.start import Arrays, completed
from llrflow.spec.load import at, load_spec
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import OptimizerEntry, Spec
from llrflow.spec.source import read_source
from llrflow.weights.layout import DOTTED, OWN, Layout, Named
from llrflow.weights.read import read_weights

_NORMALISING = (("mean", "std"), ("new_mean", "new_std"), ("_mean", "_std"), ("mu", "sigma"))
"""What the buffers of a layer that normalises images are called."""


class File(NamedTuple):
    """Somebody's file of weights, and what its arrays are called by."""

    path: Path
    arrays: dict[str, np.ndarray]
    normalising: dict[str, np.ndarray]
    """Arrays of a layer that normalises images, by `model.mean` and `model.std`."""
    layout: Layout | None
    """None for our own names."""
    name: str
    """Of the layout."""


def import_model(
    file: str | Path,
    spec: str | Path,
    out: str | Path,
    mapping: str | Path | None = None,
    key: str | None = None,
    changes: Mapping[str, Any] = {},
) -> RunRecord:
    """Make a run folder `out` of the weights in `file`, for the network, data and threat of `spec`; gives its record.

    `mapping` is a YAML file of names as in llrflow/weights/layouts.yaml, for a layout that is not known; `key` chooses
    among several dicts of arrays in the file, `changes` are values of the spec by path. What the spec does not say
    itself it is given by the layout (`padding`, `activation`) and by the file (`mean`, `std`). Raises CheckpointError
    where the file cannot be read or does not fit the network, with names and shapes of both; SpecError where the
    folder is not empty or the spec lacks what the file does not tell.
    """
    path, folder = Path(file), RunFolder(Path(out))
    loaded = load_spec(str(spec), changes)
    held = _named(path, loaded, mapping, key)
    given = _given(loaded, held)
    loaded = _untrained(load_spec(str(spec), {**changes, **given}))
    program = compile_spec(loaded, training=False, facts_of=describe_or_known)
    count = len(held.arrays)
    state = _state(program, held)
    stored, seal = stored_spec(program.spec)
    digest = spec_hash(resolve(loaded, program.facts))
    origin = ImportRecord(
        path=str(path.absolute()), sha256=sha256_file(path), layout=held.name, arrays=count, set=given
    )
    record = RunRecord(
        name=loaded.name,
        spec_hash=digest,
        state="training",
        step=0,
        steps=0,
        seed=loaded.seed,
        data=_data_record(program),
        devices=[str(device) for device in program.devices.all],
        versions=versions(),
        git=git_state(),
        seconds={},
        origins=loaded.origins(),
        imported=origin,
        spec_sha256=seal["spec_sha256"],
        stored_hash=seal["stored_hash"],
    )
    with folder.owned():
        before = folder.record()
        if before is not None and (before.imported is None or before.state == "finished"):
            raise SpecError(str(folder.path), "holds a run already", "choose an empty or a new folder as --out")
        folder.clear()  # of an import that was cut short
        record.write(folder.run)  # it marks the folder as a run's
        write_atomic(folder.spec, stored)
        remember(loaded.plugin_paths())
        Checkpoints(folder.checkpoints, 1, digest).save(state, digest)
        record = record.model_copy(update={"state": "finished"})
        record.write(folder.run)
    return record


def known_layouts() -> dict[str, Layout]:
    """The layouts that are known by name."""
    with resources.as_file(resources.files("llrflow.weights") / "layouts.yaml") as path:
        return {name: Layout.model_validate(one) for name, one in read_source(str(path)).data.items()}


def _named(path: Path, spec: Spec, mapping: str | Path | None, key: str | None) -> File:
    """The file's arrays, and the layout that they have. Raises CheckpointError, SpecError."""
    arrays = read_weights(path, key)
    if mapping is not None:
        layouts = {str(mapping): _layout_of(mapping)}
    else:
        kind = spec.model.registered_as[1]
        layouts = {name: one for name, one in known_layouts().items() if kind in one.models}
        if any(name.startswith("params/") for name in arrays):
            return File(path, arrays, {}, None, OWN)
    found = []
    network, normalising = _split(arrays)
    for name, layout in layouts.items():
        for stripped in _stripped(network, "/" if layout.style == "haiku" else "."):
            kept = {n: array for n, array in stripped.items() if not layout.is_ignored(n)}
            there = [any(n == f or n.startswith((f"{f}.", f"{f}/")) for n in kept) for f in layout.fixed]
            score = (sum(there) / max(1, len(there)), sum(there))
            found.append((score, File(path, kept, normalising, layout, name)))
    best = max(found, key=lambda one: one[0], default=None)
    if best is None or (best[0][0] < 0.5 and mapping is None):
        return File(path, arrays, {}, DOTTED, OWN)  # as `export --to torch` has it, or of no layout that is known
    return best[1]


def _layout_of(mapping: str | Path) -> Layout:
    source = read_source(str(mapping))
    try:
        return Layout.model_validate(source.data)
    except ValidationError as error:
        path, got, fix = first_problem(error)
        raise SpecError(source.where(path), got, fix or "write `names: {ours: theirs}`") from None


def _split(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of a network, and the mean and the standard deviation of a layer that normalises images before it."""
    pairs = []
    for mean, std in _NORMALISING:
        for name in arrays:
            before = name.removesuffix(mean)
            if name in (before + mean, mean) and before[-1:] in ("", ".") and before + std in arrays:
                pairs.append((name, before + std))
    if len(pairs) != 1:
        return arrays, {}
    mean, std = (arrays[name] for name in pairs[0])
    found = {"model.mean": mean, "model.std": std}
    return {name: array for name, array in arrays.items() if name not in pairs[0]}, found


def _stripped(arrays: dict[str, np.ndarray], dot: str) -> list[dict[str, np.ndarray]]:
    """The arrays under the names that they have, and without each prefix that all names share (`module.`)."""
    found = [arrays]
    while found[-1]:
        prefixes = {name.partition(dot)[:2] for name in found[-1]}
        if len(prefixes) > 1 or not next(iter(prefixes))[1]:
            break
        found.append({name.partition(dot)[2]: array for name, array in found[-1].items()})
    return found


def _given(spec: Spec, held: File) -> dict[str, Any]:
    """What the layout and the file say of the model where the spec does not, by path. Raises SpecError."""
    said, given = spec.model.model_fields_set, {}
    for path, array in held.normalising.items():
        field, values = path.partition(".")[2], [float(f"{number:.7g}") for number in np.ravel(array)]
        own = list(getattr(spec.model, field))
        if field not in said:
            given[path] = values
        elif len({len(own), len(values)} - {1}) > 1 or not np.allclose(own, values, rtol=1e-4):
            got = f"= {own}, but {held.path} holds {values}"
            raise at(spec, path, got, "delete it")
    if held.layout is None:
        return given
    known = type(spec.model).model_fields
    open_to = {name for name in known if name not in said}
    given |= {f"model.{name}": value for name, value in held.layout.fields.items() if name in open_to}
    asks = dict(held.layout.asks)
    if not held.normalising:
        asks |= dict.fromkeys(("mean", "std"), "what images are normalised by before it; [0] and [1] for nothing")
    for field, choice in asks.items():
        if field in open_to:
            raise at(spec, f"model.{field}", f"is not told by {held.path}, of layout {held.name}", f"set it: {choice}")
    return given


def _untrained(spec: Spec) -> Spec:
    """A spec without what only a training has a state of: averaged parameters, an optimizer's, what it began with."""
    still = validate("optimizer", {"type": "sgd", "learning_rate": 0.0}, OptimizerEntry)
    train = spec.train.model_copy(update={"ema": None})
    model = spec.model.model_copy(update={"start": None})
    return spec.model_copy(update={"train": train, "model": model, "optimizer": still})


def _state(program: Program, held: File) -> TrainState:
    """A state with the file's arrays, which it lets go.

    Raises CheckpointError where they do not fit, SpecError for a layout that does not suit the network.
    """
    state = program.abstract_state()
    if held.layout is None:
        ours = _ours(state, held.arrays)
        named = [Named(m, n, np.shape(a), f"{kind}/{m}/{n}", "", None) for kind, m, n, a in ours]
    else:
        named = _named_there(held.layout, held.name, state)
    _check(program, held, named)
    params: Arrays = {}
    wanted = {**state.params, **state.model_state}
    for one in named:
        array = held.arrays.pop(one.there)  # so that no more of the file than this is in memory twice
        if array.dtype.kind not in "biuf" and array.dtype != ml_dtypes.bfloat16:
            raise CheckpointError(str(held.path), f"{one.there} holds {array.dtype}, no numbers", "give intact weights")
        if held.layout is None:
            whole = np.asarray(array, wanted[one.module][one.name].dtype)
        else:
            whole = held.layout.into(array, one)
        if not np.isfinite(whole).all():
            got = f"{one.there} holds numbers that are not finite"
            raise CheckpointError(str(held.path), got, "give intact weights")
        params.setdefault(one.module, {})[one.name] = whole
    statistics = {module: params.pop(module) for module in list(params) if module in state.model_state}
    statistics = completed(statistics, state.model_state)
    return state._replace(params=params, model_state=statistics)


def _named_there(layout: Layout, name: str, state: TrainState) -> list[Named]:
    """The arrays of a state by the names of a layout called `name`. Raises SpecError where it does not suit it."""
    fix, seen = "correct `names`", {}
    try:
        named = list(layout.named(state.params, state.model_state))
    except ValueError as error:
        raise SpecError(name, line_of(error), fix) from None
    for one in named:
        if one.there in seen:
            got = f"calls {seen[one.there]} and {one.module}/{one.name} by one name, {one.there}"
            raise SpecError(name, got, fix)
        seen[one.there] = f"{one.module}/{one.name}"
    return named


def _ours(state: TrainState, arrays: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    """(kind, module, name, array) of a state; of moving statistics the average, and what else there is of them."""
    trees = {"params": state.params, "state": state.model_state}
    whole = [(kind, m, n, a) for kind, tree in trees.items() for m, held in tree.items() for n, a in held.items()]
    return [one for one in whole if one[2] not in ("hidden", "counter") or "/".join(one[:3]) in arrays]


def _check(program: Program, held: File, named: list[Named]) -> None:
    """Raise CheckpointError with the arrays that have another shape, are missing, or are no part of the network."""
    layout, arrays = held.layout, held.arrays
    shapes = {one.there: one.shape if layout is None else layout.shape_there(one) for one in named}
    wrong = [
        f"{name} is {list(arrays[name].shape)}, wanted {list(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    missing = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in arrays]
    foreign = [f"{name} {list(array.shape)}" for name, array in arrays.items() if name not in shapes]
    if layout is DOTTED and not shapes.keys() & arrays.keys():
        got = f"is of no layout known for {program.spec.model.registered_as[1]}" + some(": it holds ", list(arrays))
        raise CheckpointError(str(held.path), got, "say with --map what its arrays are called")
    problems = [
        some("", wrong, "; "),
        some("missing: ", missing),
        some("not in this network: ", foreign),
    ]
    if any(problems):
        got = f"does not fit {program.spec.model.registered_as[1]} by the names of {held.name}: "
        fix = "give the model's fields what the file has (depth, width), or say with --map what its arrays are called"
        raise CheckpointError(str(held.path), got + "; ".join(filter(None, problems)), fix)


def _data_record(program: Program) -> DataRecord:
    """What is known of the data, which need not be here."""
    facts, spec = program.facts, program.spec
    try:
        fingerprint = open_split(spec.data, "train", spec.seed).fingerprint
    except DataError:
        fingerprint = ""
    return DataRecord(
        image_shape=program.image_shape,
        classes=program.classes,
        fingerprint=fingerprint,
        train=facts.train,
        test=facts.test,
        validation=facts.validation,
        extra=0 if facts.extra is None else facts.extra.train,
    )
