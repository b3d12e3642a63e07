"""How a sweep goes, on standard error: a table on a terminal, a line for each trial that ends otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llrflow.base.shown import measured, named, telling

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
        metric = self._sweep.metric
        value = "" if record.value is None else f", {metric} {measured(metric, record.value)}"
        head = f"{len(self._ended)} of {self._total}: trial {record.number} {record.state}{where}{why}"
        values = ", ".join(filter(None, (record.variant, named(record.parameters, tellers(self._sweep)))))
        seed = f", seed {record.seed}" if self._sweep.seeds > 1 else ""
        return f"{head} ({values}{seed}){value}; {self._best_text()}, {self._left()}"

    def _sorted(self) -> list[TrialRecord]:
        """Trials with a value, best first."""
        sign = -1 if self._sweep.best_is == "max" else 1
        valued = [record for record in self._records.values() if record.value is not None]
        return sorted(valued, key=lambda record: sign * (record.value or 0.0))

    def _best_text(self) -> str:
        eligible = [record for record in self._sorted() if record.state == "finished" and not record.masked]
        if not eligible:
            return "none finished yet"
        best = eligible[0]
        return f"best trial so far {measured(self._sweep.metric, best.value)} (trial {best.number})"

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
        for heading in headings(self._sweep):
            table.add_column(heading, justify="left" if heading == "state" else "right")
        running = [self._records[number] for number in self._running]
        rest = [record for record in self._sorted() if record.number not in self._running]
        for record in (*running, *rest)[:ROWS]:
            table.add_row(*cells(self._sweep, record, record.number in self._running))
        return table


def headings(sweep: Sweep) -> list[str]:
    """Those of a table of trials."""
    told = [*(["variant"] if sweep.variants else []), *sweep.parameters, *(["seed"] if sweep.seeds > 1 else [])]
    return ["trial", "state", "step", *told, sweep.metric, "nominal", "gamma"]


def cells(sweep: Sweep, record: TrialRecord, running: bool = False) -> list[str]:
    """A row of a table of trials, below `headings`."""
    state = "running" if running else f"masked? {record.masked[0]}" if record.masked else record.state
    tell, given = tellers(sweep), record.parameters
    values = [tell[name](given[name]) if name in given else "" for name in sweep.parameters]
    told = [*([record.variant or ""] if sweep.variants else []), *values]
    told += [str(record.seed)] if sweep.seeds > 1 else []
    numbers = [measured(sweep.metric, record.value), measured("accuracy", record.nominal), measured("", record.gamma)]
    return [str(record.number), state, f"{record.step}/{record.steps}", *told, *numbers]


def tellers(sweep: Sweep) -> dict[str, Callable[[Any], str]]:
    """How the values of each parameter are named."""
    return {name: telling(domain.listed() or ()) for name, domain in sweep.parameters.items()}
