"""What ends a sweep before its trials do: its budget, Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from llrflow.runs.interrupt import StopRequest
from llrflow.spec.sweep_schema import Sweep


class Budget(tune.Stopper):
    """Ends the sweep when its time is up or too many trials have failed, or a signal asks for it."""

    def __init__(self, sweep: Sweep) -> None:
        self._budget, self._began, self.failures, self.exhausted = sweep.budget, time.monotonic(), 0, False
        self.request = StopRequest()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether it is over; once it is, it stays so."""
        hours, failures = self._budget.hours, self._budget.failures
        late = hours is not None and time.monotonic() - self._began > hours * 3600
        failed = failures is not None and self.failures > failures
        self.exhausted = self.exhausted or late or failed or self.request.signum is not None
        return self.exhausted


class _Stop(BaseException):
    """Ctrl-C or SIGTERM; no Exception, which Tune would take for its own."""


@contextmanager
def stopped_by_signals(request: StopRequest) -> Iterator[None]:
    """Note the first SIGINT or SIGTERM in the request, and leave the block by a BaseException.

    What was raised inside Ray's compiled code comes out as a SystemError. Does nothing off the main thread.
    """

    def stop(signum: int, frame: Any) -> None:
        if request.signum is None:
            request.signum = signum
            raise _Stop

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
