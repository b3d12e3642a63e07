"""Progress on standard error: a bar on a terminal, a line for every tenth otherwise, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llrflow.base.harmless import printable

Report = Callable[..., None]
"""report(done, note="", total=None): how much is finished, a few words about it, and a new total once it is known."""


def say(message: str) -> None:
    """A line on standard error."""
    print(printable(message), file=sys.stderr)


@contextmanager
def progress(title: str, total: int, quiet: bool = False, done: int = 0) -> Iterator[Report]:
    """Show how far a job of `total` parts is, with rate and time left; `done` parts were finished before."""
    if quiet:
        yield lambda done, note="", total=None: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(
            title, total, done, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
        )
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Parts a second, of the last half minute."""

        def render(self, task: Any) -> Text:
            return Text("" if task.speed is None else per_second(task.speed), style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note, console=console, transient=True) as bars:
        task = bars.add_task(title, total=total, completed=done, note="")
        yield lambda done, note="", total=None: bars.update(task, completed=done, note=note, total=total)


def per_second(rate: float) -> str:
    """A rate as people write it."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


class _Lines:
    """Prints `title: done of total, rate/s, time left, note` whenever another tenth is done."""

    def __init__(self, title: str, total: int, done: int, write: Callable[[str], None]) -> None:
        self._title, self._total, self._first, self._write = title, total, done, write
        self._tenths, self._start = done * 10 // max(total, 1), time.monotonic()

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None:
        self._total = total or self._total
        if done * 10 // max(self._total, 1) <= self._tenths:
            return
        self._tenths = done * 10 // max(self._total, 1)
        rate = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = (self._total - done) / max(rate, 1e-9)
        parts = [f"{self._title}: {done} of {self._total}", per_second(rate), f"{left:.0f} s left"]
        self._write(", ".join([*parts, note] if note else parts))
