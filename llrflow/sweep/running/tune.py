"""The trials of a sweep on Ray Tune, which starts, stops and retries them and tells of it by a callback."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray import tune

from llrflow.base.errors import shortened
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.population_schedulers import Takeovers
from llrflow.sweep.decisions.rounds import Queue
from llrflow.sweep.running.agenda import Agenda
from llrflow.sweep.running.budget import Budget
from llrflow.sweep.running.cluster import trial_resources
from llrflow.sweep.running.task import WORST, Task
from llrflow.sweep.running.worker import TrialRunner
from llrflow.sweep.space.trials import Trial
from llrflow.sweep.tracking.mirror import SWEEP
from llrflow.sweep.tracking.publisher import Publisher
from llrflow.sweep.tracking.storage import Ended, Storage


def fit(
    sweep: Sweep,
    storage: Storage,
    agenda: Agenda,
    publisher: Publisher,
    budget: Budget,
    address: str,
    todo: Sequence[Trial],
) -> None:
    """Have Tune run these trials, and those that are drawn once they have ended, until the budget is spent.

    Raises SpecError and DataError where drawing does.
    """
    start, scheduler, population = secrets.token_hex(8), sweep.scheduler, agenda.population

    def task_of(trial: Trial) -> dict[str, Any]:
        return Task.of(trial, sweep, storage, start, population)._asdict()

    def tasks_of(trials: Sequence[Trial]) -> list[dict[str, Any]]:
        return [task_of(trial) for trial in trials]

    def more() -> list[Trial]:
        if budget.exhausted:
            return []
        found = agenda.more()
        publisher.copy(SWEEP)  # what is drawn, before it runs
        return found

    trials, queue = todo, None
    if agenda.left:
        trials = todo or more()
        queue = Queue(tasks_of(trials), lambda: tasks_of(more()))
    waiting = deque(() if queue else tasks_of(trials))  # Tune would copy a whole grid for each of its values
    tuner = tune.Tuner(
        tune.with_resources(TrialRunner, trial_resources(sweep, address)),
        param_space={} if queue else {"trial": tune.sample_from(lambda _: waiting.popleft())},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.best_is,
            scheduler=scheduler.build(max(len(trial.rungs) for trial in trials))
            if population is None
            else scheduler.population_scheduler(Takeovers(sweep, population, task_of, publisher.view.say)),
            search_alg=queue,
            num_samples=-1 if queue else len(trials),
            max_concurrent_trials=None if address == "local" else sweep.concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=_run_config(sweep, storage, TrialCallback(sweep, storage, agenda, publisher, budget), budget),
    )
    try:
        tuner.fit()
    finally:
        publisher.close_trackers()
    if queue is not None and queue.problem is not None:
        raise queue.problem


def _run_config(sweep: Sweep, storage: Storage, callback: TrialCallback, budget: Budget) -> tune.RunConfig:
    return tune.RunConfig(
        name=storage.ray.name,
        storage_path=str(storage.path),
        failure_config=tune.FailureConfig(max_failures=sweep.budget.retries),
        callbacks=[callback],
        stop=budget,
        verbose=0,
    )


class TrialCallback(tune.Callback):
    """Follows the trials in the driver: notes how they ended, and has their records looked at again and published."""

    def __init__(self, sweep: Sweep, storage: Storage, agenda: Agenda, publisher: Publisher, budget: Budget) -> None:
        self._sweep, self._storage = sweep, storage
        self._agenda, self._publisher, self._budget = agenda, publisher, budget

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune would store it, for a restore that is never made

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Publish that it begins."""
        self._publisher.started(self._agenda.trials[_which(trial)[0]])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Take down a look at a trial and what it cost."""
        self._publisher.worked(result)
        measured = {key: value for key, value in result.items() if value not in (WORST, -WORST)}
        self._publisher.looked(result["run"], measured)
        self._look_again(_which(trial)[0], ended=False)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tell a trial that its scheduler stopped from one that came to its end."""
        number, name, last = (*_which(trial), trial.last_result or {})
        self._budget.failures += last.get("state") == "failed"
        if last.get("state") == "running" and not self._budget.exhausted:
            by = self._sweep.scheduler.model_dump()
            self._storage.end(name, Ended(state="stopped", step=int(last["step"]), by=by))
        self._look_again(number, ended=not self._budget.exhausted or last.get("state") != "running")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Put on record a trial whose worker died too often."""
        number, name, error = (*_which(trial), str(trial.get_error()))
        text = f"its worker died: {shortened(error.strip().splitlines()[-1])}"
        ended = Ended(state="failed", step=self._agenda.records[number].step, error=text, traceback=error)
        self._storage.end(name, ended)
        self._budget.failures += 1
        self._look_again(number, ended=True)

    def _look_again(self, number: int, ended: bool) -> None:
        agenda, known = self._agenda, self._agenda.records[number]
        looks = () if ended or known.run != agenda.trials[number].name else known.rungs
        self._publisher.changed(agenda.look_again(number, looks), ended)
        if ended and self._publisher.is_due():
            self._publisher.save(agenda.records.values(), "running")


def _which(trial: Any) -> tuple[int, str]:
    """Number and name of a trial of Tune."""
    return trial.config["trial"]["number"], trial.config["trial"]["name"]
