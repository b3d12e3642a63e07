"""What the drivers of processes under Ray share: how they open it, and what a process asks of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from llrflow.runs.interrupt import StopRequest, stop_requests
from llrflow.spec.schema import Spec
from llrflow.sweep.running.cluster import ray_at


@contextmanager
def driving(spec: Spec, address: str, processes: int) -> Iterator[StopRequest]:
    """Ray at `address`, with CPUs for so many processes if it is our own, and whether a signal asks to stop.

    Raises SpecError and LlrflowError where there is no Ray.
    """
    cpus = max(os.cpu_count() or 1, math.ceil(spec.devices.wanted.get("CPU", 0) * processes))
    # What Ray prints of dying nodes and workers are pages; what was lost is said by the driver, on standard error.
    with (
        Path(os.devnull).open("w") as nothing,
        redirect_stdout(nothing),
        ray_at(address, num_cpus=cpus),
        stop_requests() as stop,
    ):
        yield stop


def asked_of_ray(spec: Spec) -> dict[str, Any]:
    """What a process with the spec's `devices.resources` asks for, as `ray.remote` takes it."""
    others = dict(spec.devices.wanted)
    return {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0), "resources": others}
