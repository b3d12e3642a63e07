"""The trials of a sweep: what the files say of each, and which of them are left to do."""

from __future__ import annotations

from collections.abc import Sequence

from llrflow.spec.schema import Spec
from llrflow.sweep.decisions.population import Population
from llrflow.sweep.decisions.rounds import Rounds
from llrflow.sweep.space.trials import Trial, sweep_of
from llrflow.sweep.tracking.outcome import finalists, trial_record
from llrflow.sweep.tracking.records import TrialRecord
from llrflow.sweep.tracking.storage import Storage


class Agenda:
    """The trials that are known so far, by number, each with its record.

    `trials` are all of the spec's; a search that learns begins with those that it has drawn instead.
    """

    def __init__(self, spec: Spec, storage: Storage, trials: Sequence[Trial]) -> None:
        """Raises SpecError and DataError where draws or a population on record cannot be read."""
        self._spec, self._storage, self._sweep = spec, storage, sweep_of(spec)
        self._rounds = Rounds(spec, storage) if self._sweep.search.learns else None
        self.population = Population(spec, storage, trials) if self._sweep.scheduler.is_population else None
        begun = trials if self._rounds is None else self._rounds.trials
        # Those of a population change while it runs.
        self.trials = {trial.number: trial for trial in begun} if self.population is None else self.population.members
        self.records: dict[int, TrialRecord] = {}
        for number in self.trials:
            self.look_again(number)

    def look_again(self, number: int, looks: Sequence[dict[str, float]] = ()) -> TrialRecord:
        """Take down what the files say of a trial now; `looks` are not read again."""
        self.records[number] = trial_record(self._spec, self._storage, self.trials[number], looks)
        return self.records[number]

    @property
    def left(self) -> int:
        """Configurations that are still to be drawn."""
        return 0 if self._rounds is None else self._rounds.left

    @property
    def unfinished(self) -> list[int]:
        """Trials that have not ended, those that wait included."""
        return [number for number, record in self.records.items() if record.state in ("waiting", "unfinished")]

    @property
    def done(self) -> bool:
        """Whether nothing is left: no trial, no draw, no stronger attack."""
        return not (self.unfinished or self.left or self.finalists())

    def finalists(self) -> list[Trial]:
        """Trials among the best that have not been attacked with the stronger attacks yet."""
        return [self.trials[r.number] for r in finalists(self._sweep, self.records.values()) if r.escalated is None]

    def todo(self) -> list[Trial]:
        """The trials that Tune must hear of, those with the most on record first; failed ones are tried again.

        A scheduler compares with trials that have ended, so they report again what is on record; without one they
        are left out.
        """
        order = ("finished", "stopped", "failed", "unfinished", "waiting")
        listed = sorted(self.records.values(), key=lambda record: (order.index(record.state), record.number))
        if all(record.state in ("finished", "stopped") for record in listed):
            return []
        for record in listed:
            if record.state == "failed":
                self._storage.forget_end(record.run)
                self.look_again(record.number)
        if self.population is not None:  # whose decisions depend on the order, and on nobody that the guard stopped
            listed = [record for record in self.records.values() if record.state != "stopped"]
        alone = self._sweep.scheduler.registered_as[1] == "fifo"
        return [self.trials[r.number] for r in listed if not (alone and r.state == "finished")]

    def more(self) -> list[Trial]:
        """The trials of another round, now that all others have ended; none when all are drawn.

        Raises SpecError and DataError as drawing does.
        """
        found = [] if self._rounds is None else self._rounds.more(self.records.values())
        for trial in found:
            self.trials[trial.number] = trial
            self.look_again(trial.number)
        return found
