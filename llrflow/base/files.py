"""Files that are either complete or absent, whenever the process is killed."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from llrflow.base.errors import SpecError

LARGEST_RECORD = 2**28
"""Bytes of the largest JSON file that is read."""


def read_regular(path: Path, largest: int = LARGEST_RECORD) -> bytes:
    """The content of a regular file: a pipe would block for good. Raises OSError for all else, and a larger one."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise OSError(errno.EFBIG, f"is larger than {largest} bytes", str(path))
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened to be read. Raises OSError for all else, pipes and devices among them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number, what = (errno.EISDIR, "Is a directory") if stat.S_ISDIR(mode) else (errno.EINVAL, "Is no regular file")
        raise OSError(number, what, str(path))
    return os.fdopen(descriptor, "rb")


NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""What the system says of a disk that is full."""


def no_room(error: BaseException | None) -> str | None:
    """What the system says, if an error came of a full disk: libraries hide it in errors of their own."""
    while error is not None:
        for number in NO_ROOM:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of `path` for writing; a clean exit flushes it to disk and renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: it creates private files, and the result should have the mode any other file gets.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the one that the user knows
        raise
    sync(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash at any instant, sees the old file or the new one."""
    with open_atomic(path) as file:
        file.write(content)


TEMPORARY = f"{'[0-9a-f]' * 8}.tmp"
"""How the names of files end that `open_atomic` has begun: a pattern."""


def require_local(folder: Path) -> None:
    """Raise SpecError where a folder to be written is a URI (`s3://b/x`), which `Path` makes a local `s3:/b/x` of."""
    if len(folder.parts) > 1 and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", folder.parts[0]):
        fix = "name a local folder; `llrflow sweep --mirror URI` copies a sweep there while it runs"
        raise SpecError(str(folder).replace(":/", "://", 1), "is a URI, and only local folders are written", fix)


def remove_temporaries(path: Path) -> None:
    """Remove what writing `path` left beside it when the process was killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{TEMPORARY}"):
        left.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, waiting for other processes; a killed holder lets go by itself."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


TRIES, BETWEEN = 11, 0.05
"""To get a lock, and seconds from one to the next: `has_owner` holds it for an instant."""


@contextmanager
def sole_owner(folder: Path, process: str) -> Iterator[None]:
    """Hold the lock of a folder, which a killed process lets go.

    Raises SpecError when another `process` has it, or the folder cannot be written.
    """
    try:
        opened = (folder / ".lock").open("ab")
    except OSError as error:
        if no_room(error):
            raise
        fix = "make it writable, or choose another --out"
        raise SpecError(str(folder), f"cannot be written: {error.strerror}", fix) from None
    with opened as lock:
        for left in reversed(range(TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    got = f"is in use by another {process}"
                    raise SpecError(str(folder), got, "wait for it, or choose another --out") from None
            time.sleep(BETWEEN)
        yield


def has_owner(folder: Path) -> bool:
    """Whether a process holds the lock of a folder that `sole_owner` takes."""
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def sync(path: Path) -> None:
    """Flush a file or a directory to disk (a rename lives in the directory, not in the file)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hex. Raises OSError for all else."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
