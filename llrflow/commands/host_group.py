"""One life of a group of processes under Ray, one on each host: its start, what it says, and how it ended."""

from __future__ import annotations

import math
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llrflow.base.errors import SpecError, shortened
from llrflow.base.files import require_local
from llrflow.base.progress import say
from llrflow.commands.host_process import PAUSE, HostProcess
from llrflow.commands.hosts import LOST
from llrflow.commands.under_ray import asked_of_ray
from llrflow.runs.folder import RunFolder
from llrflow.runs.interrupt import Interrupted, StopRequest
from llrflow.spec.schema import Spec

GRACE = 10.0
"""Seconds that the others have to end by themselves, and to say why, once a process has ended."""

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


class Lost(Exception):
    """A process of the group is lost."""

    def __init__(self, process: Process, why: str) -> None:
        super().__init__(f"process {process.index} on {process.node}: {why}")
        self.process, self.why = process, why


def live(spec: Spec, arguments: Sequence[str], folder: RunFolder, address: str, stop: StopRequest) -> None:
    """Run the command's `arguments` in a process on each host, from the start of all to the end of all.

    Raises Lost when a process is, SpecError where a node has not the folders of this machine, Interrupted, and
    SystemExit with the status of a process that failed by itself.
    """
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
    process = ray.remote(**asked_of_ray(spec))(HostProcess)
    places = [PlacementGroupSchedulingStrategy(room, index) for index in range(room.bundle_count)]
    return [Process(i, process.options(scheduling_strategy=place).remote()) for i, place in enumerate(places)]


def _meet(processes: Sequence[Process], folder: RunFolder, stop: StopRequest) -> str:
    """HOST:PORT where process 0 will listen. Raises SpecError where a node has not the folders of this machine."""
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    token = folder.path.absolute() / f".run.json.{secrets.token_hex(4)}.tmp"
    require_local(folder.path)
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
    """What an actor answers. Raises Interrupted, and Lost where the actor is gone."""
    while not ray.wait([ref], timeout=PAUSE)[0]:
        _check_stop(stop)
    try:
        return ray.get(ref)
    except RayError as error:
        raise Lost(process, _why(error)) from None


def _why(error: RayError) -> str:
    """Why an actor does not answer."""
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "its node or its Ray worker died"
    return shortened(str(error).strip().splitlines()[-1])  # the end of a traceback


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
    """Tell how the group ended. Raises Lost, and SystemExit with the code of whoever did not end well by itself."""
    first = processes[0]
    if first.code == 0:
        return
    by_signal = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}
    if stop.signum is not None and first.code in by_signal:
        raise SystemExit(first.code)
    for process in sorted(processes, key=lambda process: process.ended):
        if process.gone or (process.code or 0) < 0 or process.code in by_signal:
            number = by_signal.get(process.code or 0, -(process.code or 0))
            raise Lost(process, process.gone or f"ended by {signal.Signals(number).name}")
    failed = [process for process in processes if process.code not in (None, 0, LOST)]
    if failed:
        for line in failed[0].lines:
            if line not in first.lines:  # which were seen
                say(f"process {failed[0].index} on {failed[0].node}: {line}")
        raise SystemExit(failed[0].code)
    earliest = min(processes, key=lambda process: process.ended)
    raise Lost(earliest, (earliest.lines or ["ended"])[-1])


def _terminals() -> dict[int, tuple[int, int]]:
    """(lines, columns) of what is a terminal among the outputs."""
    sizes = {output: os.get_terminal_size(output) for output in (1, 2) if os.isatty(output)}
    return {output: (size.lines, size.columns) for output, size in sizes.items()}
