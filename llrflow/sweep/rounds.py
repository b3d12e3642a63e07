"""A search that learns: Optuna draws a round of configurations by what those of the rounds before came to.

A round depends on the search's seed, on the draws before and on what the records say of them, not on the order in
which trials end. What was drawn is on record before it runs, so that a sweep goes on with the same trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from llrflow.data.facts import describe
from llrflow.errors import LlrflowError
from llrflow.spec.schema import Spec, Sweep
from llrflow.sweep.outcome import configurations_of
from llrflow.sweep.records import TrialRecord
from llrflow.sweep.space import Trial, configuration_of, sweep_of, trials_of, uniform
from llrflow.sweep.storage import Storage

ROUND, STARTUP = 4, 10
"""Draws in a round, and draws at random before the search learns, unless the spec says otherwise."""


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
        found, told = [], list(_told(self._sweep, self._draws, list(records)))
        while self.left and not found:
            count = min(self._sweep.search.round or ROUND, self.left)
            new = _asked(self._spec, self._sweep, told, len(self._draws), count)
            found = trials_of(self._spec, describe, enumerate(new, len(self._draws)), self.trials)
            self._draws += new
            self._storage.draw(self._draws)
        self.trials += found
        return found


def _told(sweep: Sweep, draws: list[dict[str, Any]], records: list[TrialRecord]) -> Iterator[Any]:
    """What came of each configuration, as Optuna's trials, in the order of the draws.

    One that was stopped is a pruned trial. One that failed or shows signs of gradient masking is pruned without a
    value, which Optuna takes for worse than all others.
    """
    from optuna.trial import TrialState, create_trial  # pyright: ignore[reportMissingImports]

    for one in sorted(configurations_of(sweep, records), key=lambda record: record.configuration):
        trials = [record for record in records if record.configuration == one.configuration]
        values, params, distributions = draws[one.configuration], {}, {}
        for name, domain in sweep.parameters.items():
            if not domain.learnt or (domain.path or name) not in values:
                continue
            with suppress(ValueError):  # the space has changed since, and has this value no longer
                suggestion = domain.suggestion(values[domain.path or name])
                distribution = _distribution(domain, name, suggestion)
                create_trial(params={name: suggestion}, distributions={name: distribution}, value=0.0)
                params[name], distributions[name] = suggestion, distribution
        came: dict[str, Any] = {"state": TrialState.PRUNED}
        if one.excluded is None:
            came = {"state": TrialState.COMPLETE, "value": one.mean}
        elif {trial.state for trial in trials} <= {"stopped", "finished"} and one.finished < len(trials):
            came["intermediate_values"] = {min(trial.step for trial in trials): one.mean}
        yield create_trial(params=params, distributions=distributions, **came)


def _distribution(domain: Any, name: str, suggestion: Any) -> Any:
    """Optuna's distribution of a parameter."""
    from optuna.trial import FixedTrial  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the suggestion lies outside
        trial = FixedTrial({name: suggestion})
        domain.suggest(trial, name)
    return trial.distributions[name]


def _asked(spec: Spec, sweep: Sweep, told: list[Any], drawn: int, count: int) -> list[dict[str, Any]]:
    """So many configurations, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023)."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([sweep.search.seed, drawn]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=sweep.search.startup or STARTUP, constant_liar=True, seed=seed
    )
    study = optuna.create_study(direction="maximize" if sweep.best_is == "max" else "minimize", sampler=sampler)
    study.add_trials(told)
    found = []
    for draw in range(drawn, drawn + count):
        trial = study.ask()

        def value_for(
            name: str, domain: Any, value_of: Callable[[str], Any], trial: Any = trial, draw: int = draw
        ) -> Any:
            if not domain.learnt:
                return domain.draw(uniform(sweep, name, draw), value_of)
            return domain.suggest(trial, name)

        found.append(configuration_of(spec, sweep, value_for))
    return found


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
