"""One model over many hosts under Ray: starts a process on each, and all of them again when one is lost."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llrflow.base.errors import LlrflowError, SpecError
from llrflow.base.files import sole_owner
from llrflow.base.progress import say
from llrflow.commands.host_group import Lost, live
from llrflow.commands.under_ray import driving
from llrflow.components.consent import remember
from llrflow.data.facts import describe
from llrflow.program.compile import located
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted
from llrflow.runs.pipeline import folder_of
from llrflow.runs.records import LossRecord
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import Spec
from llrflow.sweep.running.cluster import check_room, patience

UNLOCKED = 120.0
"""Seconds to wait for the run folder when the process that wrote it is lost: on a shared file system the lock of a host
that is gone lasts for a while."""


def run_on_hosts(
    spec: Spec, arguments: Sequence[str], out: str | Path | None, fresh: bool, address: str, retries: int
) -> None:
    """Train a spec on `devices.hosts` nodes of the Ray at `address`, and start again where it was when one is lost.

    `arguments` are those of the command, which every process is given. Losses in a row without a new checkpoint or
    evaluated attack between them are forgiven `retries` times. Raises SpecError, DataError, Interrupted after Ctrl-C or
    SIGTERM, LlrflowError when Ray does not start or too much was lost, SystemExit with the status of a process that
    failed by itself.
    """
    with located(spec):
        digest = spec_hash(resolve(spec, describe(spec.data)))
    folder = folder_of(spec, out)
    before = _stamp(folder.run)

    def begun() -> bool:
        """Whether this run is under way: one that was lost before it could start over has yet to do so."""
        return not fresh or _stamp(folder.run) != before

    losses: list[LossRecord] = []
    with driving(spec, address, spec.devices.hosts) as stop:  # process 0's output goes another way
        _check(spec, address)
        remember(spec.plugin_paths())
        reached, without = (0, 0) if fresh else _progress(folder), 0
        while True:
            try:
                going_on = [argument for argument in arguments if argument != "--fresh"]
                live(spec, going_on if begun() else arguments, folder, address, stop)
                break
            except Lost as loss:
                now = _progress(folder) if begun() else (0, 0)
                reached, without = max(reached, now), 1 if now > reached else without + 1
                losses.append(_record_of(loss, now[0]))
                stands = f"lost at step {now[0]}, {loss}"
                if begun():
                    _put_on_record(folder, digest, losses, state="interrupted", error=stands)
                if sys.stderr.isatty():
                    say("\x1b[?25h")  # the cursor, which a progress bar had hidden
                if stop.signum is not None:
                    raise Interrupted(stop.signum, f"{stands}; run the same command to continue") from None
                if without > retries:
                    used = f"{stands}; --retries {retries} without a new checkpoint are used up"
                    raise LlrflowError(f"{used}; run the same command to continue") from None
                say(f"{stands}; starting again, {without} of {retries}")
        _put_on_record(folder, digest, losses)  # if the first ones came before there was a run


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file is replaced."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _progress(folder: RunFolder) -> tuple[int, int]:
    """(step of the newest checkpoint, files of evaluations)."""
    return max(Checkpoints(folder.checkpoints).steps(), default=0), len(list(folder.evaluation.glob("[!.]*")))


def _record_of(loss: Lost, step: int) -> LossRecord:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return LossRecord(time=now, step=step, process=loss.process.index, node=loss.process.node, reason=loss.why)


def _put_on_record(folder: RunFolder, digest: str, losses: Sequence[LossRecord], **changes: str) -> None:
    """Bring run.json up to date, if it is this run's, once the process that wrote it is gone."""
    end = time.monotonic() + UNLOCKED
    while losses and folder.run.exists():
        try:
            with sole_owner(folder.path, "llrflow process"):
                if (record := folder.record()) is not None and record.spec_hash == digest:
                    earlier = [loss for loss in record.losses if loss not in losses]
                    record.model_copy(update={"losses": [*earlier, *losses], **changes}).write(folder.run)
                return
        except SpecError:
            if time.monotonic() > end:
                raise


def _check(spec: Spec, address: str) -> None:
    """Raise SpecError unless the cluster has nodes for all hosts; a Ray of our own has one, for all together."""
    hosts, wanted = spec.devices.hosts, spec.devices.wanted
    if address == "local":
        together = {name: amount * hosts for name, amount in wanted.items()}
        check_room(spec, "devices.resources", together, f"for {hosts} host(s)")
    else:
        check_room(spec, "devices.resources", wanted, "a host", hosts, patience(address))
