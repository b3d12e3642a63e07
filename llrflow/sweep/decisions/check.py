"""What only data and devices tell of a sweep's trials, found out before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llrflow.base.errors import DataError, InputError, SpecError
from llrflow.components.traced import numbers
from llrflow.data.facts import DatasetFacts
from llrflow.data.schema import Data
from llrflow.program.compile import compile_spec
from llrflow.program.inputs import BLOCKS
from llrflow.runs.presets import preset_attacks
from llrflow.spec.schema import Spec
from llrflow.sweep.decisions import searchers
from llrflow.sweep.space.trials import Trial, kinds_of, shown, sweep_of


def check_trials(spec: Spec, trials: Iterable[Trial], facts_of: Callable[[Data], DatasetFacts]) -> None:
    """Find out what only data and devices tell. Raises SpecError, DataError or PluginError at the sweep, or at its
    parameter where it has one.

    Where trials ask for accelerators, which this machine need not have, the batch is not divided over devices.
    """
    sweep, trials = sweep_of(spec), list(trials)
    if sweep.scheduler.is_population:
        _check_members(spec, trials)
    if sweep.search.learns:
        searchers.check(spec)
    resources = sweep.resources
    for trial, *_ in kinds_of(trials):
        for name, attack in sweep.rung.attacks.items():
            if (norm := trial.spec.threat.norm) not in attack.norms:
                got = f"sweep.rung.attacks.{name} ({attack.label()}) cannot look at a trial under {norm}"
                place = ("sweep", "rung", "attacks", name)
                raise SpecError(spec.where(place), got, "choose an attack that knows the norms of all trials")
        try:
            program = compile_spec(trial.spec, training=not (resources.gpu or resources.custom), facts_of=facts_of)
            if sweep.escalate is not None:
                _check_escalation(trial.spec, preset_attacks(sweep.escalate.attacks), program.classes)
        except InputError as error:
            raise _at_trial(spec, trial, error) from error


def _at_trial(spec: Spec, trial: Trial, error: InputError) -> InputError:
    """An error of a trial's spec, which nobody wrote, as one of the sweep's."""
    # Of a single parameter its place is known; of several, or a variant, any may be at fault, and none where data is.
    alone = len(trial.parameters) == 1 and trial.variant is None and not isinstance(error, DataError)
    place = ("sweep", "parameters", next(iter(trial.parameters))) if alone else ("sweep",)
    source = trial.spec._source
    nowhere = {"spec", *(map(str, source.origins.values()) if source is not None else ())}
    own = "" if error.where in nowhere else f"{error.where}: "
    given = ", ".join(filter(None, (trial.variant, shown(trial.parameters))))
    got = f"sweep: trial {trial.number}{f' ({given})' if given else ''}: {own}{error.got}"
    return type(error)(spec.where(place), got, error.fix)


def _check_escalation(spec: Spec, attacks: Mapping[str, Any], classes: int) -> None:
    """Raise SpecError unless all these attacks can be made on a trial, within every threat that it is evaluated in."""
    for under in spec.evaluate.attacked_by(attacks).by_threat(spec.threat):
        for name, attack in under.attacks.items():
            if unknown := attack.unknown(under.threat.norm):
                got, fix = unknown
                raise SpecError("sweep.escalate.attacks", f"{name} ({attack.label()}) {got}", fix)
            attack.stages(under.threat, classes)


def _check_members(spec: Spec, trials: Sequence[Trial]) -> None:
    """Raise SpecError unless members may take over each other's weights and change their values in mid-training."""
    label, first = sweep_of(spec).scheduler.label(), trials[0].spec
    if len(trials) < 2:
        raise SpecError(spec.where(("sweep",)), f"sweep: {label} has one member", "ask for more `trials`")
    followed = {path: bounds.schedule for path, _, bounds in numbers(first)}
    for name, domain in sweep_of(spec).parameters.items():
        path = domain.path or name
        above = next((known for known in followed if path == known or path.startswith(f"{known}.")), None)
        if above is None or not followed[above] or above.split(".")[0] not in BLOCKS:
            got = f"sweep.parameters.{name}: {path} is no number that may change while a trial trains, as {label} asks"
            fix = "sweep numbers that `llrflow types` calls schedules, or use another scheduler"
            raise SpecError(spec.where(("sweep", "parameters", name)), got, fix)
