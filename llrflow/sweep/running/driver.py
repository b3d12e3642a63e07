"""A sweep from its spec to its outcome, which is read from its folder: the process that starts Ray and Tune."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import jax

from llrflow.base.errors import CheckpointError, SpecError
from llrflow.base.files import write_atomic
from llrflow.base.progress import say
from llrflow.base.shown import measured
from llrflow.components.consent import remember
from llrflow.data.facts import describe
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.sealed import read_record
from llrflow.runs.surrogates import check_consent
from llrflow.spec.load import at
from llrflow.spec.schema import Spec
from llrflow.spec.source import dump_yaml
from llrflow.sweep.decisions.check import check_trials
from llrflow.sweep.running.agenda import Agenda
from llrflow.sweep.running.budget import Budget, stopped_by_signals
from llrflow.sweep.running.cluster import cluster
from llrflow.sweep.running.escalate import escalate
from llrflow.sweep.running.tune import fit
from llrflow.sweep.space.trials import Trial, base_of, shown, sweep_of, trials_of
from llrflow.sweep.space.variants import inlined
from llrflow.sweep.tracking.mirror import Mirror
from llrflow.sweep.tracking.publisher import Publisher
from llrflow.sweep.tracking.records import SweepRecord
from llrflow.sweep.tracking.storage import Storage, folder_of
from llrflow.sweep.tracking.trackers import trackers_of


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
    Raises SpecError and DataError before Ray starts, LlrflowError when it does not,
    Interrupted after Ctrl-C or SIGTERM with everything on record.
    """
    sweep, trials = sweep_of(spec), trials_of(spec, describe)
    _check(spec, trials, address)
    storage = Storage(folder_of(spec, out))
    copied = None if mirror is None else _mirror(mirror, storage, resume)
    if resume != storage.spec.exists():
        fix = "leave --resume out" if resume else "continue it with --resume, or choose another --out"
        raise SpecError(str(storage.path), "holds no sweep" if resume else "holds a sweep", fix)
    trackers = trackers_of(spec, storage)
    with storage.owned():
        write_atomic(storage.spec, dump_yaml({**base_of(spec), "sweep": inlined(spec)}).encode())
        remember(spec.plugin_paths())
        with nullcontext() if copied is None else copied:
            agenda, budget = Agenda(spec, storage, trials), Budget(sweep)
            _tell_left_out(storage, agenda)
            publisher = Publisher(spec, storage, agenda.records.values(), quiet, trackers, copied)
            _run_what_is_left(spec, storage, agenda, publisher, budget, address)
            return _conclude(storage, agenda, publisher, budget)


def _check(spec: Spec, trials: Sequence[Trial], address: str) -> None:
    """Find out what the trials and the cluster do not allow. Raises SpecError and DataError."""
    sweep = sweep_of(spec)
    if address != "local" and sweep.concurrency and sweep.scheduler.waits:
        got = f"would keep {sweep.scheduler.label()} on a cluster from letting trials wait for each other"
        raise at(spec, "sweep.concurrency", got, "delete it, or set `resources` so that fewer trials fit")
    if sweep.resources.gpu or sweep.resources.custom:
        jax.config.update("jax_platforms", "cpu")  # the driver leaves accelerators to its workers
    check_trials(spec, trials, describe)
    check_consent(trial.spec for trial in trials)


def _tell_left_out(storage: Storage, agenda: Agenda) -> None:
    """Name the finished trials on record that the spec's space no longer has: nothing compares with them any more."""
    try:
        before = read_record(SweepRecord, storage.record, "")
    except (FileNotFoundError, CheckpointError):
        return
    held = {trial.name for trial in agenda.trials.values()}
    held |= {part.run for trial in agenda.records.values() for part in trial.line}
    lost = [trial for trial in before.of_state("finished") if trial.run not in held]
    if lost:
        named = "; ".join(
            f"{trial.run} ({shown(trial.parameters)}; {measured(before.metric, trial.value)})" for trial in lost
        )
        say(f"{len(lost)} finished trial(s) are not in the space any more, and in no table; their runs stay: {named}")


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


def _run_what_is_left(
    spec: Spec, storage: Storage, agenda: Agenda, publisher: Publisher, budget: Budget, address: str
) -> None:
    """Run the trials, then the stronger attacks on the best; Ray starts where there is anything to do.

    Returns early when the budget is spent, or a signal asks to stop. Raises SpecError, DataError and LlrflowError.
    """
    sweep, todo = sweep_of(spec), agenda.todo()
    if agenda.done:
        return
    # What Ray has to say of dying nodes is no part of a result on standard output.
    with (
        redirect_stdout(sys.stderr),
        publisher.view,
        cluster(spec, sweep, address),
        stopped_by_signals(budget.request),
    ):
        try:
            if todo or agenda.left:
                fit(sweep, storage, agenda, publisher, budget, address, todo)
            if not budget.exhausted or agenda.done:
                escalate(sweep, storage, agenda, publisher, budget, address)
        except BaseException:  # what was raised inside Ray's compiled code comes out as a SystemError
            if budget.request.signum is None:
                raise


def _conclude(storage: Storage, agenda: Agenda, publisher: Publisher, budget: Budget) -> SweepRecord:
    """Write what came of it, and delete what served only while it ran. Raises Interrupted where a signal ended it."""
    asked = budget.request.signum
    state = "finished"
    if asked is not None:
        state = "interrupted"
    elif budget.exhausted and not agenda.done:
        state = "out of budget"
    shutil.rmtree(storage.ray, ignore_errors=True)
    if state == "finished":
        shutil.rmtree(storage.pinned, ignore_errors=True)
    for number in agenda.unfinished:  # what they left behind
        publisher.copy(agenda.look_again(number).run)
    record = publisher.save(agenda.records.values(), state)
    if asked is not None:
        raise Interrupted(asked, "the sweep was stopped; the same command with --resume continues it")
    return record
