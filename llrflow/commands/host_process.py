"""An actor of Ray that runs one process of a group on its node, and what the driver may ask of it."""

from __future__ import annotations

import os
import pty
import queue
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import ray

PAUSE = 0.5
"""Seconds that `advance` waits for something to tell; a signal waits no longer."""

DRAIN = 5.0
"""Seconds to read what a process that has ended still has to say; a process that it left may keep its pipe open."""


class HostProcess:
    """The process is a child of the actor's, and ends with it: its standard input closes.

    It is one of its own because JAX aborts it when another is lost, and joins a group once in a process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self._readers: list[threading.Thread] = []

    def look(self, paths: Sequence[str]) -> tuple[str, int, list[str]]:
        """This node's address, a port that is free, and which of some paths are not on this node."""
        with socket.socket() as found:
            found.bind(("", 0))
            port = found.getsockname()[1]
        return ray.util.get_node_ip_address(), port, [path for path in paths if not Path(path).exists()]

    def start(self, arguments: Sequence[str], folder: str, terminals: dict[int, tuple[int, int]]) -> None:
        """Start `llrflow` in a folder; `terminals` has (lines, columns) by output, 1 or 2, that is to be a terminal."""
        readers, writers = {}, {}
        for output in (1, 2):
            if output in terminals:
                readers[output], writers[output] = pty.openpty()
                termios.tcsetwinsize(writers[output], terminals[output])
            else:
                readers[output], writers[output] = os.pipe()
        command = [sys.executable, "-m", "llrflow", *arguments]
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=writers[1], stderr=writers[2], start_new_session=True
        )
        for writer in writers.values():
            os.close(writer)
        for output, reader in readers.items():
            file = os.fdopen(reader, "rb", buffering=0)
            self._readers.append(threading.Thread(target=self._read, args=(output, file), daemon=True))
            self._readers[-1].start()

    def advance(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """What it wrote since, by output, and its exit code once it has ended; waits a moment for either."""
        assert self._process is not None
        said = []
        with suppress(queue.Empty):
            said.append(self._said.get(timeout=PAUSE))
        code = self._process.poll()
        for reader in self._readers if code is not None else ():
            reader.join(DRAIN)
        while not self._said.empty():
            said.append(self._said.get())
        return said, code

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        if self._process is not None:
            self._process.send_signal(number)

    def _read(self, output: int, file: BinaryIO) -> None:
        with suppress(OSError):  # how the end of a terminal looks
            while text := file.read(1 << 16):
                self._said.put((output, text))
