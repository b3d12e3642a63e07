"""What came of a sweep, read from its folder alone: every trial, every configuration, the winner."""

from __future__ import annotations

import csv
import datetime
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from llrflow.base.files import write_atomic
from llrflow.base.harmless import csv_cell
from llrflow.base.shown import measured
from llrflow.runs.folder import RunFolder, label_of
from llrflow.runs.presets import evaluate_block
from llrflow.runs.records import versions
from llrflow.spec.schema import Spec
from llrflow.spec.source import dump_yaml, read_source
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.space.trials import Trial, look_label, sweep_of
from llrflow.sweep.tracking.looks import evaluation_of, looks_at, record_of
from llrflow.sweep.tracking.records import (
    ConfigurationRecord,
    EscalatedRecord,
    State,
    SweepRecord,
    SweepState,
    TrialRecord,
    WorkerRecord,
)
from llrflow.sweep.tracking.storage import Storage


def trial_record(spec: Spec, storage: Storage, trial: Trial, looks: Sequence[dict[str, float]] = ()) -> TrialRecord:
    """What the files say of a trial now; `looks` were read from them before and are not read again."""
    sweep, folder = sweep_of(spec), storage.run(trial.name)
    run, ended, on = record_of(folder), storage.ended(trial.name), sweep.decide_on
    step, label = 0 if run is None else run.step, look_label(trial.spec, sweep)
    reached, known = [rung for rung in trial.rungs if rung <= step], {look["step"]: look for look in looks}
    known |= {look["step"]: look for look in looks_at(folder, [r for r in reached if r not in known], label, on)}
    looks = [known[rung] for rung in reached if rung in known]
    final = evaluation_of(folder, trial.rungs[-1]) if run is not None and run.state == "finished" else None
    state: State = "unfinished" if run is not None else "waiting"
    if final is not None:
        state = "finished"
    elif ended is not None and ended.holds(sweep):
        state = ended.state
    last = looks[-1] if looks else {}
    checked = final if on == "test" or final is None else evaluation_of(folder, trial.rungs[-1], label, on)
    failed = ended if state == "failed" else None
    return TrialRecord(
        number=trial.number,
        configuration=trial.configuration,
        seed=trial.seed,
        run=trial.name,
        variant=trial.variant,
        parameters=trial.parameters,
        state=state,
        step=step,
        steps=trial.rungs[-1],
        rungs=looks,
        value=last.get(sweep.metric),
        nominal=last.get("nominal.accuracy") if final is None else final.nominal.accuracy,
        robust=last.get("worst_case.accuracy") if final is None else final.worst_case.accuracy,
        gamma=last.get(sweep.rung.gamma),
        masked=[] if checked is None else [flag.name for flag in checked.fired],
        escalated=None if final is None else _escalated(sweep, folder, trial.rungs[-1]),
        seconds={} if run is None else run.seconds,
        error=failed and failed.error,
        traceback=failed and failed.traceback,
        stopped=(ended.error or None) if ended is not None and state == "stopped" else None,
        line=storage.lines().get(trial.number, []) if sweep.scheduler.is_population else [],
    )


def outcome(
    spec: Spec,
    trials: Iterable[TrialRecord],
    state: SweepState,
    began: datetime.datetime,
    workers: Sequence[WorkerRecord],
) -> SweepRecord:
    """The record of a sweep whose trials stand as given."""
    sweep, listed = sweep_of(spec), sorted(trials, key=lambda trial: trial.number)
    found = configurations_of(sweep, listed)
    now = datetime.datetime.now(datetime.UTC)
    return SweepRecord(
        name=spec.name,
        metric=sweep.metric,
        mode=sweep.best_is,
        decided_on=sweep.decide_on,
        search=sweep.search.model_dump(),
        scheduler=sweep.scheduler.model_dump(),
        state=state,
        started=began.isoformat(timespec="seconds"),
        seconds=round((now - began).total_seconds(), 3),
        steps_trained=sum(trial.step for trial in listed),
        trials=listed,
        configurations=found,
        best=found[0].trials[0] if found and found[0].excluded is None else None,
        winners=_winners(found),
        workers=list(workers),
        versions=versions(),
    )


def _winners(ranked: Iterable[ConfigurationRecord]) -> dict[str, int]:
    """The first configuration of each variant that can win."""
    found: dict[str, int] = {}
    for one in ranked:
        if one.variant is not None and one.excluded is None:
            found.setdefault(one.variant, one.configuration)
    return found


def finalists(sweep: Sweep, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials of the configurations that `escalate` is for: the best by the metric alone, of each variant."""
    if sweep.escalate is None:
        return []
    known = {trial.number: trial for trial in trials}
    ranked = configurations_of(sweep, [trial.model_copy(update={"escalated": None}) for trial in known.values()])
    able = [c for c in ranked if c.excluded is None]
    groups = [[c for c in able if c.variant == variant] for variant in sweep.variants or [None]]
    chosen = [c for group in groups for c in group[: sweep.escalate.top]]
    return [known[number] for configuration in chosen for number in configuration.trials]


def configurations_of(sweep: Sweep, trials: Iterable[TrialRecord]) -> list[ConfigurationRecord]:
    """The configurations, best first."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault(trial.configuration, []).append(trial)
    sign = 1 if sweep.best_is == "max" else -1

    def place(c: ConfigurationRecord) -> tuple[Any, ...]:
        stronger = (c.escalated is None, -(c.escalated or 0.0))
        return c.excluded is not None, *stronger, c.mean is None, -sign * (c.mean or 0.0)

    found = sorted((_configuration(group) for group in groups.values()), key=place)
    attacked = {c.variant for c in found if c.escalated is not None}
    left_out = {"excluded": "not among those that stronger attacks were made on"}
    open_ = [c.variant in attacked and c.excluded is None and c.escalated is None for c in found]
    return [c.model_copy(update=left_out) if other else c for c, other in zip(found, open_, strict=True)]


def _escalated(sweep: Sweep, folder: RunFolder, step: int) -> EscalatedRecord | None:
    if sweep.escalate is None:
        return None
    attacks = sweep.escalate.attacks
    found = evaluation_of(folder, step, label_of(evaluate_block(attacks)), sweep.decide_on)
    if found is None:
        return None
    masked = [flag.name for flag in found.fired]
    return EscalatedRecord(attacks=attacks, robust=found.worst_case.accuracy, masked=masked)


def _configuration(trials: list[TrialRecord]) -> ConfigurationRecord:
    values = [trial.value for trial in trials if trial.value is not None]
    finished = sum(trial.state == "finished" for trial in trials)
    stronger = [trial.escalated for trial in trials if trial.escalated is not None]
    masked = sorted({flag for found in (*trials, *stronger) for flag in found.masked})
    excluded = None
    if finished < len(trials):
        states = ", ".join(sorted({trial.state for trial in trials} - {"finished"}))
        excluded = states if len(trials) == 1 else f"{finished} of {len(trials)} seeds finished ({states})"
        excluded = ": ".join([excluded, *[trial.stopped for trial in trials if trial.stopped][:1]])
    elif len(values) < len(trials):
        excluded = "the metric is not on record at the last rung"
    elif masked:
        excluded = f"signs of gradient masking: {', '.join(masked)}"
    return ConfigurationRecord(
        configuration=trials[0].configuration,
        variant=trials[0].variant,
        parameters=trials[0].parameters,
        trials=[trial.number for trial in trials],
        finished=finished,
        mean=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        escalated=statistics.fmean(e.robust for e in stronger) if len(stronger) == len(trials) else None,
        excluded=excluded,
    )


def write(spec: Spec, storage: Storage, record: SweepRecord) -> None:
    """Write sweep.json, trials.csv and, where there is a winner, best.yaml; where there are variants, one for each."""
    record.write(storage.record)
    _write_table(spec, storage, record)
    best = None if record.best is None else record.configurations[0]
    chosen = {storage.best: best} | {
        storage.best_of(name): record.configuration(record.winners[name]) if name in record.winners else None
        for name in sweep_of(spec).variants
    }
    chosen |= dict.fromkeys(set(storage.path.glob("best-*.yaml")) - chosen.keys())  # of variants that are no more
    for path, configuration in chosen.items():
        if configuration is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, _winner(spec, storage, record, configuration, path.name).encode())


def _winner(spec: Spec, storage: Storage, record: SweepRecord, won: ConfigurationRecord, file: str) -> str:
    """The spec that runs a configuration again, by its first seed, with what it came to."""
    first, seeds = record.trials[won.trials[0]], len(won.trials)
    data = {**read_source(str(storage.run(first.run).spec)).data, "devices": spec.devices.model_dump()}
    value = f"{record.metric} {measured(record.metric, won.mean, won.spread)} at the last rung"
    if won.escalated is not None and first.escalated is not None:
        value += f", {won.escalated:.2%} in the worst case of {first.escalated.attacks}"
    what = "the sweep" if won.variant is None or file == storage.best.name else f"{won.variant} in the sweep"
    which, own = f"trial {first.number}", ""
    if seeds > 1:
        which = f"the configuration of trials {', '.join(map(str, won.trials))}"
        value += f", mean and standard deviation of {seeds} seeds"
        own = f"# This is trial {first.number}, of seed {first.seed}: {measured(record.metric, first.value)}.\n"
    head = f"# The best of {what} {record.name}: {which}, {value}; {record.chosen_on}.\n{own}#   llrflow run {file}\n"
    return head + dump_yaml(data)


def _write_table(spec: Spec, storage: Storage, record: SweepRecord) -> None:
    names = list(sweep_of(spec).parameters)
    text = io.StringIO()
    table = csv.writer(text)
    variant = ["variant"] if sweep_of(spec).variants else []
    columns = ("number", "configuration", *variant, "seed", "state", "step", "value", "nominal", "robust", "gamma")
    table.writerow([*columns, "escalated", "seconds", *names, "masked", "error", "stopped", "run"])
    for trial in record.trials:
        values = [json.dumps(trial.parameters[n]) if n in trial.parameters else "" for n in names]
        own = [getattr(trial, column) for column in columns]
        rest = [" ".join(trial.masked), trial.error or "", trial.stopped or "", trial.run]
        stronger = None if trial.escalated is None else trial.escalated.robust
        row = [*own, stronger, round(sum(trial.seconds.values()), 3), *values, *rest]
        table.writerow(map(csv_cell, row))
    write_atomic(storage.table, text.getvalue().encode())
