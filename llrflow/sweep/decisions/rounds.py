"""A search that learns: a round of configurations is drawn by what those of the rounds before came to.

A round depends on the search's seed, on the draws before and on what the records say of them, not on the order in
which trials end. What was drawn is on record before it runs, so that a sweep goes on with the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray.tune.search import Searcher

from llrflow.base.errors import LlrflowError
from llrflow.data.facts import describe
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions import parzen, searchers
from llrflow.sweep.decisions.searchers import Observation
from llrflow.sweep.space.trials import Trial, sweep_of, trials_of
from llrflow.sweep.tracking.outcome import configurations_of
from llrflow.sweep.tracking.records import TrialRecord
from llrflow.sweep.tracking.storage import Storage

ROUND = 4
"""Draws in a round, unless the spec says otherwise."""


class Rounds:
    """The trials of a search that learns, as far as they are drawn."""

    def __init__(self, spec: Spec, storage: Storage) -> None:
        self._spec, self._sweep, self._storage = spec, sweep_of(spec), storage
        self._draws = storage.draws()[: self._sweep.trials]
        self.trials = trials_of(spec, describe, enumerate(self._draws))

    @property
    def left(self) -> int:
        """Configurations that are still to be drawn."""
        return (self._sweep.trials or 0) - len(self._draws)

    def more(self, records: Iterable[TrialRecord]) -> list[Trial]:
        """Draw a round and put it on record; another where no draw of it is new. Empty when all are drawn.

        Raises SpecError, at the parameter that makes no spec, and DataError.
        """
        found, observed = [], list(_observed(self._sweep, self._draws, list(records)))
        asked = parzen.asked if self._sweep.search.type == "optuna" else searchers.asked
        while self.left and not found:
            count = min(self._sweep.search.round or ROUND, self.left)
            new = asked(self._spec, observed, len(self._draws), count)
            found = trials_of(self._spec, describe, enumerate(new, len(self._draws)), self.trials)
            self._draws += new
            self._storage.set_draws(self._draws)
        self.trials += found
        return found


def _observed(sweep: Sweep, draws: list[dict[str, Any]], records: list[TrialRecord]) -> Iterator[Observation]:
    """What came of each configuration, in the order of the draws."""
    for one in sorted(configurations_of(sweep, records), key=lambda record: record.configuration):
        trials = [record for record in records if record.configuration == one.configuration]
        value, stopped = one.mean if one.excluded is None else None, None
        if {trial.state for trial in trials} <= {"stopped", "finished"} and one.finished < len(trials):
            value, stopped = one.mean, min(trial.step for trial in trials)
        yield Observation(one.configuration, draws[one.configuration], value, stopped)


class Queue(Searcher):
    """Gives Tune a list of tasks and, whenever all of them have ended, those of `more()`, until there are none."""

    def __init__(self, tasks: list[dict[str, Any]], more: Callable[[], list[dict[str, Any]]]) -> None:
        super().__init__()
        self._tasks, self._more, self._open = tasks, more, set[str]()
        self.problem: LlrflowError | None = None
        """Why no more could be drawn; Tune would wrap it in an error of its own."""

    def suggest(self, trial_id: str) -> Any:
        """The next task; None to wait, FINISHED when there will be no other."""
        if not self._tasks and not self._open and self.problem is None:
            try:
                self._tasks = self._more()
            except LlrflowError as error:
                self.problem = error
        if self._tasks:
            self._open.add(trial_id)
            return {"trial": self._tasks.pop(0)}
        return None if self._open else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """One task less to wait for."""
        self._open.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: draws.json has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
