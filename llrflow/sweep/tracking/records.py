"""What stands in sweep.json."""

from __future__ import annotations

from typing import Any, Literal

from llrflow.runs.records import Images, Record

SWEEP_FORMAT = 1
"""Of sweep.json."""

State = Literal["waiting", "unfinished", "stopped", "finished", "failed"]
"""Of a trial."""

SweepState = Literal["running", "finished", "interrupted", "out of budget"]


class EscalatedRecord(Record):
    """What stronger attacks left of a trial."""

    attacks: str
    """The preset."""
    robust: float
    """Worst-case accuracy."""
    masked: list[str]
    """Signs of gradient masking."""


class Segment(Record):
    """What a member of a population did from one step on."""

    step: int
    """Where it begins."""
    source: int | None
    """The member whose weights it took over there; None at the start."""
    run: str
    """Its run folder from then on."""
    values: dict[str, Any]
    """Its parameters."""


class TrialRecord(Record):
    """One trial."""

    number: int
    configuration: int
    seed: int
    run: str
    """Its folder below runs/."""
    variant: str | None = None
    """Where the sweep has variants."""
    parameters: dict[str, Any]
    """The swept values, by the parameter's name."""
    state: State
    step: int
    """Of its newest checkpoint."""
    steps: int
    rungs: list[dict[str, float]]
    """What was measured at each look, by metric, and `step`."""
    value: float | None
    """The metric at the last look."""
    nominal: float | None
    """Of a finished trial: accuracy in its evaluation; else at the last look."""
    robust: float | None
    """Worst-case accuracy likewise."""
    gamma: float | None
    """Mean linearity error in nats at the first attack of the last look."""
    masked: list[str]
    """Signs of gradient masking; with any it cannot win. Those of its evaluation; of its last look where validation
    images decide."""
    escalated: EscalatedRecord | None = None
    """Of a trial among the best."""
    seconds: dict[str, float]
    """Of run.json: compile, train, look, evaluate."""
    error: str | None
    """Why it failed."""
    traceback: str | None
    stopped: str | None = None
    """What the guard saw, where it stopped the trial; None where a scheduler did."""
    line: list[Segment] = []
    """Of a member of a population: what it went through, that of those whose weights it took over included."""


class ConfigurationRecord(Record):
    """The trials that differ in their seed alone."""

    configuration: int
    variant: str | None = None
    parameters: dict[str, Any]
    trials: list[int]
    finished: int
    mean: float | None
    """Of the metric at the last look, over its seeds."""
    spread: float | None
    """Standard deviation over its seeds (n - 1); None of one seed."""
    escalated: float | None = None
    """Mean worst-case accuracy under stronger attacks, over its seeds; those that have one are before all others."""
    excluded: str | None
    """Why it cannot win."""


class WorkerRecord(Record):
    """One process that ran trials."""

    worker: str
    """node:pid."""
    trials: int
    busy: float
    """Seconds spent inside trials."""
    compilations: int
    """Everything that XLA compiled."""
    step_compilations: dict[str, int]
    """By the name of the trial that was run last: how often its training step had been compiled in the process. Trials
    that differ in traced numbers share one, so that this is 1."""


class SweepRecord(Record):
    """sweep.json."""

    format: Literal[1] = SWEEP_FORMAT
    name: str
    metric: str
    mode: Literal["max", "min"]
    decided_on: Images = "test"
    """Images by which rungs, guards and the winner were decided; sweeps before this field took test images."""
    search: dict[str, Any]
    scheduler: dict[str, Any]
    state: SweepState
    started: str
    """UTC, of the last start."""
    seconds: float
    """Wall time since then."""
    steps_trained: int
    """Optimizer steps, over all trials."""
    trials: list[TrialRecord]
    configurations: list[ConfigurationRecord]
    """Best first."""
    best: int | None
    """Number of the first trial of the best configuration."""
    winners: dict[str, int] = {}
    """By variant the best of its configurations."""
    workers: list[WorkerRecord]
    """Since the last start."""
    versions: dict[str, str]

    def configuration(self, number: int) -> ConfigurationRecord:
        """A configuration by its number."""
        return next(one for one in self.configurations if one.configuration == number)

    @property
    def chosen_on(self) -> str:
        """By which images the winner was chosen, in words."""
        return f"chosen on the {self.decided_on} images"

    def of_state(self, *states: State) -> list[TrialRecord]:
        """The trials in these states."""
        return [trial for trial in self.trials if trial.state in states]
