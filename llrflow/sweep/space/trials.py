"""The trials of a sweep: all of them are known, named and checked before the first one starts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llrflow.base.errors import DataError, SpecError
from llrflow.components.optimizers import resolve_duration
from llrflow.components.registry import Component
from llrflow.components.traced import numbers
from llrflow.data.facts import DatasetFacts
from llrflow.data.schema import Data
from llrflow.program.compile import located
from llrflow.program.compiled import static_parts
from llrflow.runs import looks
from llrflow.runs.folder import label_of
from llrflow.runs.pipeline import run_name
from llrflow.spec.load import load_spec
from llrflow.spec.resolve import make_runs_absolute, resolve, spec_hash, steps_of_epoch
from llrflow.spec.schema import Checks, Evaluate, Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.space.configurations import all_configurations
from llrflow.sweep.space.variants import VARIANT, variant_base


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a sweep."""

    number: int
    """From 0."""
    configuration: int
    """Trials that differ in their seed alone share it."""
    seed: int
    overrides: dict[str, Any]
    """What it changes of the base, by path; the seed and the number of devices included."""
    parameters: dict[str, Any]
    """The swept values by the parameter's name; one whose `when` does not hold is missing."""
    spec: Spec
    """Resolved."""
    name: str
    """Of its run folder, <name>-<hash>."""
    rungs: tuple[int, ...]
    """Steps at which it is looked at; the last is the end of its training."""

    @property
    def variant(self) -> str | None:
        """The name of its variant, where the sweep has any."""
        return self.overrides.get(VARIANT)


def sweep_of(spec: Spec) -> Sweep:
    """The spec's sweep. Raises SpecError where it has none."""
    if spec.sweep is None:
        raise SpecError(spec.where(()), "has no `sweep` block", "add one, or use `llrflow run`")
    return spec.sweep


def base_of(spec: Spec, variant: str | None = None) -> dict[str, Any]:
    """What the user wrote, as plain data without the sweep, with places that hold anywhere on this machine.

    With a variant that variant of it. Raises SpecError where it makes no spec, or is evaluated otherwise.
    """
    assert spec._source is not None
    data = {key: value for key, value in spec._source.data.items() if key != "sweep"}
    if spec.plugins:
        data["plugins"] = list(spec.plugin_paths())
    directory = spec.data.dir
    if not directory.startswith("~"):
        data["data"] = {**data["data"], "dir": str(Path(directory).absolute())}
    if "evaluate" in data:
        data["evaluate"] = copy.deepcopy(data["evaluate"])
        make_runs_absolute(spec, data)
    return data if variant is None else variant_base(spec, data, variant)


def trials_of(
    spec: Spec,
    facts_of: Callable[[Data], DatasetFacts],
    drawn: Iterable[tuple[int, dict[str, Any]]] | None = None,
    before: Sequence[Trial] = (),
) -> list[Trial]:
    """Every trial of a spec's sweep, in order and without repetitions; a larger random sweep begins with the same.

    A search that learns has `drawn` the number and overrides of some configurations; their trials come after those
    of `before`. Without them as many are drawn at random, which cost as much and are as good to check.
    `facts_of` finds the dataset of a `data` block. Raises SpecError, at the parameter that a trial's spec does not
    take, and DataError.
    """
    sweep, found, names = sweep_of(spec), [], {trial.name for trial in before}
    facts, bases = _remembered(facts_of), {variant: base_of(spec, variant) for variant in sweep.variants or [None]}
    for configuration, overrides in enumerate(_configurations(spec, bases)) if drawn is None else drawn:
        for seed in range(spec.seed, spec.seed + sweep.seeds):
            whole = {**overrides, "seed": seed, **_devices(spec, sweep)}
            loaded = load_trial(spec, bases[overrides.get(VARIANT)], whole, overrides)
            trial = trial_of(spec, loaded, len(before) + len(found), configuration, whole, overrides, facts)
            if trial.name not in names:
                names.add(trial.name)
                found.append(trial)
    return found


def _configurations(spec: Spec, bases: Mapping[str | None, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The overrides of all configurations, those of one variant after the other."""
    for variant, base in bases.items():
        yield from all_configurations(spec if variant is None else load_spec(base), sweep_of(spec), variant)


def trial_of(
    spec: Spec,
    loaded: Spec,
    number: int,
    configuration: int,
    whole: dict[str, Any],
    chosen: Mapping[str, Any],
    facts_of: Callable[[Data], DatasetFacts],
) -> Trial:
    """The trial whose spec is `loaded`, with the overrides `whole`, among them the `chosen` values of parameters."""
    sweep = sweep_of(spec)
    with located(spec):
        facts = facts_of(loaded.data)
    resolved, epoch = _resolved(spec, loaded, facts, chosen)
    name = run_name(loaded, spec_hash(resolved))
    variant = chosen.get(VARIANT)
    applied = {n: p.path or n for n, p in sweep.parameters.items() if p.when.get(VARIANT, variant) == variant}
    shown = {name: chosen[path] for name, path in applied.items() if path in chosen}
    rungs = _rungs(sweep, epoch, resolved.train.steps or 0)
    return Trial(number, configuration, loaded.seed, whole, shown, resolved, name, rungs)


def _remembered(facts_of: Callable[[Data], DatasetFacts]) -> Callable[[Data], DatasetFacts]:
    """The same, asked once for each dataset."""
    known: dict[str, DatasetFacts] = {}

    def remembered(data: Data) -> DatasetFacts:
        key = json.dumps(data.model_dump(), sort_keys=True)
        if key not in known:
            known[key] = facts_of(data)
        return known[key]

    return remembered


def kinds_of(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials by kind: those of a kind differ in single numbers of the compiled step, and in how long they train."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        spec = trial.spec
        schedules = [[path, value.model_dump()] for path, value, _ in numbers(spec) if isinstance(value, Component)]
        whole = [spec.data, spec.devices, spec.evaluate]
        key = json.dumps([static_parts(spec), schedules, [block.model_dump() for block in whole]], sort_keys=True)
        found.setdefault(key, []).append(trial)
    return list(found.values())


def look_block(spec: Spec, sweep: Sweep, last: bool = False) -> Evaluate:
    """What a look at a rung evaluates: the cheap attacks on every image.

    At the last rung also the checks for masking, where test images are not to exclude a trial by theirs.
    """
    checks = spec.evaluate.checks if last and sweep.decide_on == "validation" else Checks(examples=0)
    return looks.look_block(spec.evaluate, sweep.rung.attacks, checks)


def look_label(spec: Spec, sweep: Sweep) -> str:
    """Of the records of all looks at a trial: <step><label>.json."""
    return label_of(look_block(spec, sweep).model_dump())


def shown(values: Mapping[str, Any]) -> str:
    """Parameters and their values, as a message has them."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _resolved(spec: Spec, trial: Spec, facts: DatasetFacts, overrides: Mapping[str, Any]) -> tuple[Spec, int]:
    """A trial's spec with durations in steps, and the steps of an epoch."""
    try:
        return resolve(trial, facts), steps_of_epoch(trial, facts)
    except DataError as error:
        raise _at_fault(spec, error.where, f"{error.where} {error.got}", error.fix, overrides) from None


def _at_fault(spec: Spec, path: str, got: str, fix: str, overrides: Mapping[str, Any]) -> SpecError:
    """The error at the parameter that sets a path, or at all of them with what the trial sets."""
    names = {domain.path or name: name for name, domain in sweep_of(spec).parameters.items()}
    place = ("sweep", "parameters", *([names[path]] if path in names else []))
    trial = "" if path in names else f" (a trial with {shown(overrides)})"
    return SpecError(spec.where(place), f"{'.'.join(place)}: {got}{trial}", fix)


def _rungs(sweep: Sweep, epoch: int, steps: int) -> tuple[int, ...]:
    every = max(1, resolve_duration(sweep.rung.every, epoch, steps))
    return (*range(every, steps, every), steps)


def _devices(spec: Spec, sweep: Sweep) -> dict[str, Any]:
    """A trial on CPUs has as many devices as CPUs, so that trials side by side do not share cores."""
    own = spec.devices.count is not None or sweep.resources.gpu or sweep.resources.custom
    return {} if own else {"devices.count": max(1, int(sweep.resources.cpu))}


def load_trial(spec: Spec, base: dict[str, Any], whole: dict[str, Any], overrides: dict[str, Any]) -> Spec:
    """A trial's spec. SpecError names the parameter at fault."""
    try:
        return load_spec(base, {path: value for path, value in whole.items() if path != VARIANT})
    except SpecError as error:
        given = re.fullmatch(r"--set (\S+)", error.where)
        raise _at_fault(spec, given[1] if given else "", error.got, error.fix, overrides) from None
