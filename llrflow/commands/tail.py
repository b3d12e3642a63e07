"""`llrflow tail`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from llrflow.base.progress import per_second
from llrflow.commands.options import json_option, run_argument
from llrflow.commands.printing import echo

PAUSE = 0.5
"""Seconds between two looks."""


@click.command()
@run_argument("run_folder", metavar="RUN")
@click.option("-n", "lines", type=click.IntRange(min=0), default=10, show_default=True, help="Lines to begin with.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Stay until a run under way ends.")
@json_option
def tail(run_folder: Path, lines: int, follow: bool, as_json: bool) -> None:
    """Print the latest metrics of RUN, one line a logged step, and follow it until it ends or Ctrl-C.

    Rate and time left, told once a look, are those seen while following. With --json each line is the JSON object of
    metrics.jsonl.

    \b
    Examples:
      llrflow tail runs/quickstart-1a2b3c4d5e6f
      llrflow tail runs/quickstart-1a2b3c4d5e6f -n 100 --no-follow
    """
    from llrflow.base.files import has_owner
    from llrflow.runs.folder import RunFolder

    folder = RunFolder(run_folder)
    record = folder.existing()
    metrics, table = _Metrics(folder.metrics), _Table(record.steps)
    show = _show_json if as_json else table.show
    found = metrics.new()
    show(found[max(len(found) - lines, 0) :])
    under_way = follow and has_owner(folder.path)
    while under_way:
        time.sleep(PAUSE)
        under_way = has_owner(folder.path)
        record = folder.record() or record
        # Any other state may be what an earlier process left: this one may still compile.
        under_way = under_way and record.state != "finished"
        show(metrics.new(), metrics.written)
    if problem := None if under_way else folder.metrics_problem(record):
        echo(problem, err=True)
    if not as_json:
        where = f"{record.state}, saved at step {record.step} of {record.steps}"
        if record.imported is not None:
            where = f"imported from {record.imported.path}"
        echo(f"{where}: {record.error or folder.path}")


class _Metrics:
    """Reads metrics.jsonl as it grows, each step and each look once; a line that is not complete yet is for later."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._file = path, 0, None
        self._last = {True: 0, False: 0}
        self.written = 0.0
        """When the run had last written to the file, in seconds."""

    def new(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        from llrflow.base.errors import CheckpointError
        from llrflow.base.files import open_regular
        from llrflow.runs.folder import metric_line
        from llrflow.runs.looks import is_look

        try:
            opened = open_regular(self._path)
        except FileNotFoundError:
            return []
        except OSError as error:
            got = f"cannot be read: {error.strerror}"
            raise CheckpointError(str(self._path), got, "make it readable, or remove it") from None
        with opened as file:
            status = os.fstat(file.fileno())
            if self._file != status.st_ino:  # a resumed run has written it anew
                self._file, self._offset = status.st_ino, 0
            file.seek(self._offset)
            found = file.read()
        complete = found[: found.rfind(b"\n") + 1]
        self._offset, self.written = self._offset + len(complete), status.st_mtime
        lines = []
        for line in map(metric_line, complete.splitlines(keepends=True)):
            if line is not None and line["step"] > self._last[is_look(line)]:
                self._last[is_look(line)] = line["step"]
                lines.append(line)
        return lines


def _show_json(lines: Sequence[dict[str, Any]], written: float | None = None) -> None:
    for line in lines:
        echo(json.dumps(line))


class _Table:
    """Prints metrics as aligned lines, a heading first, with rate and time left once they are known."""

    WIDTH = 100

    def __init__(self, steps: int) -> None:
        self._steps, self._columns = steps, []
        self._began: tuple[int, float] | None = None

    def show(self, lines: Sequence[dict[str, Any]], written: float | None = None) -> None:
        """The lines of one look, the last of them with the rate since the first look that found any.

        `written` is when the run wrote the last one; None: before anybody looked.
        """
        for line in lines[:-1]:
            self._write(line)
        for line in lines[-1:]:
            self._write(line, None if written is None else self._rate(line["step"], written))

    def _rate(self, step: int, written: float) -> float | None:
        if self._began is None:
            self._began = step, written
        first, began = self._began
        return (step - first) / (written - began) if written > began else None

    def _write(self, line: dict[str, Any], rate: float | None = None) -> None:
        """One line; further columns than fit are left out. A look is a line of its own."""
        from llrflow.runs.looks import PREFIX, is_look

        if is_look(line):
            shares = {name.removeprefix(PREFIX): value for name, value in line.items() if name.endswith(".accuracy")}
            told = ", ".join(f"{name.removesuffix('.accuracy')} {value:.2%}" for name, value in shares.items())
            echo(f"{line['step']:>9}  validation: {told}")
            return
        if not self._columns:
            names, room = [name for name in line if name != "step"], self.WIDTH - 29
            self._columns = [
                name for i, name in enumerate(names) if sum(max(len(n), 9) + 2 for n in names[: i + 1]) <= room
            ]
            echo("".join([f"{'step':>9}", *(f"  {name:>9}" for name in self._columns)]))
        cells = [
            f"{line['step']:>9}",
            *(f"  {line.get(name, float('nan')):>{max(len(name), 9)}.4g}" for name in self._columns),
        ]
        if rate:
            cells.append(f"  {per_second(rate)}, {(self._steps - line['step']) / rate:.0f} s left")
        echo("".join(cells))
