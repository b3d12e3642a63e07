"""A folder in another file system that holds copies of files of a local one: reading, writing, and what it has."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from llrflow.base.errors import SpecError, line_of
from llrflow.base.files import open_atomic

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs")
EXAMPLES = "write file:///FOLDER, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
REACH = "check the address, the credentials and the right to write"

ANSWER = 60.0
"""Seconds for a file system to answer before the sweep begins; its own retries may take a quarter of an hour."""

CHUNK = 2**23
"""Bytes in memory at a time of a file that is copied."""

AT_A_TIME = 8
"""Files."""


class RemoteFolder:
    """A folder at a URI of pyarrow's file systems, file://, s3:// or gs://, with copies of files of `local`.

    A file has the same name in both: its path below the folder. Errors of the file system are raised as they come,
    but for those of `answer`.
    """

    def __init__(self, uri: str, local: Path) -> None:
        """Raises SpecError, at --mirror, where nothing can be written there."""
        self._uri, self._local = uri, local
        scheme, colon, place = uri.partition("://")
        if not colon or scheme not in SCHEMES:
            raise SpecError("--mirror", f"{uri!r} names no file system that is known", EXAMPLES)
        self.shown = f"{scheme}://{place.partition('?')[0].rpartition('@')[2]}"
        """The URI without keys and options, for messages."""
        self._known: dict[str, Any] = {}
        """By name: what a file there holds, or the state of the local one that was copied; None where there is none."""
        self._pool = ThreadPoolExecutor(AT_A_TIME, "llrflow-mirror")
        self.answer(self._begin)

    def close(self) -> None:
        """Begin no other copy."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        """Connect, and try to write."""
        from pyarrow.fs import FileSystem

        self._files, base = FileSystem.from_uri(self._uri)
        self._base = PurePosixPath(base)
        self.put_bytes(".probe", b"")
        self.delete(".probe")

    def answer(self, question: Callable[[], T]) -> T:
        """The answer to a question about the folder, which must not take long. Raises SpecError."""
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
            raise SpecError("--mirror", f"{self.shown} cannot be used: {self.line(error)}", REACH) from None
        return answer

    def line(self, error: Exception) -> str:
        """One line for an error, without keys."""
        return line_of(error).replace(self._uri, self.shown)

    def listed(self, folder: str, recursive: bool, folders: bool = False) -> list[str]:
        """Names of the files below a folder, or of the folders."""
        from pyarrow.fs import FileSelector, FileType

        wanted = FileType.Directory if folders else FileType.File
        selector = FileSelector(self._there(folder), allow_not_found=True, recursive=recursive)
        found = self._files.get_file_info(selector)
        return [str(PurePosixPath(info.path).relative_to(self._base)) for info in found if info.type == wanted]

    def name(self, path: Path) -> str:
        """The name of a local file."""
        return path.relative_to(self._local).as_posix()

    def _there(self, name: str) -> str:
        return str(self._base / name)

    def holds(self, name: str, content: bytes) -> bool:
        """Whether a file has this content."""
        return self._content(name) == content

    def is_known(self, name: str, content: bytes) -> bool:
        """Whether a file has this content, as far as is known without asking."""
        return self._known.get(name) == content

    def _content(self, name: str) -> Any:
        """What is known of a file, or what it holds."""
        if name not in self._known:
            self._known[name] = self.read(name)
        return self._known[name]

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        try:
            with self._files.open_input_stream(self._there(name), compression=None) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def get(self, names: Iterable[str]) -> None:
        """Bring files into the local folder."""
        list(self._pool.map(self._get, names))

    def _get(self, name: str) -> None:
        path = self._local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._files.open_input_stream(self._there(name), compression=None) as source, open_atomic(path) as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
        if path.parent.name != "manifests":
            self._known[name] = _state(path)

    def put_changed(self, paths: Iterable[Path]) -> None:
        """Copy those that are there and have changed."""
        changed = []
        for path in paths:
            if path.exists() and self._known.get(self.name(path)) != (state := _state(path)):
                changed.append((path, state))
        self.put(path for path, _ in changed)
        self._known |= {self.name(path): state for path, state in changed}

    def put_or_delete(self, path: Path) -> None:
        """Copy a file, or delete its copy where it is gone."""
        if path.exists():
            self.put_changed([path])
        else:
            self.delete(self.name(path))

    def put(self, paths: Iterable[Path]) -> None:
        """Copy local files."""
        list(self._pool.map(self._put, paths))

    def _put(self, path: Path) -> None:
        with path.open("rb") as source:
            self._write(self.name(path), iter(lambda: source.read(CHUNK), b""))

    def put_bytes(self, name: str, content: bytes) -> None:
        """Make a file with this content."""
        self._write(name, [content])
        self._known[name] = content

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Make a file, which is complete or absent: objects are, and local files are renamed."""
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

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self._content(name) is not None:
            self._files.delete_file(self._there(name))
            self._known[name] = None

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it."""
        self._files.delete_dir(self._there(name))


def _state(path: Path) -> tuple[int, int]:
    """What tells that a file has changed."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
