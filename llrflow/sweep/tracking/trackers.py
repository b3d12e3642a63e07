"""The trials of a sweep as experiment trackers see them: swept parameters by name, and what each look measured.

Tune's own view of a trial is one mapping for a worker.
"""

from __future__ import annotations

from typing import Any

from llrflow.runs.trackers import Shown, Tracker, open_trackers
from llrflow.spec.schema import Spec
from llrflow.sweep.space.trials import Trial, sweep_of
from llrflow.sweep.tracking.records import TrialRecord
from llrflow.sweep.tracking.storage import Storage


class TrialTracker:
    """Shows trials to one tracker."""

    def __init__(self, tracker: Tracker, storage: Storage, metrics: list[str]) -> None:
        self._tracker, self._storage, self._metrics = tracker, storage, metrics
        self._shown: dict[str, Shown] = {}
        """Those that have not ended."""

    def start(self, trial: Trial) -> None:
        """A trial begins, or begins again."""
        config = {"seed": trial.seed, **trial.parameters}
        new = Shown(trial.name, f"{self._storage.path.name}-{trial.name}", config)
        self._tracker.start(self._shown.setdefault(trial.name, new))

    def look(self, name: str, result: dict[str, Any]) -> None:
        """What a look measured: `step` and the metrics of the sweep, of those that it has."""
        if "nominal.accuracy" in result:
            self._log(name, {key: result[key] for key in ("step", *self._metrics) if key in result})

    def end(self, record: TrialRecord) -> None:
        """A trial has ended; where it finished, its evaluation is shown too."""
        if record.state == "finished":
            final = {"evaluation.nominal.accuracy": record.nominal, "evaluation.worst_case.accuracy": record.robust}
            self._log(record.run, {"step": record.step, **final})
        if shown := self._shown.pop(record.run, None):
            self._tracker.end(shown, record.state == "failed")

    def close(self) -> None:
        """Wait for what is left to be sent, also of trials that were left where they are."""
        while self._shown:
            _, shown = self._shown.popitem()
            self._tracker.end(shown)
        self._tracker.close()

    def _log(self, name: str, numbers: dict[str, Any]) -> None:
        if shown := self._shown.get(name):
            self._tracker.log(shown, numbers)


def trackers_of(spec: Spec, storage: Storage) -> list[TrialTracker]:
    """The trackers of a spec's sweep, each having shown that it can write. Raises SpecError."""
    sweep = sweep_of(spec)
    opened = open_trackers(sweep.trackers, "sweep.trackers", spec, storage.path)
    return [TrialTracker(tracker, storage, sweep.metrics) for tracker in opened]
