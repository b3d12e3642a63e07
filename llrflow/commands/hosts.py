"""One process of a group that trains one model: joins the others, and ends with one line when they are lost.

JAX aborts a process, in the middle of whatever it does, when it loses another one. So the work is done in a child
process, and its parent tells how it ended.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import click

from llrflow.base.errors import LlrflowError, SpecError, line_of
from llrflow.commands.exit_status import exit_status

WAIT = 120
"""Seconds to wait for the other processes at the start."""

SILENCE = 30
"""Seconds without a sign of life after which a process counts as lost; in training its end is noticed at once."""

AGAIN = "start the same commands again, and they continue from the newest checkpoint"

LOST = 75
"""Exit status, sysexits' EX_TEMPFAIL, by which a supervised process says that the group is lost."""

_JOINED = b"j"


class Place(NamedTuple):
    """Where a process stands in its group."""

    host: str
    port: int
    process: int
    processes: int
    supervised: bool = False
    """Whether whoever started it starts the group again: it ends with its standard input."""

    @classmethod
    def of(cls, coordinator: str | None, process: int | None, processes: int | None, supervised: bool) -> Place:
        """The options, checked. Raises SpecError."""
        given = {"--coordinator": coordinator, "--process": process, "--processes": processes}
        if missing := [name for name, value in given.items() if value is None]:
            raise SpecError(missing[0], "is missing", "give --coordinator, --process and --processes together")
        assert coordinator is not None and process is not None and processes is not None
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise SpecError("--coordinator", f"= {coordinator}", "write HOST:PORT, for example node1:7654")
        if processes < 1:
            raise SpecError("--processes", f"= {processes}", "give at least 1")
        if not 0 <= process < processes:
            raise SpecError("--process", f"= {process} of {processes}", f"give a number from 0 to {processes - 1}")
        return cls(host, int(port), process, processes, supervised)

    @property
    def coordinator(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"


class GroupLost(LlrflowError):
    """The group is lost, or never came together, by no fault of this process."""

    def __init__(self, place: Place, why: str) -> None:
        again = "" if place.supervised else f"; {AGAIN}"
        super().__init__(f"process {place.process} of {place.processes}: {why}{again}")
        self.exit_code = LOST if place.supervised else 1


def run_in_group(place: Place, work: Callable[[int], None]) -> NoReturn:
    """Do the work, which is given the number of this process, together with the group; ends the process.

    Raises SpecError when nobody answers, GroupLost when the group loses a process, or in place of both if supervised.
    """
    if place.supervised:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # Ray blocks it in what it starts
    _reach(place)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _work(place, work, theirs)
    theirs.close()
    asked: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        if asked:
            os.kill(child, signal.SIGKILL)
        asked.append(signum)
        with suppress(OSError):  # the child has ended
            ours.send(bytes([signum]))

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, pass_on)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0 or asked:
        sys.exit(code if code >= 0 else 128 + asked[0])
    if ours.recv(1) != _JOINED:
        got = f"= {place.coordinator}: not all of {place.processes} processes came within {WAIT} s"
        raise _apart(place, got, "start all of them, with the same --coordinator and --processes")
    raise GroupLost(place, f"ended by {signal.Signals(-code).name}, as happens when another process is lost")


def _apart(place: Place, got: str, fix: str) -> LlrflowError:
    """The error of a process that does not get to the others."""
    return GroupLost(place, f"--coordinator {got}") if place.supervised else SpecError("--coordinator", got, fix)


def _end_with_stdin() -> None:
    """End at once when whoever started this process is gone; the child, which hears of it, then does as well."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _reach(place: Place) -> None:
    """See that process 0 can listen, or wait until it does. Raises SpecError."""
    if place.process == 0:
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("", place.port))
            except OSError as error:
                got = f"= {place.coordinator}: cannot listen there: {error.strerror}"
                raise _apart(place, got, "choose another port") from None
        return
    end, problem = time.monotonic() + WAIT, ""
    while time.monotonic() < end:
        try:
            with socket.create_connection((place.host, place.port), timeout=5):
                return
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(0.2)
    got = f"= {place.coordinator}: nobody listened there for {WAIT} s ({problem})"
    raise _apart(place, got, "start process 0 on that host with the same --coordinator")


def _work(place: Place, work: Callable[[int], None], parent: socket.socket) -> NoReturn:
    """What the child does: join, work, and leave without waiting for processes that are lost."""
    code: Any = 1
    arguments = click.get_current_context().find_root().obj or []
    try:
        _own_streams(place, verbose="--verbose" in arguments)
        _obey(parent)
        with exit_status("--verbose" in arguments):
            _join(place, parent)
            _with_others(place, work)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _with_others(place: Place, work: Callable[[int], None]) -> None:
    """Do the work. Raises LlrflowError where JAX notices that another process is lost, and does not abort."""
    from jax.errors import JaxRuntimeError

    try:
        work(place.process)
    except JaxRuntimeError as error:
        raise GroupLost(place, line_of(error)) from error


def _own_streams(place: Place, verbose: bool) -> None:
    """Keep what C++ prints (Gloo its ranks, JAX its stack trace) out of the output, and all but errors of process 0."""
    if verbose:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    out = os.open(os.devnull, os.O_WRONLY) if place.process else os.dup(1)
    sys.stdout = os.fdopen(out, "w")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _obey(parent: socket.socket) -> None:
    """Take signals from the parent alone: a terminal or Slurm sends them to both, and a second one would kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

    def listen() -> None:
        with suppress(ConnectionError):
            while told := parent.recv(1):
                _thread.interrupt_main(signal.Signals(told[0]))
        os._exit(1)  # the parent was killed

    threading.Thread(target=listen, daemon=True).start()


def _join(place: Place, parent: socket.socket) -> None:
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    here_alone = place.host == "localhost" or place.host.startswith("127.")  # by itself JAX listens everywhere
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        coordinator_bind_address=place.coordinator if here_alone else None,
        cluster_detection_method="deactivate",
        initialization_timeout=WAIT,
        heartbeat_timeout_seconds=SILENCE,
    )
    parent.send(_JOINED)
