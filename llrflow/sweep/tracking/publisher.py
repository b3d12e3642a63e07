"""Where the news of a sweep goes while it runs: sweep.json, the mirror, standard error, trackers."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from typing import Any

from llrflow.spec.schema import Spec
from llrflow.sweep.space.trials import Trial, sweep_of
from llrflow.sweep.tracking.live import View
from llrflow.sweep.tracking.mirror import SWEEP, Mirror
from llrflow.sweep.tracking.outcome import outcome, write
from llrflow.sweep.tracking.records import SweepRecord, SweepState, TrialRecord, WorkerRecord
from llrflow.sweep.tracking.storage import Storage
from llrflow.sweep.tracking.trackers import TrialTracker

BETWEEN, SHARE = 5.0, 0.05
"""Least seconds between two writings of sweep.json, and the largest share of the time that they may take."""


class Publisher:
    """Passes on what becomes known of trials; `records` are those that are known at the beginning."""

    def __init__(
        self,
        spec: Spec,
        storage: Storage,
        records: Iterable[TrialRecord],
        quiet: bool,
        trackers: Sequence[TrialTracker] = (),
        mirror: Mirror | None = None,
    ) -> None:
        self._spec, self._storage, self._mirror, self.trackers = spec, storage, mirror, trackers
        self._is_population = sweep_of(spec).scheduler.is_population
        self._workers: dict[str, WorkerRecord] = {}
        self._began, self._save_after = datetime.datetime.now(datetime.UTC), 0.0
        self.view = View(sweep_of(spec), list(records), quiet)
        if mirror is not None and not quiet:
            mirror.say = self.view.say

    def started(self, trial: Trial) -> None:
        """A trial begins, or begins again."""
        for tracker in self.trackers:
            tracker.start(trial)

    def worked(self, result: dict[str, Any]) -> None:
        """A process has worked on a trial: what a report of TrialRunner says of it."""
        worker = result["worker"]
        known = self._workers.get(worker)
        if known is None:
            known = WorkerRecord(worker=worker, trials=0, busy=0.0, compilations=0, step_compilations={})
        steps = dict(known.step_compilations)
        if result["step_compilations"]:
            steps[result["run"]] = result["step_compilations"]
        self._workers[worker] = known.model_copy(
            update={
                "trials": len(steps),
                "busy": round(known.busy + result["busy"], 3),
                "compilations": known.compilations + result["compilations"],
                "step_compilations": steps,
            }
        )

    def looked(self, run: str, measured: dict[str, Any]) -> None:
        """A look at the trial of a run has measured something."""
        for tracker in self.trackers:
            tracker.look(run, measured)

    def changed(self, record: TrialRecord, ended: bool) -> None:
        """A trial has a new record, perhaps its last."""
        if self._is_population:
            self.copy(SWEEP)  # who took over whom, before what it led to
        self.copy(record.run)
        self.view.show(record, ended)
        for tracker in self.trackers if ended else ():
            tracker.end(record)

    def copy(self, name: str) -> None:
        """Have a run, or the SWEEP's own files, copied to the mirror."""
        if self._mirror is not None:
            self._mirror.touch(name)

    def is_due(self) -> bool:
        """Whether sweep.json is old enough to be written again."""
        return time.monotonic() > self._save_after

    def save(self, records: Iterable[TrialRecord], state: SweepState) -> SweepRecord:
        """Write the outcome so far."""
        began = time.monotonic()
        record = outcome(self._spec, records, state, self._began, list(self._workers.values()))
        write(self._spec, self._storage, record)
        self.copy(SWEEP)
        ended = time.monotonic()
        self._save_after = ended + max(BETWEEN, (ended - began) / SHARE)
        return record

    def close_trackers(self) -> None:
        """Have trackers send what is left."""
        for tracker in self.trackers:
            tracker.close()
