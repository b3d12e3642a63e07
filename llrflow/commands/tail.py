"""`llrflow tail`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llrflow.cli import json_option, run_argument
from llrflow.progress import per_second

PAUSE = 0.5
"""Seconds between two looks."""
PATIENCE = 5.0
"""Seconds without news after which it looks whether a process still has the folder."""


@click.command()
@run_argument("run_folder", metavar="RUN")
@click.option("-n", "lines", type=click.IntRange(min=0), default=10, show_default=True, help="Lines to begin with.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Stay until a run under way ends.")
@json_option
def tail(run_folder: Path, lines: int, follow: bool, as_json: bool) -> None:
    """Print the latest metrics of RUN, one line a logged step, and follow it until it ends or Ctrl-C.

    Rate and time left are those seen while following. With --json each line is the JSON object of metrics.jsonl.

    \b
    Examples:
      llrflow tail runs/quickstart-1a2b3c4d5e6f
      llrflow tail runs/quickstart-1a2b3c4d5e6f -n 100 --no-follow
    """
    from llrflow.files import has_owner
    from llrflow.runs.records import RunFolder

    folder = RunFolder(run_folder)
    record = folder.existing()
    metrics, table = _Metrics(folder.metrics), _Table(record.steps)
    write = (lambda line: click.echo(json.dumps(line))) if as_json else table.write
    found = list(metrics.new())
    for line in found[max(len(found) - lines, 0) :]:
        write(line)
    table.start(metrics.last)
    under_way, news = follow and has_owner(folder.path), time.monotonic()
    while under_way:
        record = folder.record() or record
        under_way = record.state in ("training", "trained")
        for line in metrics.new():
            write(line)
            news = time.monotonic()
        if time.monotonic() - news > PATIENCE:
            under_way, news = under_way and has_owner(folder.path), time.monotonic()
        time.sleep(PAUSE if under_way else 0)
    if not as_json:
        click.echo(f"{record.state}, saved at step {record.step} of {record.steps}: {record.error or folder.path}")


class _Metrics:
    """Reads metrics.jsonl as it grows, each step once; a line that is not complete yet is left for later."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._file, self.last = path, 0, None, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The lines since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            if self._file != (number := self._path.stat().st_ino):  # a resumed run has written it anew
                self._file, self._offset = number, 0
            file.seek(self._offset)
            found = file.read()
        complete = found[: found.rfind(b"\n") + 1]
        self._offset += len(complete)
        for text in complete.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("step", 0) > self.last:
                self.last = line["step"]
                yield line


class _Table:
    """Prints metrics as aligned lines, a heading first, with rate and time left once they are known."""

    WIDTH = 100

    def __init__(self, steps: int) -> None:
        self._steps, self._columns, self._began = steps, [], None

    def start(self, step: int) -> None:
        """From now on lines are those of a run under way."""
        self._began = (step, time.monotonic())

    def write(self, line: dict[str, Any]) -> None:
        """One line; further columns than fit are left out."""
        if not self._columns:
            names, room = [name for name in line if name != "step"], self.WIDTH - 29
            self._columns = [
                name for i, name in enumerate(names) if sum(max(len(n), 9) + 2 for n in names[: i + 1]) <= room
            ]
            click.echo("".join([f"{'step':>9}", *(f"  {name:>9}" for name in self._columns)]))
        cells = [
            f"{line['step']:>9}",
            *(f"  {line.get(name, float('nan')):>{max(len(name), 9)}.4g}" for name in self._columns),
        ]
        if self._began is not None and line["step"] > self._began[0]:
            rate = (line["step"] - self._began[0]) / max(time.monotonic() - self._began[1], 1e-9)
            cells.append(f"  {per_second(rate)}, {(self._steps - line['step']) / rate:.0f} s left")
        click.echo("".join(cells))
