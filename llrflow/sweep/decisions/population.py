"""A population: trials that take over each other's weights and change their values while they train.

What a member has gone through is a schedule. A member that takes over another at a step becomes the run of a spec in
which each changed number is `piecewise`: the other's values up to that step, new ones from there on. So the weights
that it takes over are those that its own spec leads to, its folder is an ordinary run folder, and `llrflow run` of its
spec alone ends in the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llrflow.components.fields import dump
from llrflow.components.traced import numbers
from llrflow.data.facts import describe
from llrflow.spec.schema import Spec
from llrflow.sweep.space.configurations import configuration_of
from llrflow.sweep.space.domains import Domain
from llrflow.sweep.space.trials import Trial, base_of, load_trial, sweep_of, trial_of
from llrflow.sweep.tracking.records import Segment
from llrflow.sweep.tracking.storage import Storage


class Population:
    """The members of a sweep, each with what it has gone through so far."""

    def __init__(self, spec: Spec, storage: Storage, founders: Sequence[Trial]) -> None:
        self._spec, self._storage, self._changed = spec, storage, False
        self._founders = {trial.number: trial for trial in founders}
        self.lines = {trial.number: [_first(trial)] for trial in founders}
        names = {trial.name for trial in founders}
        for number, line in storage.lines().items():  # of those that the space does not have any more nobody is left
            if number in self.lines and line[0].run in names:
                self.lines[number] = line
        self.members = {n: self._descendant(n, line) for n, line in self.lines.items()}

    @property
    def settled(self) -> int:
        """The step up to which it is settled who took over whom."""
        return max(line[-1].step for line in self.lines.values())

    def source(self, number: int) -> tuple[str, int] | None:
        """The run that a member took over, and at which step; None of one that is on its own."""
        line = self.lines[number]
        return (line[-2].run, line[-1].step) if len(line) > 1 else None

    def take_over(self, number: int, other: int, step: int, values: dict[str, Any]) -> Trial | None:
        """Let a member go on from `step` of another one with new values; `keep` puts it on record.

        None, and nothing changes, where that is a run which some member has already. Raises SpecError where the values
        make no spec.
        """
        line = [*self.lines[other], Segment(step=step, source=other, run="", values=values)]
        found = self._descendant(number, line)
        if any(found.name == trial.name for trial in self.members.values()):
            return None
        line[-1] = line[-1].model_copy(update={"run": found.name, "values": found.parameters})
        self.lines[number], self.members[number], self._changed = line, found, True
        return found

    def keep(self) -> None:
        """Put on record what a decision has changed: all of it, before any of it is done."""
        if self._changed:
            self._storage.set_lines(self.lines)
            self._changed = False

    def _descendant(self, number: int, line: list[Segment]) -> Trial:
        """The run that a member is by now."""
        founder = self._founders[number]
        if len(line) == 1:
            return founder
        configurations = [configuration_of(self._spec, sweep_of(self._spec), _given(part.values)) for part in line]
        rest = {path: founder.overrides[path] for path in founder.overrides.keys() - configurations[0].keys()}
        base = base_of(self._spec)
        segments = [load_trial(self._spec, base, {**rest, **chosen}, chosen) for chosen in configurations]
        found = [{path: dump(value) for path, value, _ in numbers(segment)} for segment in segments]
        overrides = {**rest, **configurations[-1]}
        for path in found[0]:
            pieces: dict[int, Any] = {}
            for part, values in zip(line, found, strict=True):
                if not pieces or list(pieces.values())[-1] != values[path]:
                    pieces[part.step] = values[path]
            if len(pieces) > 1:
                overrides = {p: value for p, value in overrides.items() if p != path and not p.startswith(f"{path}.")}
                overrides[path] = {"type": "piecewise", "pieces": pieces}
        loaded = load_trial(self._spec, base, overrides, configurations[-1])
        return trial_of(self._spec, loaded, number, founder.configuration, overrides, configurations[-1], describe)


def _first(trial: Trial) -> Segment:
    return Segment(step=0, source=None, run=trial.name, values=trial.parameters)


def _given(values: dict[str, Any]) -> Callable[[str, Domain, Callable[[str], Any]], Any]:
    """For `configuration_of`: the values of a segment; what is derived follows them."""

    def value_for(name: str, domain: Domain, value_of: Callable[[str], Any]) -> Any:
        return values[name] if domain.changes else domain.draw(0.0, value_of)

    return value_for
