"""The folder of a sweep: its files, which are all that is known of it.

- sweep.yaml: the spec with its sweep, as it was written
- sweep.json: SweepRecord, the outcome so far
- trials.csv: the same trials as a table
- best.yaml: a complete spec that runs the winner again
- best-VARIANT.yaml: likewise, for each variant
- draws.json: Draws, the configurations that a search which learns has drawn so far
- lines.json: Lines, which members of a population took over which
- runs/: a run folder for each trial, <name>-<hash>
- ended/: <name>-<hash>.json for each trial that a scheduler stopped or that failed
- cache/: what XLA compiled, for workers that start later
- pinned/: checkpoints that members of a population may take over, while the sweep runs
- ray/: Tune's own files, while it works; nothing is read from them
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from llrflow.base.errors import CheckpointError, DataError, SpecError
from llrflow.base.files import TEMPORARY, require_local, sole_owner
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import Record
from llrflow.runs.sealed import read_record
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep
from llrflow.sweep.tracking.records import Segment

R = TypeVar("R", bound=Record)

PINNED = 2
"""Rungs of which checkpoints are pinned: while some members wait at one, others may still set out from the last."""


class Ended(Record):
    """ended/<name>-<hash>.json: why a trial came to no end of its own."""

    state: Literal["stopped", "failed"]
    step: int
    by: dict[str, Any] = {}
    """The scheduler or guard that stopped it: under another one it goes on."""
    error: str = ""
    """Why it failed, or what the guard saw."""
    traceback: str = ""

    def holds(self, sweep: Sweep) -> bool:
        """Whether the trial is still to end there."""
        guard = sweep.rung.guard
        return self.state == "failed" or self.by in (sweep.scheduler.model_dump(), guard and guard.model_dump())


class Draws(Record):
    """draws.json: configurations as overrides by path, in order."""

    format: Literal[1] = 1
    draws: list[dict[str, Any]] = []


class Lines(Record):
    """lines.json: what each member of a population went through, by its number."""

    format: Literal[1] = 1
    lines: dict[int, list[Segment]] = {}


def folder_of(spec: Spec, out: str | Path | None) -> Path:
    """Where a spec's sweep is kept: `out`, or sweeps/<name>. Raises SpecError where `out` is a URI."""
    if out is not None:
        require_local(Path(out))
    return Path("sweeps") / spec.name if out is None else Path(out)


class Storage:
    """Paths of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        names = ("sweep.yaml", "sweep.json", "trials.csv", "best.yaml", "draws.json", "lines.json")
        self.spec, self.record, self.table, self.best, self._draws, self._lines = (self.path / n for n in names)
        self.runs, self.ray, self.cache, self.pinned = (self.path / n for n in ("runs", "ray", "cache", "pinned"))
        self._ended = self.path / "ended"

    def best_of(self, variant: str) -> Path:
        """The spec that runs the winner of a variant again."""
        return self.path / f"best-{variant}.yaml"

    def run(self, name: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.runs / name)

    def ended_path(self, name: str) -> Path:
        """The file that says why a trial ended early."""
        return self._ended / f"{name}.json"

    def ended(self, name: str) -> Ended | None:
        """Why a trial ended early, if it did."""
        try:
            return read_record(Ended, self.ended_path(name), "")
        except (FileNotFoundError, CheckpointError):
            return None

    def end(self, name: str, ended: Ended) -> None:
        """Note why a trial ended early."""
        ended.write(self.ended_path(name))

    def forget_end(self, name: str) -> None:
        """Take such a note back: the trial is tried again."""
        self.ended_path(name).unlink(missing_ok=True)

    def draws(self) -> list[dict[str, Any]]:
        """The configurations that were drawn. Raises DataError."""
        fix = "delete it; the same trials are drawn again as long as the spec has not changed"
        return _read(self._draws, Draws, fix).draws

    def set_draws(self, draws: list[dict[str, Any]]) -> None:
        """Put all of them on record."""
        Draws(draws=draws).write(self._draws)

    def lines(self) -> dict[int, list[Segment]]:
        """What the members of a population went through. Raises DataError."""
        return _read(self._lines, Lines, "begin the sweep anew with another --out").lines

    def set_lines(self, lines: dict[int, list[Segment]]) -> None:
        """Put it on record."""
        Lines(lines=lines).write(self._lines)

    def pins(self, name: str) -> Checkpoints:
        """Checkpoints of a trial at its last rungs, which others may take over."""
        return Checkpoints(self.pinned / name, keep=PINNED)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder and hold it against other processes. Raises SpecError."""
        with ExitStack() as stack:
            try:
                for path in (self.runs, self._ended):
                    path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(sole_owner(self.path, "`llrflow sweep`"))
            except OSError as error:
                got = f"cannot be the folder of a sweep: {error.strerror}"
                raise SpecError(str(self.path), got, "choose another --out") from None
            for left in self.path.glob(f".*.{TEMPORARY}"):  # a killed driver had begun them
                left.unlink(missing_ok=True)
            yield


def _read(path: Path, kind: type[R], fix: str) -> R:
    """A file's record, an empty one where there is no file. Raises DataError."""
    try:
        return read_record(kind, path, fix)
    except FileNotFoundError:
        return kind()
    except CheckpointError as error:
        raise DataError(error.where, error.got, error.fix) from None
