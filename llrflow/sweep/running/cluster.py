"""The Ray of a sweep: one of its own, or a cluster that is there already; and whether a trial has room in it."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from llrflow.base.errors import LlrflowError, SpecError, line_of
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep

OBJECT_STORE = 100 * 2**20
"""Bytes of Ray's object store: trials exchange numbers, no arrays."""

SLOT = "llrflow_trial"
"""A resource of a Ray of our own, one for each trial at a time. Tune's own limit lets no trial wait for another, which
HyperBand needs."""

ANSWERS = 5.0
"""Seconds to wait for an address to answer: Ray itself would wait for minutes, and for ever at some."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC, which Ray speaks, opens a connection (RFC 9113, section 3.4), and a server answers at once."""

LOGS = "/tmp/ray/session_latest/logs"
"""Where a Ray of our own writes what it does, by default."""

PATIENCE = 30.0
"""Seconds to wait for the nodes of a named cluster to have what a trial asks for."""


@contextmanager
def cluster(spec: Spec, sweep: Sweep, address: str) -> Iterator[None]:
    """Ray, started or joined, with room for a trial. Raises as `ray_at`, and SpecError where there is no room."""
    own = {} if sweep.concurrency is None else {"resources": {SLOT: sweep.concurrency}}
    with ray_at(address, **own):
        wanted = {"CPU": sweep.resources.cpu, "GPU": sweep.resources.gpu, **sweep.resources.custom}
        check_room(spec, "sweep.resources", wanted, "a trial", patience=patience(address))
        yield


@contextmanager
def ray_at(address: str, **own: Any) -> Iterator[None]:
    """Ray at `local`, `auto` or HOST:PORT, started (with options of its `own`) or joined.

    Raises SpecError where there is none to be joined, LlrflowError where it does not start.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE, **own}
    elif address != "auto":
        _check_listening(address)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            # Ray forks to start its processes. JAX warns of its threads, which have nothing to do in this process.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            with _on_loopback() if address == "local" else nullcontext():
                ray.init(address=address, **options)
    except Exception as error:  # of any kind: for a node that is late Ray raises a bare one
        ray.shutdown()  # of what it had started
        if address == "local":
            fix = f"try again when the machine is less busy, or join a cluster with --address; logs are in {LOGS}"
            raise LlrflowError(f"Ray did not start: {line_of(error).rstrip('.')}; {fix}") from error
        fix = "start it with `ray start --head`; if it wants a token, set RAY_AUTH_MODE=token; or use --address local"
        raise SpecError("--address", f"no Ray cluster answers at {address!r}: {line_of(error)}", fix) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let all processes of a Ray that starts in the block listen on 127.0.0.1 alone: whoever reaches them runs code.

    By itself Ray does so on macOS and Windows; elsewhere it takes the address of the machine, also where it is told
    127.0.0.1 (`_node_ip_address`), and listens on all interfaces.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def patience(address: str) -> float:
    """Seconds to wait for nodes: none for a Ray of our own, which has one."""
    return 0.0 if address == "local" else PATIENCE


def trial_resources(sweep: Sweep, address: str) -> dict[str, float]:
    """What a trial asks of Ray, as Tune writes it."""
    wanted = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu, **sweep.resources.custom}
    return {**wanted, SLOT: 1} if address == "local" and sweep.concurrency is not None else wanted


def _check_listening(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise SpecError("--address", f"{address!r} is no address", "give local, auto or HOST:PORT")
    fix = "start it with `ray start --head`, or use --address local"
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWERS) as connection:
            connection.sendall(PREFACE)
            answer = connection.recv(4)
    except TimeoutError:
        raise SpecError("--address", f"nobody answers at {address} within {ANSWERS:g} s", fix) from None
    except OSError as error:
        raise SpecError("--address", f"nobody listens at {address} ({error.strerror or error})", fix) from None
    if answer and answer.decode("latin-1").isprintable():  # gRPC, with TLS or without, sends none of a text
        raise SpecError("--address", f"what listens at {address} is not Ray, whose port is 6379 by default", fix)


def check_room(
    spec: Spec, place: str, wanted: dict[str, float], each: str, nodes: int = 1, patience: float = 0.0
) -> None:
    """Raise SpecError, at a `place` of the spec, unless so many nodes have what `each` wants; waits `patience` s."""
    end = time.monotonic() + patience
    while True:
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        large = [node for node in found if all(node.get(name, 0) >= amount for name, amount in wanted.items())]
        if len(large) >= nodes:
            return
        if time.monotonic() >= end:
            break
        time.sleep(1)
    largest = {name: max((node.get(name, 0) for node in found), default=0) for name in wanted}
    lacking = [n for n, amount in wanted.items() if largest[n] < amount]
    got = ", ".join(f"{wanted[n]:g} {n} {each}, the largest node has {largest[n]:g}" for n in lacking or wanted)
    if large:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        got = f"{nodes} nodes with {asked} each, there are {len(large)}"
    waited = f" (waited {patience:.0f} s)" if patience else ""
    raise SpecError(spec.where(tuple(place.split("."))), f"{place}: {got}{waited}", "ask for less, or add nodes")
