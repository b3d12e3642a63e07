"""A copy of a sweep's folder in another file system, for folders that may vanish with their machine.

The driver copies in a thread of its own what has changed. Whenever it stops, the mirror holds a sweep that `--resume`
can go on with: a checkpoint's files and the metrics up to it are there before its manifest, and what is older is
deleted after that. Locks, temporaries, compiled programs, trackers' and Tune's own files are left out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any

import yaml

from llrflow.base.errors import SpecError
from llrflow.base.progress import say
from llrflow.sweep.tracking.remote import REACH, RemoteFolder
from llrflow.sweep.tracking.storage import Storage

FIRST, AGAIN = 1.0, 30.0
"""Seconds until what failed is tried again: at first, since a file may have been replaced meanwhile, and at most."""

LAST, STOPPED = 300.0, 60.0
"""Most seconds for the last copies when a sweep has ended, and when it was stopped."""

SWEEP = ""
"""Stands for the sweep's own files where else the name of a run does."""


class Mirror:
    """The mirror of a sweep's folder at a URI of pyarrow's file systems: file://, s3:// or gs://.

    A context: inside of it what is touched is copied, and left is it when all is there, or time is up. A failure is
    said once, and tried again.
    """

    def __init__(self, uri: str, storage: Storage) -> None:
        """Raises SpecError where nothing can be written there."""
        self._storage, self._there = storage, RemoteFolder(uri, storage.path)
        self.shown = self._there.shown
        """The URI without keys and options, for messages."""
        self._open: dict[str, None] = {}
        self._changed, self._closing, self._late = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._work, name="llrflow-mirror", daemon=True)
        self.say: Callable[[str], None] = say

    def holds_sweep(self) -> bool:
        """Whether a sweep was mirrored there. Raises SpecError."""
        return self._there.answer(lambda: self._there.read(self._storage.spec.name) is not None)

    def is_of(self, storage: Storage) -> bool:
        """Whether the sweep there has the spec of the one in a folder, but for its space. Raises SpecError."""
        theirs = self._there.answer(lambda: self._there.read(storage.spec.name) or b"").decode()
        return _without_space(storage.spec.read_text()) == _without_space(theirs)

    def fetch(self) -> None:
        """Bring the sweep into its folder, which has none. Raises SpecError."""
        try:
            with self._storage.owned():
                wanted = self._wanted()
                last = self._storage.spec.name  # it marks the folder as a sweep's
                self._there.get([name for name in wanted if name != last])
                self._there.get([last])
        except (OSError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError("--mirror", f"{self.shown} cannot be read: {self._there.line(error)}", REACH) from None

    def touch(self, name: str) -> None:
        """Have a run copied, or the SWEEP's own files."""
        with self._changed:
            self._open[name] = None
            self._changed.notify()

    def __enter__(self) -> Mirror:
        self.touch(SWEEP)
        for path in sorted(self._storage.runs.iterdir()):
            self.touch(path.name)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for path in sorted(self._storage.runs.iterdir()):  # a worker that leaves a trial says so after the last look
            record = self._storage.run(path.name).run
            if record.exists() and not self._there.is_known(self._there.name(record), record.read_bytes()):
                self.touch(path.name)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LAST if kind is None else STOPPED)
        self._late = True
        if self._thread.is_alive():
            self.say(f"the mirror {self.shown} lacks what came last; --resume copies it from {self._storage.path}")
        self._there.close()

    def _work(self) -> None:
        pause, failures = FIRST, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._closing)
                if not self._open:
                    return
                name = next(iter(self._open))
                del self._open[name]
            try:
                self._copy_sweep() if name == SWEEP else self._copy_run(name)
            except Exception as error:  # whatever it is, the sweep goes on
                if self._late:
                    return
                self.touch(name)
                failures += 1
                if failures == 2:
                    self.say(f"the mirror {self.shown} cannot be written: {self._there.line(error)}; it is tried again")
                time.sleep(pause)
                pause = min(2 * pause, AGAIN)
            else:
                if failures >= 2:
                    self.say(f"the mirror {self.shown} can be written again")
                pause, failures = FIRST, 0

    def _copy_sweep(self) -> None:
        storage, there = self._storage, self._there
        # sweep.yaml makes it a sweep; draws.json and lines.json have what runs before it runs.
        there.put_changed([storage.spec, storage.path / "draws.json", storage.path / "lines.json", storage.table])
        there.put_or_delete(storage.best)
        there.put_changed(sorted(storage.path.glob("best-*.yaml")))
        there.put_changed([storage.record])

    def _copy_run(self, name: str) -> None:
        """Copy what is new of a run: nothing that is there at any moment names something that is not."""
        folder, there = self._storage.run(name), self._there
        if not folder.run.exists():
            return
        record = folder.run.read_bytes()  # first: the checkpoint that it names is among those found next
        paths = (folder.checkpoints / "manifests").glob("[0-9]*.json")
        manifests = {int(path.stem): (there.name(path), path.read_bytes()) for path in paths}
        new = {step: found for step, found in manifests.items() if not there.holds(*found)}
        for step, (place, manifest) in new.items():
            there.delete(place)  # that of a checkpoint of this step which was made before
            step_folder = folder.checkpoints / str(step)
            files = json.loads(manifest)["manifest"]["files"]
            there.put([step_folder / file for file in files])
        # Training goes on from a checkpoint and the metrics up to it, which were written before it.
        there.put_changed([folder.metrics, *folder.events.glob("[!.]*")])
        for place, manifest in new.values():
            there.put_bytes(place, manifest)
        places = (folder.evaluation, folder.validation)
        made = [path for place in places for path in place.glob("[!.]*") if path.is_file()]
        there.put_changed(path for path in made if path.suffix != ".json")
        there.put_changed([*(path for path in made if path.suffix == ".json"), folder.spec])
        there.put_bytes(there.name(folder.run), record)
        if manifests:
            self._drop_but(there.name(folder.checkpoints), set(manifests))
        there.put_or_delete(self._storage.ended_path(name))

    def _drop_but(self, checkpoints: str, kept: set[int]) -> None:
        """Delete all other checkpoints, their manifests first."""
        names = [PurePosixPath(path) for path in self._there.listed(f"{checkpoints}/manifests", recursive=False)]
        for path in names:
            if path.stem.isdigit() and int(path.stem) not in kept:
                self._there.delete(str(path))
        for path in map(PurePosixPath, self._there.listed(checkpoints, recursive=False, folders=True)):
            if path.name.isdigit() and int(path.name) not in kept:
                self._there.delete_folder(str(path))

    def _wanted(self) -> list[str]:
        """What is worth fetching: no run whose first copy was cut short, no checkpoint without a manifest."""
        listed = self._there.listed("", recursive=True)
        there, wanted = set(listed), []
        for path in listed:
            parts = PurePosixPath(path).parts
            of_run = parts[0] == self._storage.runs.name
            complete = not of_run or f"{parts[0]}/{parts[1]}/run.json" in there
            if of_run and len(parts) > 4 and parts[2] == "checkpoints" and parts[3] != "manifests":
                complete = complete and "/".join([*parts[:3], "manifests", f"{parts[3]}.json"]) in there
            if complete and not any(part.startswith(".") for part in parts):
                wanted.append(path)
        return wanted


def _without_space(text: str) -> dict[str, Any]:
    data = yaml.safe_load(text)
    return {name: value for name, value in data.items() if name != "sweep"} if isinstance(data, dict) else {}
