"""TensorBoard's file of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class Events:
    """Writes scalars as they come.

    tensorboardX's own SummaryWriter has a thread for it, which a full disk ends; then training would wait for ever.
    """

    def __init__(self, folder: Path, first: int) -> None:
        """A new file in a folder; TensorBoard forgets what earlier ones have from step `first` on. Raises OSError."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._messages: Any = event_pb2  # its classes are made while it is imported
        start = self._messages.SessionLog(status=self._messages.SessionLog.START)
        self._writer.write_event(self._messages.Event(wall_time=time.time(), step=first, session_log=start))
        self.flush()

    def add(self, tag: str, value: float, step: int) -> None:
        """A value of a step."""
        from tensorboardX.summary import scalar

        summary = scalar(tag, value)
        self._writer.write_event(self._messages.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Let readers see what was added."""
        self._writer.flush()

    def close(self) -> None:
        """Nothing more is added."""
        self._writer.close()
