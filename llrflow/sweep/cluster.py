"""The Ray of a sweep: one of its own, or a cluster that is there already; and whether a trial has room in it."""

from __future__ import annotations

import logging
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from llrflow.errors import SpecError, line_of
from llrflow.spec.schema import Spec, Sweep

OBJECT_STORE = 100 * 2**20
"""Bytes of Ray's object store: trials exchange numbers, no arrays."""

SLOT = "llrflow_trial"
"""A resource of a Ray of our own, one for each trial at a time. Tune's own limit lets no trial wait for another, which
HyperBand needs."""

PATIENCE = 30.0
"""Seconds to wait for the nodes of a named cluster to have what a trial asks for."""


@contextmanager
def cluster(spec: Spec, sweep: Sweep, address: str) -> Iterator[None]:
    """Ray, started or joined, with room for a trial. Raises SpecError."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        options |= {} if sweep.concurrency is None else {"resources": {SLOT: sweep.concurrency}}
    elif address != "auto":
        _check_listening(address)
    try:
        with warnings.catch_warnings():
            # Ray forks to start its processes. JAX warns of its threads, which have nothing to do in this process.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        fix = "start it with `ray start --head`; if it wants a token, set RAY_AUTH_MODE=token; or use --address local"
        raise SpecError("--address", f"no Ray cluster answers at {address!r}: {line_of(error)}", fix) from None
    try:
        _check_room(spec, sweep, 0.0 if address == "local" else PATIENCE)
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise SpecError("--address", f"{address!r} is no address", "give local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        fix = "start it with `ray start --head`, or use --address local"
        raise SpecError("--address", f"nobody listens at {address} ({error.strerror or error})", fix) from None


def _check_room(spec: Spec, sweep: Sweep, patience: float) -> None:
    """Raise SpecError unless some node has what one trial asks for, within so many seconds."""
    wanted = {"CPU": sweep.resources.cpu, "GPU": sweep.resources.gpu, **sweep.resources.custom}
    end = time.monotonic() + patience
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            return
        if time.monotonic() >= end:
            break
        time.sleep(1)
    largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
    lacking = [n for n, amount in wanted.items() if largest[n] < amount]
    got = ", ".join(f"{wanted[n]:g} {n} a trial, the largest node has {largest[n]:g}" for n in lacking or wanted)
    waited = f" (waited {patience:.0f} s)" if patience else ""
    raise SpecError(spec.where(("sweep", "resources")), f"sweep.resources: {got}{waited}", "ask for less, or add nodes")
