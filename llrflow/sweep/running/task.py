"""What the driver tells a worker of a trial."""

from __future__ import annotations

from typing import Any, NamedTuple

from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.decisions.population import Population
from llrflow.sweep.space.trials import Trial
from llrflow.sweep.tracking.storage import Storage

WORST = 1e9
"""A metric worse than any; not infinite, because schedulers take means."""


class Task(NamedTuple):
    """What a worker is told of a trial."""

    storage: str
    start: str
    """Names this start of the driver: what a worker keeps of the spec holds no longer than that."""
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

    @classmethod
    def of(cls, trial: Trial, sweep: Sweep, storage: Storage, start: str, population: Population | None) -> Task:
        """The task of a trial, as it stands now."""
        settled = 0 if population is None else sum(rung <= population.settled for rung in trial.rungs)
        return cls(
            storage=str(storage.path),
            start=start,
            number=trial.number,
            name=trial.name,
            overrides=trial.overrides,
            rungs=[*trial.rungs],
            worst=-WORST if sweep.best_is == "max" else WORST,
            scheduler=sweep.scheduler.model_dump(),
            is_population=sweep.scheduler.is_population,
            reported=settled,
            values={} if population is None else {name: trial.parameters[name] for name in sweep.changing},
            source=None if population is None else population.source(trial.number),
        )
