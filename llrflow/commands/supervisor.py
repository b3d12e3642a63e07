"""One model over many hosts under Ray: starts a process on each, and all of them again when one is lost."""

from __future__ import annotations

import datetime
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llrflow.base.errors import LlrflowError, SpecError
from llrflow.base.files import sole_owner
from llrflow.base.progress import say
from llrflow.commands.host_process import PAUSE, HostProcess
from llrflow.commands.hosts import LOST
from llrflow.data.facts import describe
from llrflow.program.compile import located
from llrflow.runs.checkpoint import Checkpoints
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted, StopRequest, stop_requests
from llrflow.runs.pipeline import run_name
from llrflow.runs.records import LossRecord
from llrflow.spec.resolve import resolve, spec_hash
from llrflow.spec.schema import Spec
from llrflow.sweep.running.cluster import check_room, patience, ray_at

GRACE = 10.0
"""Seconds that the others have to end by themselves, and to say why, once a process has ended."""

UNLOCKED = 120.0
"""Seconds to wait for the run folder when the process that wrote it is lost: on a shared file system the lock of a host
that is gone lasts for a while."""

KEPT = 1 << 14
"""Bytes of standard error to remember of a process."""

SILENT = 10.0
"""Seconds to wait for room before saying so."""


class Process:
    """What the driver knows of one process of the group."""

    def __init__(self, index: int, actor: Any) -> None:
        self.index, self.actor, self.node = index, actor, "a node"
        self.code: int | None = None
        self.ended = math.inf
        self.gone = ""
        """What Ray says of an actor that is lost."""
        self._errors = b""

    def take(self, output: int, text: bytes) -> None:
        """Note the end of what it writes on standard error; what process 0 writes goes out as it stands."""
        if output == 2:
            self._errors = (self._errors + text)[-KEPT:]
        while self.index == 0 and text:
            text = text[os.write(output, text) :]

    @property
    def lines(self) -> list[str]:
        """The last lines on its standard error."""
        return self._errors.decode(errors="replace").splitlines()


class _Lost(Exception):
    """A process of the group is lost."""

    def __init__(self, process: Process, why: str) -> None:
        super().__init__(f"process {process.index} on {process.node}: {why}")
        self.process, self.why = process, why


def run_on_hosts(
    spec: Spec, arguments: Sequence[str], out: str | Path | None, fresh: bool, address: str, retries: int
) -> None:
    """Train a spec on `devices.hosts` nodes of the Ray at `address`, and start again where it was when one is lost.

    `arguments` are those of the command, which every process is given. Losses in a row without a new checkpoint or
    evaluated attack between them are forgiven `retries` times. Raises SpecError, DataError, Interrupted after Ctrl-C or
    SIGTERM, LlrflowError when too much was lost, SystemExit with the status of a process that failed by itself.
    """
    with located(spec):
        digest = spec_hash(resolve(spec, describe(spec.data)))
    folder = RunFolder(Path(out) if out is not None else Path("runs") / run_name(spec, digest))
    before = _stamp(folder.run)

    def begun() -> bool:
        """Whether this run is under way: one that was lost before it could start over has yet to do so."""
        return not fresh or _stamp(folder.run) != before

    cpus = max(os.cpu_count() or 1, math.ceil(spec.devices.wanted.get("CPU", 0) * spec.devices.hosts))
    losses: list[LossRecord] = []
    # What Ray prints of dying nodes are pages; what was lost is said here. Process 0's output goes another way.
    with (
        Path(os.devnull).open("w") as nothing,
        redirect_stdout(nothing),
        ray_at(address, num_cpus=cpus),
        stop_requests() as stop,
    ):
        _check(spec, address)
        reached, without = (0, 0) if fresh else _progress(folder), 0
        while True:
            try:
                going_on = [argument for argument in arguments if argument != "--fresh"]
                _attempt(spec, going_on if begun() else arguments, folder, address, stop)
                break
            except _Lost as loss:
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


def _record_of(loss: _Lost, step: int) -> LossRecord:
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


def _attempt(spec: Spec, arguments: Sequence[str], folder: RunFolder, address: str, stop: StopRequest) -> None:
    """One life of the group. Raises _Lost, and what `run_on_hosts` raises."""
    with _room(spec, "PACK" if address == "local" else "STRICT_SPREAD", stop) as room:
        processes = _actors(spec, room)
        try:
            coordinator = _meet(processes, folder, stop)
            for process in processes:
                joining = ["--coordinator", coordinator, "--process", str(process.index)]
                joining += ["--processes", str(len(processes)), "--supervised"]
                terminals = _terminals() if process.index == 0 else {}
                _ask(process, process.actor.start.remote([*arguments, *joining], str(Path.cwd()), terminals), stop)
            _follow(processes, stop)
        finally:
            for process in processes:
                ray.kill(process.actor)
    _judge(processes, stop)


@contextmanager
def _room(spec: Spec, strategy: str, stop: StopRequest) -> Iterator[PlacementGroup]:
    """Room for every host, for which it waits as long as it takes. Raises Interrupted."""
    hosts, wanted = spec.devices.hosts, spec.devices.wanted
    room, began, said = placement_group([wanted] * hosts, strategy=strategy), time.monotonic(), False
    try:
        while not room.wait(1):
            _check_stop(stop)
            if not said and time.monotonic() - began > SILENT:
                said = True
                asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
                say(f"waiting for room for {hosts} host(s) with {asked} each")
        yield room
    finally:
        remove_placement_group(room)


def _actors(spec: Spec, room: PlacementGroup) -> list[Process]:
    others = dict(spec.devices.wanted)
    options = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0), "resources": others}
    process = ray.remote(**options)(HostProcess)
    places = [PlacementGroupSchedulingStrategy(room, index) for index in range(room.bundle_count)]
    return [Process(i, process.options(scheduling_strategy=place).remote()) for i, place in enumerate(places)]


def _meet(processes: Sequence[Process], folder: RunFolder, stop: StopRequest) -> str:
    """HOST:PORT where process 0 will listen. Raises SpecError where a node has not the folders of this machine."""
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    token = folder.path.absolute() / f".run.json.{secrets.token_hex(4)}.tmp"
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        token.touch()
        asked = [(p, p.actor.look.remote([str(Path.cwd()), str(token)])) for p in processes]
        found = [(p, *_ask(p, ref, stop)) for p, ref in asked]
    finally:
        token.unlink(missing_ok=True)
        for path in made:  # the run makes it, once it has found nothing wrong
            with suppress(OSError):
                path.rmdir()
    for process, process.node, _, missing in found:
        if missing:
            what = "the run folder" if str(token) in missing else "the folder that this command was started in"
            got = f"{what} is not that of this machine on node {process.node}"
            raise SpecError("--address", got, "both must be shared by all nodes under one path")
    say("process " + ", ".join(f"{p.index} on {p.node}" for p in processes))
    _, host, port, _ = found[0]
    return f"{host}:{port}"


def _ask(process: Process, ref: ray.ObjectRef, stop: StopRequest) -> Any:
    """What an actor answers. Raises Interrupted, and _Lost where the actor is gone."""
    while not ray.wait([ref], timeout=PAUSE)[0]:
        _check_stop(stop)
    try:
        return ray.get(ref)
    except RayError as error:
        raise _Lost(process, _why(error)) from None


def _why(error: RayError) -> str:
    """Why an actor does not answer."""
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "its node or its Ray worker died"
    return str(error).strip().splitlines()[-1][:200]  # the end of a traceback


def _check_stop(stop: StopRequest) -> None:
    if stop.signum is not None:
        raise Interrupted(stop.signum, "stopped while no process was training; run the same command to continue")


def _follow(processes: Sequence[Process], stop: StopRequest) -> None:
    """Pass on what process 0 writes, and to it a signal to stop, until all have ended or one is gone."""
    waiting = {process.actor.advance.remote(): process for process in processes}
    passed_on, end = False, math.inf
    while waiting and time.monotonic() < end:
        ready, _ = ray.wait(list(waiting), timeout=PAUSE)
        if stop.signum is not None and not passed_on:
            passed_on = True
            processes[0].actor.signal.remote(stop.signum)
        for ref in ready:
            process = waiting.pop(ref)
            try:
                written, process.code = ray.get(ref)
            except RayError as error:
                process.gone = _why(error)
                return
            for output, text in written:
                process.take(output, text)
            if process.code is None:
                waiting[process.actor.advance.remote()] = process
                continue
            process.ended = time.monotonic()
            if process.code < 0:
                return
            if process.code or process.index == 0:
                end = min(end, process.ended + GRACE)


def _judge(processes: Sequence[Process], stop: StopRequest) -> None:
    """Tell how the group ended. Raises _Lost, and SystemExit with the code of whoever did not end well by itself."""
    first = processes[0]
    if first.code == 0:
        return
    by_signal = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}
    if stop.signum is not None and first.code in by_signal:
        raise SystemExit(first.code)
    for process in sorted(processes, key=lambda process: process.ended):
        if process.gone or (process.code or 0) < 0 or process.code in by_signal:
            number = by_signal.get(process.code or 0, -(process.code or 0))
            raise _Lost(process, process.gone or f"ended by {signal.Signals(number).name}")
    failed = [process for process in processes if process.code not in (None, 0, LOST)]
    if failed:
        for line in failed[0].lines:
            if line not in first.lines:  # which were seen
                say(f"process {failed[0].index} on {failed[0].node}: {line}")
        raise SystemExit(failed[0].code)
    earliest = min(processes, key=lambda process: process.ended)
    raise _Lost(earliest, (earliest.lines or ["ended"])[-1])


def _terminals() -> dict[int, tuple[int, int]]:
    """(lines, columns) of what is a terminal among the outputs."""
    sizes = {output: os.get_terminal_size(output) for output in (1, 2) if os.isatty(output)}
    return {output: (size.lines, size.columns) for output, size in sizes.items()}
