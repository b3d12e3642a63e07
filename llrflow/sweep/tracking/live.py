"""How a sweep goes, on standard error: a table on a terminal, a line for each trial that ends otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llrflow.base.shown import named, short

if TYPE_CHECKING:
    from llrflow.spec.sweep_schema import Sweep
    from llrflow.sweep.tracking.records import TrialRecord

ROWS = 12
"""Most trials in the table: those that run, then the best of the others."""


class View:
    """Shows trials as their records change; nothing when quiet. A context, so that a table is cleared away."""

    def __init__(self, sweep: Sweep, records: Sequence[TrialRecord], quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._sweep, self._records = sweep, {record.number: record for record in records}
        self._total = (sweep.trials or 0) * sweep.seeds if sweep.search.learns else len(records)
        self._running: dict[int, None] = {}
        self._ended = {record.number for record in records if record.state in ("finished", "stopped")}
        self._before, self._began = len(self._ended), time.monotonic()
        self._console = None if quiet else Console(stderr=True)
        table = self._console is not None and self._console.is_terminal
        self._live = Live(console=self._console, transient=True, auto_refresh=False) if table else None

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, record: TrialRecord, ended: bool) -> None:
        """Take a trial's new record."""
        known = record.number in self._ended
        self._records[record.number] = record
        self._running[record.number] = None
        if ended:
            self._running.pop(record.number)
            self._ended.add(record.number)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif ended and not known:
            self.say(self._line(record))

    def say(self, line: str) -> None:
        """A line by itself."""
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, record: TrialRecord) -> str:
        where = "" if record.state == "finished" else f" at step {record.step} of {record.steps}"
        why = "".join(f": {reason}" for reason in (record.error, record.stopped) if reason)
        measured = "" if record.value is None else f", {self._sweep.metric} {record.value:.4g}"
        head = f"{len(self._ended)} of {self._total}: trial {record.number} {record.state}{where}{why}"
        return f"{head} ({named(record.parameters)}){measured}; {self._best_text()}, {self._left()}"

    def _sorted(self) -> list[TrialRecord]:
        """Trials with a value, best first."""
        sign = -1 if self._sweep.best_is == "max" else 1
        valued = [record for record in self._records.values() if record.value is not None]
        return sorted(valued, key=lambda record: sign * (record.value or 0.0))

    def _best_text(self) -> str:
        eligible = [record for record in self._sorted() if record.state == "finished" and not record.masked]
        return f"best so far {eligible[0].value:.4g} (trial {eligible[0].number})" if eligible else "none finished yet"

    def _left(self) -> str:
        done, total = len(self._ended) - self._before, self._total - self._before
        if done <= 0:
            return "time left unknown"
        return f"about {(time.monotonic() - self._began) / done * (total - done):.0f} s left"

    def _table(self) -> Any:
        from rich.table import Table

        states = [record.state for number, record in self._records.items() if number in self._ended]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "none ended"
        title = f"{len(self._ended)} of {self._total} trials ({counts}); {self._best_text()}, {self._left()}"
        table = Table(title=title, title_justify="left", box=None)
        for heading in ("trial", "state", "step", *self._sweep.parameters, self._sweep.metric, "nominal", "gamma"):
            table.add_column(heading, justify="left" if heading == "state" else "right")
        running = [self._records[number] for number in self._running]
        rest = [record for record in self._sorted() if record.number not in self._running]
        for record in (*running, *rest)[:ROWS]:
            table.add_row(*cells(self._sweep, record, record.number in self._running))
        return table


def cells(sweep: Sweep, record: TrialRecord, running: bool = False) -> list[str]:
    """A row of a table of trials: number, state, step, parameters, metric, nominal accuracy, gamma."""
    state = "running" if running else f"masked? {record.masked[0]}" if record.masked else record.state
    values = [short(record.parameters[name]) if name in record.parameters else "" for name in sweep.parameters]
    numbers = [_number(record.value), _percent(record.nominal), _number(record.gamma)]
    return [str(record.number), state, f"{record.step}/{record.steps}", *values, *numbers]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
