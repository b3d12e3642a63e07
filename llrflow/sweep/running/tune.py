"""A sweep on Ray Tune: Tune starts, stops and retries trials; what they did is read from their run folders."""

from __future__ import annotations

import datetime
import secrets
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ray import tune

from llrflow.base.errors import SpecError
from llrflow.base.files import write_atomic
from llrflow.data.facts import describe
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.spec.load import at
from llrflow.spec.schema import Spec
from llrflow.spec.source import dump_yaml
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.decisions.population import Population
from llrflow.sweep.decisions.population_schedulers import Takeovers
from llrflow.sweep.decisions.rounds import Queue, Rounds
from llrflow.sweep.running.cluster import SLOT, cluster
from llrflow.sweep.running.escalate import escalated
from llrflow.sweep.running.worker import TrialRunner
from llrflow.sweep.space.trials import Trial, base_of, sweep_of, trials_of
from llrflow.sweep.tracking.live import View
from llrflow.sweep.tracking.mirror import SWEEP, Mirror
from llrflow.sweep.tracking.outcome import finalists, outcome, trial_record, write
from llrflow.sweep.tracking.records import SweepRecord, WorkerRecord
from llrflow.sweep.tracking.storage import Ended, Storage, folder_of
from llrflow.sweep.tracking.trackers import Tracker, trackers_of

WORST = 1e9
"""A metric worse than any; not infinite, because schedulers take means."""

BETWEEN, SHARE = 5.0, 0.05
"""Least seconds between two writings of sweep.json, and the largest share of the time that they may take."""


class Task(NamedTuple):
    """What a worker is told of a trial."""

    storage: str
    start: str
    number: int
    name: str
    overrides: dict[str, Any]
    rungs: list[int]
    worst: float
    """What Tune hears of the metric of a trial that failed."""
    scheduler: dict[str, Any]
    is_population: bool
    """Whether others may take over its weights."""
    reported: int
    """Rungs that are settled already."""
    values: dict[str, Any]
    """Of the parameters that a population changes."""
    source: tuple[str, int] | None
    """The run whose weights it takes over, and at which step."""


def run_sweep(
    spec: Spec,
    out: str | Path | None = None,
    address: str = "local",
    resume: bool = False,
    quiet: bool = True,
    mirror: str | None = None,
) -> SweepRecord:
    """Run every trial of a spec's sweep and return the outcome, which is in the sweep's folder as well.

    The folder is `out`, or sweeps/<name>. `address` is `local` (a Ray of its own on this machine), `auto` (the one
    that runs here) or HOST:PORT. `resume` goes on with the sweep in the folder: finished trials are only read.
    `mirror` is a URI where the folder is copied while the sweep goes on, and from where `resume` brings it when there
    is none.
    Raises SpecError and DataError before Ray starts, Interrupted after Ctrl-C or SIGTERM with everything on record.
    """
    sweep, trials = sweep_of(spec), trials_of(spec, describe)
    if address != "local" and sweep.concurrency and sweep.scheduler.waits:
        got = f"would keep {sweep.scheduler.label()} on a cluster from letting trials wait for each other"
        raise at(spec, "sweep.concurrency", got, "delete it, or set `resources` so that fewer trials fit")
    if sweep.resources.gpu or sweep.resources.custom:
        jax.config.update("jax_platforms", "cpu")  # the driver leaves accelerators to its workers
    check_trials(spec, trials, describe)
    storage = Storage(folder_of(spec, out))
    copied = None if mirror is None else _mirror(mirror, storage, resume)
    if resume != storage.spec.exists():
        fix = "leave --resume out" if resume else "continue it with --resume, or choose another --out"
        raise SpecError(str(storage.path), "holds no sweep" if resume else "holds a sweep", fix)
    trackers = trackers_of(spec, storage)
    with storage.owned(), ExitStack() as stack:
        assert spec._source is not None
        write_atomic(storage.spec, dump_yaml({**base_of(spec), "sweep": spec._source.data["sweep"]}).encode())
        if copied is not None:
            stack.enter_context(copied)
        rounds = Rounds(spec, storage) if sweep.search.learns else None
        population = Population(spec, storage, trials) if sweep.scheduler.is_population else None
        begun = trials if rounds is None else rounds.trials
        watch = _Watch(spec, storage, begun, quiet, rounds, population, trackers, copied)
        todo = watch.todo()
        state = "finished"
        if todo or watch.left or watch.finalists():
            # What Ray has to say of dying nodes is no part of a result on standard output.
            with redirect_stdout(sys.stderr), watch.view, cluster(spec, sweep, address), _stop_requests() as stop:
                watch.budget.request = stop
                try:
                    if todo or watch.left:
                        _fit(sweep, todo, storage, watch, address)
                    if not watch.exhausted:
                        watch.escalate(_wanted(sweep, address))
                except BaseException:  # what was raised inside Ray's compiled code comes out as a SystemError
                    if stop.signum is None:
                        raise
        asked = watch.budget.request.signum
        if asked is not None or watch.exhausted:
            state = "out of budget" if asked is None else "interrupted"
        shutil.rmtree(storage.ray, ignore_errors=True)
        if state == "finished":
            shutil.rmtree(storage.pinned, ignore_errors=True)
        watch.look_again()
        record = watch.save(state)
        if asked is not None:
            raise Interrupted(asked, "the sweep was stopped; the same command with --resume continues it")
    return record


def _mirror(uri: str, storage: Storage, resume: bool) -> Mirror:
    """The mirror of a sweep's folder; to resume where there is no folder its content is brought. Raises SpecError."""
    found = Mirror(uri, storage)
    holds = found.holds_sweep()
    if holds and not resume:
        raise SpecError(
            "--mirror", f"{found.shown} holds a sweep", "continue it with --resume, or choose another --mirror"
        )
    if holds and not storage.spec.exists():
        found.fetch()
    elif holds and not found.is_of(storage):
        got = f"{found.shown} holds another sweep than {storage.path}"
        raise SpecError("--mirror", got, "name the mirror of this sweep, or another one")
    return found


def _fit(sweep: Sweep, todo: Sequence[Trial], storage: Storage, watch: _Watch, address: str) -> None:
    scheduler, population = sweep.scheduler, watch.population

    def task_of(trial: Trial) -> dict[str, Any]:
        settled = 0 if population is None else sum(rung <= population.settled for rung in trial.rungs)
        return Task(
            storage=str(storage.path),
            start=watch.start,
            number=trial.number,
            name=trial.name,
            overrides=trial.overrides,
            rungs=[*trial.rungs],
            worst=-WORST if sweep.best_is == "max" else WORST,
            scheduler=scheduler.model_dump(),
            is_population=scheduler.is_population,
            reported=settled,
            values={name: trial.parameters[name] for name in sweep.changing} if scheduler.is_population else {},
            source=None if population is None else population.source(trial.number),
        )._asdict()

    def tasks_of(trials: Sequence[Trial]) -> list[dict[str, Any]]:
        return [task_of(trial) for trial in trials]

    trials, queue = todo, None
    if watch.left:
        trials = todo or watch.more()
        queue = Queue(tasks_of(trials), lambda: tasks_of(watch.more()))
    waiting = deque(() if queue else tasks_of(trials))  # Tune would copy a whole grid for each of its values
    tuner = tune.Tuner(
        tune.with_resources(TrialRunner, _wanted(sweep, address)),
        param_space={} if queue else {"trial": tune.sample_from(lambda _: waiting.popleft())},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.best_is,
            scheduler=scheduler.build(max(len(trial.rungs) for trial in trials))
            if population is None
            else scheduler.population_scheduler(Takeovers(sweep, population, task_of, watch.view.say)),
            search_alg=queue,
            num_samples=-1 if queue else len(trials),
            max_concurrent_trials=None if address == "local" else sweep.concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=storage.ray.name,
            storage_path=str(storage.path),
            failure_config=tune.FailureConfig(max_failures=sweep.budget.retries),
            callbacks=[watch],
            stop=watch.budget,
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        for tracker in watch.trackers:
            tracker.close()
    if queue is not None and queue.problem is not None:
        raise queue.problem


def _wanted(sweep: Sweep, address: str) -> dict[str, float]:
    """What a trial asks of Ray, as Tune writes it."""
    wanted = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu, **sweep.resources.custom}
    return {**wanted, SLOT: 1} if address == "local" and sweep.concurrency is not None else wanted


class _Budget(tune.Stopper):
    """Ends the sweep when its time is up or too many trials have failed."""

    def __init__(self, sweep: Sweep) -> None:
        self._budget, self._began, self.failures, self.exhausted = sweep.budget, time.monotonic(), 0, False
        self.request = StopRequest()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        hours, failures = self._budget.hours, self._budget.failures
        late = hours is not None and time.monotonic() - self._began > hours * 3600
        failed = failures is not None and self.failures > failures
        self.exhausted = self.exhausted or late or failed or self.request.signum is not None
        return self.exhausted


class _Watch(tune.Callback):
    """Follows a sweep in the driver: notes who was stopped, keeps sweep.json up to date, shows how it goes."""

    def __init__(
        self,
        spec: Spec,
        storage: Storage,
        trials: Sequence[Trial],
        quiet: bool,
        rounds: Rounds | None = None,
        population: Population | None = None,
        trackers: Sequence[Tracker] = (),
        mirror: Mirror | None = None,
    ) -> None:
        self._rounds, self.population, self.trackers, self._mirror = rounds, population, trackers, mirror
        self._spec, self._storage, self._sweep = spec, storage, sweep_of(spec)
        # Those of a population change while it runs.
        self._trials = {trial.number: trial for trial in trials} if population is None else population.members
        self._records = {number: trial_record(spec, storage, trial) for number, trial in self._trials.items()}
        self._workers: dict[str, WorkerRecord] = {}
        self._began, self._save_after = datetime.datetime.now(datetime.UTC), 0.0
        self.start = secrets.token_hex(8)
        self.budget = _Budget(self._sweep)
        self.view = View(self._sweep, list(self._records.values()), quiet)
        if mirror is not None and not quiet:
            mirror.say = self.view.say

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune would store it, for a restore that is never made

    @property
    def exhausted(self) -> bool:
        """Whether the sweep ended before its trials did."""
        open_ = any(record.state in ("waiting", "unfinished") for record in self._records.values())
        return self.budget.exhausted and (open_ or self.left > 0 or bool(self.finalists()))

    @property
    def left(self) -> int:
        """Configurations that are still to be drawn."""
        return 0 if self._rounds is None else self._rounds.left

    def more(self) -> list[Trial]:
        """The trials of another round, now that all others have ended; none when all are drawn, or the budget spent."""
        if self._rounds is None or self.budget.exhausted:
            return []
        found = self._rounds.more(self._records.values())
        self._copy(SWEEP)  # what is drawn, before it runs
        self._trials |= {trial.number: trial for trial in found}
        self._records |= {trial.number: trial_record(self._spec, self._storage, trial) for trial in found}
        return found

    def todo(self) -> list[Trial]:
        """The trials that Tune must hear of, those with the most on record first.

        A scheduler compares with trials that have ended, so they report again what is on record; without one they
        are left out.
        """
        order = ("finished", "stopped", "failed", "unfinished", "waiting")
        listed = sorted(self._records.values(), key=lambda record: (order.index(record.state), record.number))
        if all(record.state in ("finished", "stopped") for record in listed):
            return []
        for record in listed:
            if record.state == "failed":
                self._storage.forget_end(record.run)
                self._records[record.number] = trial_record(self._spec, self._storage, self._trials[record.number])
        if self.population is not None:  # whose decisions depend on the order, and on nobody that the guard stopped
            listed = [record for record in self._records.values() if record.state != "stopped"]
        alone = self._sweep.scheduler.registered_as[1] == "fifo"
        return [self._trials[r.number] for r in listed if not (alone and r.state == "finished")]

    def finalists(self) -> list[Trial]:
        """Trials among the best that have not been attacked with the stronger attacks yet."""
        return [self._trials[r.number] for r in finalists(self._sweep, self._records.values()) if r.escalated is None]

    def escalate(self, wanted: dict[str, float]) -> None:
        """Attack these, as tasks of Ray."""
        if self._sweep.escalate is None:
            return
        attacks, retries = self._sweep.escalate.attacks, self._sweep.budget.retries
        late = self.budget.stop_all
        for trial, problem in escalated(attacks, self._storage, self.finalists(), wanted, retries, late):
            record = self._records[trial.number] = trial_record(self._spec, self._storage, trial)
            left = f"failed: {problem}" if record.escalated is None else f"leaves {record.escalated.robust:.2%}"
            self._copy(trial.name)
            self.view.say(f"trial {trial.number}: {attacks} {left}")

    def look_again(self) -> None:
        """Read what trials that have not ended left behind."""
        for number, record in self._records.items():
            if record.state in ("waiting", "unfinished"):
                self._records[number] = trial_record(self._spec, self._storage, self._trials[number])
                self._copy(self._trials[number].name)

    def save(self, state: Any) -> SweepRecord:
        """Write the outcome so far."""
        began = time.monotonic()
        record = outcome(self._spec, self._records.values(), state, self._began, list(self._workers.values()))
        write(self._spec, self._storage, record)
        self._copy(SWEEP)
        ended = time.monotonic()
        self._save_after = ended + max(BETWEEN, (ended - began) / SHARE)
        return record

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show it to the trackers."""
        for tracker in self.trackers:
            tracker.start(self._trials[_which(trial)[0]])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Take down a look at a trial and what it cost."""
        name, worker = result["run"], result["worker"]
        known = self._workers.get(worker)
        if known is None:
            known = WorkerRecord(worker=worker, trials=0, busy=0.0, compilations=0, step_compilations={})
        steps = dict(known.step_compilations)
        if result["step_compilations"]:
            steps[name] = result["step_compilations"]
        self._workers[worker] = known.model_copy(
            update={
                "trials": len(steps),
                "busy": round(known.busy + result["busy"], 3),
                "compilations": known.compilations + result["compilations"],
                "step_compilations": steps,
            }
        )
        for tracker in self.trackers:
            tracker.look(name, {key: value for key, value in result.items() if value not in (WORST, -WORST)})
        self._refresh(_which(trial)[0], ended=False)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tell a trial that its scheduler stopped from one that came to its end."""
        number, name, last = (*_which(trial), trial.last_result or {})
        self.budget.failures += last.get("state") == "failed"
        if last.get("state") == "running" and not self.budget.exhausted:
            by = self._sweep.scheduler.model_dump()
            self._storage.end(name, Ended(state="stopped", step=int(last["step"]), by=by))
        self._refresh(number, ended=not self.budget.exhausted or last.get("state") != "running")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Put on record a trial whose worker died too often."""
        number, name, error = (*_which(trial), str(trial.get_error()))
        text = f"its worker died: {error.strip().splitlines()[-1][:200]}"
        ended = Ended(state="failed", step=self._records[number].step, error=text, traceback=error)
        self._storage.end(name, ended)
        self.budget.failures += 1
        self._refresh(number, ended=True)

    def _refresh(self, number: int, ended: bool) -> None:
        trial, known = self._trials[number], self._records[number]
        looks = () if ended or known.run != trial.name else known.rungs
        record = self._records[number] = trial_record(self._spec, self._storage, trial, looks)
        if self.population is not None:
            self._copy(SWEEP)  # who took over whom, before what it led to
        self._copy(record.run)
        self.view.show(record, ended)
        for tracker in self.trackers if ended else ():
            tracker.end(record)
        if ended and time.monotonic() > self._save_after:
            self.save("running")

    def _copy(self, name: str) -> None:
        """Have a run, or the SWEEP's own files, copied to the mirror."""
        if self._mirror is not None:
            self._mirror.touch(name)


def _which(trial: Any) -> tuple[int, str]:
    """Number and name of a trial of Tune."""
    return trial.config["trial"]["number"], trial.config["trial"]["name"]


class _Stop(BaseException):
    """Ctrl-C or SIGTERM; no Exception, which Tune would take for its own."""


@contextmanager
def _stop_requests() -> Iterator[StopRequest]:
    """Raise _Stop in the block on SIGINT and SIGTERM."""
    request = StopRequest()

    def stop(signum: int, frame: Any) -> None:
        if request.signum is None:
            request.signum = signum
            raise _Stop

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
