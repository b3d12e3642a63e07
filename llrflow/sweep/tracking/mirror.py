"""A copy of a sweep's folder in another file system, for folders that may vanish with their machine.

The driver copies in a thread of its own what has changed. Whenever it stops, the mirror holds a sweep that `--resume`
can go on with: a checkpoint's files and the metrics up to it are there before its manifest, and what is older is
deleted after that. Locks, temporaries, compiled programs, trackers' and Tune's own files are left out.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

import yaml

from llrflow.base.errors import SpecError, line_of
from llrflow.base.files import open_atomic
from llrflow.base.progress import say
from llrflow.sweep.tracking.storage import Storage

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs")
EXAMPLES = "write file:///FOLDER, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
REACH = "check the address, the credentials and the right to write"

ANSWER = 60.0
"""Seconds for a file system to answer before the sweep begins; its own retries may take a quarter of an hour."""

FIRST, AGAIN = 1.0, 30.0
"""Seconds until what failed is tried again: at first, since a file may have been replaced meanwhile, and at most."""

LAST, STOPPED = 300.0, 60.0
"""Most seconds for the last copies when a sweep has ended, and when it was stopped."""

CHUNK = 2**23
"""Bytes in memory at a time of a file that is copied."""

AT_A_TIME = 8
"""Files."""

SWEEP = ""
"""Stands for the sweep's own files where else the name of a run does."""


class Mirror:
    """The mirror of a sweep's folder at a URI of pyarrow's file systems: file://, s3:// or gs://.

    A context: inside of it what is touched is copied, and left is it when all is there, or time is up. A failure is
    said once, and tried again.
    """

    def __init__(self, uri: str, storage: Storage) -> None:
        """Raises SpecError where nothing can be written there."""
        self._uri, self._storage = uri, storage
        scheme, colon, place = uri.partition("://")
        if not colon or scheme not in SCHEMES:
            raise SpecError("--mirror", f"{uri!r} names no file system that is known", EXAMPLES)
        self.shown = f"{scheme}://{place.partition('?')[0].rpartition('@')[2]}"
        """The URI without keys and options, for messages."""
        self._known: dict[str, Any] = {}
        self._open: dict[str, None] = {}
        self._changed, self._closing, self._late = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._work, name="llrflow-mirror", daemon=True)
        self._pool = ThreadPoolExecutor(AT_A_TIME, "llrflow-mirror")
        self.say: Callable[[str], None] = say
        self._asked(self._begin)

    def holds_sweep(self) -> bool:
        """Whether a sweep was mirrored there. Raises SpecError."""
        return self._asked(lambda: self._read(self._storage.spec.name) is not None)

    def is_of(self, storage: Storage) -> bool:
        """Whether the sweep there has the spec of the one in a folder, but for its space. Raises SpecError."""
        ours, theirs = storage.spec.read_text(), self._asked(lambda: self._read(storage.spec.name) or b"").decode()
        return _without_space(ours) == _without_space(theirs)

    def fetch(self) -> None:
        """Bring the sweep into its folder, which has none. Raises SpecError."""
        try:
            with self._storage.owned():
                there = self._wanted()
                last = self._storage.spec.name  # it marks the folder as a sweep's
                list(self._pool.map(self._get, [path for path in there if path != last]))
                self._get(last)
        except (OSError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError("--mirror", f"{self.shown} cannot be read: {self._line(error)}", REACH) from None

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
            if record.exists() and self._known.get(self._name(record)) != record.read_bytes():
                self.touch(path.name)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(LAST if kind is None else STOPPED)
        self._late = True
        if self._thread.is_alive():
            self.say(f"the mirror {self.shown} lacks what came last; --resume copies it from {self._storage.path}")
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        """Connect, and try to write."""
        from pyarrow.fs import FileSystem

        self._files, base = FileSystem.from_uri(self._uri)
        self._base = PurePosixPath(base)
        self._put_bytes(".probe", b"")
        self._files.delete_file(self._there(".probe"))

    def _asked(self, question: Callable[[], T]) -> T:
        answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=ANSWER)
        except queue.Empty:
            raise SpecError("--mirror", f"{self.shown} does not answer within {ANSWER:.0f} s", REACH) from None
        if error is not None:
            raise SpecError("--mirror", f"{self.shown} cannot be used: {self._line(error)}", REACH) from None
        return answer

    def _line(self, error: Exception) -> str:
        return line_of(error).replace(self._uri, self.shown)

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
                    self.say(f"the mirror {self.shown} cannot be written: {self._line(error)}; it is tried again")
                time.sleep(pause)
                pause = min(2 * pause, AGAIN)
            else:
                if failures >= 2:
                    self.say(f"the mirror {self.shown} can be written again")
                pause, failures = FIRST, 0

    def _copy_sweep(self) -> None:
        storage = self._storage
        # sweep.yaml makes it a sweep; draws.json and lines.json have what runs before it runs.
        self._put_changed([storage.spec, storage.path / "draws.json", storage.path / "lines.json", storage.table])
        self._put_or_delete(storage.best)
        self._put_changed([storage.record])

    def _copy_run(self, name: str) -> None:
        """Copy what is new of a run: nothing that is there at any moment names something that is not."""
        folder = self._storage.run(name)
        if not folder.run.exists():
            return
        record = folder.run.read_bytes()  # first: the checkpoint that it names is among those found next
        paths = (folder.checkpoints / "manifests").glob("[0-9]*.json")
        manifests = {int(path.stem): (self._name(path), path.read_bytes()) for path in paths}
        new = {step: found for step, found in manifests.items() if not self._same(*found)}
        for step, (place, manifest) in new.items():
            self._delete(place)  # that of a checkpoint of this step which was made before
            step_folder = folder.checkpoints / str(step)
            files = json.loads(manifest)["manifest"]["files"]
            list(self._pool.map(self._put, [step_folder / file for file in files]))
        # Training goes on from a checkpoint and the metrics up to it, which were written before it.
        self._put_changed([folder.metrics, *folder.events.glob("[!.]*")])
        for place, manifest in new.values():
            self._put_bytes(place, manifest)
            self._known[place] = manifest
        made = [path for path in folder.evaluation.glob("[!.]*") if path.is_file()]
        self._put_changed(path for path in made if path.suffix != ".json")
        self._put_changed([*(path for path in made if path.suffix == ".json"), folder.spec])
        self._put_bytes(self._name(folder.run), record)
        self._known[self._name(folder.run)] = record
        if manifests:
            self._drop_but(self._name(folder.checkpoints), set(manifests))
        self._put_or_delete(self._storage.ended_path(name))

    def _drop_but(self, checkpoints: str, kept: set[int]) -> None:
        """Delete all other checkpoints, their manifests first."""
        names = [PurePosixPath(path) for path in self._listed(f"{checkpoints}/manifests", recursive=False)]
        for path in names:
            if path.stem.isdigit() and int(path.stem) not in kept:
                self._delete(str(path))
        for path in map(PurePosixPath, self._listed(checkpoints, recursive=False, folders=True)):
            if path.name.isdigit() and int(path.name) not in kept:
                self._files.delete_dir(self._there(str(path)))

    def _wanted(self) -> list[str]:
        """What is worth fetching: no run whose first copy was cut short, no checkpoint without a manifest."""
        listed = self._listed("", recursive=True)
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

    def _listed(self, folder: str, recursive: bool, folders: bool = False) -> list[str]:
        """Files below a folder of the mirror, or folders."""
        from pyarrow.fs import FileSelector, FileType

        wanted = FileType.Directory if folders else FileType.File
        selector = FileSelector(self._there(folder), allow_not_found=True, recursive=recursive)
        found = self._files.get_file_info(selector)
        return [str(PurePosixPath(info.path).relative_to(self._base)) for info in found if info.type == wanted]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._storage.path).as_posix()

    def _there(self, name: str) -> str:
        return str(self._base / name)

    def _same(self, name: str, content: bytes) -> bool:
        """Whether a file of the mirror has this content."""
        return self._content(name) == content

    def _content(self, name: str) -> Any:
        """What a file of the mirror holds, or the state of the file that was copied there; None without one."""
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def _read(self, name: str) -> bytes | None:
        try:
            with self._files.open_input_stream(self._there(name), compression=None) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _get(self, name: str) -> None:
        path = self._storage.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._files.open_input_stream(self._there(name), compression=None) as source, open_atomic(path) as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
        if path.parent.name != "manifests":
            self._known[name] = _state(path)

    def _put_changed(self, paths: Iterable[Path]) -> None:
        """Copy those that are there and have changed."""
        changed = []
        for path in paths:
            if path.exists() and self._known.get(self._name(path)) != (state := _state(path)):
                changed.append((path, state))
        list(self._pool.map(self._put, [path for path, _ in changed]))
        self._known |= {self._name(path): state for path, state in changed}

    def _put_or_delete(self, path: Path) -> None:
        """Copy a file, or delete its copy where it is gone."""
        if path.exists():
            self._put_changed([path])
        else:
            self._delete(self._name(path))

    def _put(self, path: Path) -> None:
        with path.open("rb") as source:
            self._write(self._name(path), iter(lambda: source.read(CHUNK), b""))

    def _put_bytes(self, name: str, content: bytes) -> None:
        self._write(name, [content])

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Make a file of the mirror, which is complete or absent: objects are, and local files are renamed."""
        place = PurePosixPath(self._there(name))
        local = self._files.type_name == "local"
        if local:
            self._files.create_dir(str(place.parent))
        written = place.with_name(f".{place.name}.tmp") if local else place
        with self._files.open_output_stream(str(written), compression=None) as file:
            for chunk in chunks:
                file.write(chunk)
        if local:
            self._files.move(str(written), str(place))

    def _delete(self, name: str) -> None:
        if self._content(name) is not None:
            self._files.delete_file(self._there(name))
            self._known[name] = None


def _without_space(text: str) -> dict[str, Any]:
    data = yaml.safe_load(text)
    return {name: value for name, value in data.items() if name != "sweep"} if isinstance(data, dict) else {}


def _state(path: Path) -> tuple[int, int]:
    """What tells that a file has changed."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
